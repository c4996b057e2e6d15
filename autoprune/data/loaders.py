"""The user's loaders: checked batch by batch, carved into training and search split, shuffled reproducibly.

A `torch.utils.data.DataLoader` over a map-style data set with one of the two default samplers is taken apart and
built again (batch size, collate function, workers stay), so that it can be carved, shuffled by (seed, epoch) and read
in a fixed order. Everything else that gives batches each time it is iterated is used as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any, TypeGuard

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, SequentialSampler, Subset

from autoprune.data.base import Batch, Data, batch_size_of, split_size, take_samples, tensors_of
from autoprune.data.parts import Part, cut_parts, own_samples
from autoprune.data.rng import generator, iterate, key_seed, mixed, seed_global
from autoprune.search_spaces.errors import UserError

_SHUFFLED = 1  # second number of the key of shuffled passes, (seed, 1, epoch); plain passes have (0, 0)


def data_from_loaders(
    train: Iterable[Any],
    search: Iterable[Any] | None = None,
    test: Iterable[Any] | None = None,
    *,
    seed: int = 0,
    search_fraction: float | None = None,
    name: str = "loaders",
) -> Data:
    """Make a `Data` of loaders: `DataLoader`s, or anything that gives (inputs, targets) batches at every iteration.

    Args:
        train: shuffled by (seed, epoch) where it is a `DataLoader` with a default sampler; another keeps its order.
        search: what candidates are scored on. None carves it from `train`, whose transforms it then shares: where
            those are random augmentation, give a loader of your own.
        test: for final numbers only.
        seed: seeds the carving and the choice of calibration samples.
        search_fraction: share in (0, 1) or number of samples to carve; None for 10 %, at most 10,000.
        name: what reports call the data.

    Raises:
        UserError: a loader is empty, gives no (inputs, targets) pairs, can be iterated only once, or cannot be
            carved. Each loader's first batch is read here; the others are checked as they come.
    """
    if search is None:
        train, search = _carve(train, search_fraction, seed)
    return Data(
        name,
        train=LoaderBatches(train, "train", trains=True),
        search=LoaderBatches(search, "search"),
        test=None if test is None else LoaderBatches(test, "test"),
        num_classes=_num_classes(train),
        seed=seed,
    )


class LoaderBatches:
    """Checked batches of a loader; random draws of its transforms are the same in every plain pass.

    Args:
        loader: what gives the batches.
        split: its name in messages.
        trains: keep incomplete batches out if the loader does; other splits score every sample.
        plain: a data set with the same samples, un-augmented, for everything but `epoch`.

    Raises:
        UserError: see `data_from_loaders`.
    """

    def __init__(self, loader: Iterable[Any], split: str, *, trains: bool = False, plain: Any | None = None) -> None:
        if not isinstance(loader, Iterable):
            raise UserError(f"The {split} loader must give batches when iterated, but got {type(loader).__name__}.")
        if isinstance(loader, Iterator):
            raise UserError(
                f"The {split} loader is a {type(loader).__name__}, which can be iterated only once, but every epoch "
                "and trial needs a pass. Give a DataLoader, a list of batches, or an object that starts again."
            )
        self._split = split
        self._plain = self._trained = loader
        if is_map_style(loader):
            keep: dict[str, Any] = {} if trains else {"drop_last": False}
            self._plain = rebuild(loader, loader.dataset if plain is None else plain, shuffle=False, **keep)
        self._first_shapes: list[tuple[int, ...]] | None = None
        for _ in self:
            break
        else:
            hint = " drop_last leaves out its only batch." if getattr(loader, "drop_last", False) else ""
            raise UserError(f"The {split} loader is empty: it must give at least one batch.{hint}")

    @property
    def is_sized(self) -> bool:
        """Whether `num_samples` is known without a pass over the data."""
        return is_map_style(self._plain)

    @cached_property
    def num_samples(self) -> int:
        """Samples in one pass; a loader that cannot tell is read once to count them."""
        if is_map_style(self._plain):
            total = len(self._plain.dataset)  # type: ignore[arg-type]  # map-style data sets have a length
            return total - total % (self._plain.batch_size or 1) if self._plain.drop_last else total
        return sum(batch_size_of(targets) for _, targets in self)

    def __len__(self) -> int:
        return self._num_batches

    @cached_property
    def _num_batches(self) -> int:
        try:
            return len(self._plain)  # type: ignore[arg-type]
        except TypeError:  # an iterable data set without a length
            return sum(1 for _ in self)

    def __iter__(self) -> Iterator[Batch]:
        return self._checked(iterate(self._plain, 0, 0))

    def epoch(self, seed: int, epoch: int) -> Iterator[Batch]:
        """Yield one pass, shuffled where the loader could be rebuilt; its random draws depend on (seed, epoch)."""
        return ((part.inputs, part.targets) for part in self.parts(seed, epoch))

    def parts(self, seed: int, epoch: int, start: int = 0, rank: int = 0, world: int = 1) -> Iterator[Part]:
        """Yield what process `rank` of `world` takes of the batches of `epoch`, from number `start` on.

        Only that is loaded where the loader could be rebuilt; another loader is read from its beginning.
        """
        loader, key = self._trained, (seed, _SHUFFLED, epoch)
        if not is_map_style(loader):
            yield from cut_parts(self._checked(iterate(loader, *key)), start, rank, world)
            return
        shuffled, size = Shuffled(loader.dataset, *key), loader.batch_size or 1
        firsts = range(start * size, len(self) * size, size)
        wholes = [range(first, min(first + size, len(shuffled))) for first in firsts]
        own = [own_samples(len(whole), rank, world) for whole in wholes]
        mine = [whole[chosen] for whole, (chosen, _) in zip(wholes, own, strict=True)]
        batches = self._checked(iterate(rebuild(loader, shuffled, batches=mine), *key), first=start)
        for whole, (_, count), (inputs, targets) in zip(wholes, own, batches, strict=True):
            # alone, a batch is as large as it came: a collate function may leave samples out or add some
            total = len(whole) if world > 1 else batch_size_of(inputs)
            yield Part(inputs, targets, count if world > 1 else total, total)

    def draw(self, num_samples: int, seed: int) -> Iterator[Batch]:
        """Yield `num_samples` (or all) samples in batches: of a seeded permutation where the loader could be rebuilt,
        else the first ones of a pass.
        """
        loader = self._plain
        if is_map_style(loader):
            total = len(loader.dataset)  # type: ignore[arg-type]
            chosen = torch.randperm(total, generator=generator(seed))[:num_samples].tolist()
            loader = rebuild(loader, Subset(loader.dataset, chosen), shuffle=False, drop_last=False)
        return take_samples(self._checked(iterate(loader, 0, 0)), num_samples)

    @property
    def is_indexable(self) -> bool:
        """Whether samples can be read in any order."""
        return is_map_style(self._plain) and not self._plain.drop_last

    def in_order(self, batches: Sequence[Tensor]) -> Iterator[Batch]:
        """Yield a batch for each array of sample numbers, int64 [N]; only where `is_indexable`."""
        assert is_map_style(self._plain), "a loader that makes its own batches has no order but its own"
        order = torch.cat(list(batches)).tolist()
        sizes = {len(chosen) for chosen in batches[:-1]} or {len(batches[0])}
        assert len(sizes) == 1, "batches of one size, but for the last"
        loader = rebuild(self._plain, Subset(self._plain.dataset, order), shuffle=False, batch_size=sizes.pop())
        return self._checked(iterate(loader, 0, 0))

    def with_batch_size(self, batch_size: int) -> LoaderBatches:
        """Return the same samples in batches of another size.

        Raises:
            UserError: the loader makes its own batches.
        """
        if not (is_map_style(self._trained) and is_map_style(self._plain)):
            raise UserError(
                f"The batch size of the {self._split} loader cannot be changed to {batch_size}: it makes its own "
                "batches. Set the size where the loader is made."
            )
        loader = rebuild(self._trained, batch_size=batch_size, shuffle=True)
        return LoaderBatches(loader, self._split, trains=True, plain=self._plain.dataset)

    def _checked(self, batches: Iterator[Any], first: int = 0) -> Iterator[Batch]:
        for index, batch in enumerate(batches, first):
            inputs, targets = check_batch(
                batch, f"batch {index} of the {self._split} split", look_inside=index == first
            )
            shapes = [tuple(tensor.shape[1:]) for tensor in tensors_of(inputs)]
            if self._first_shapes is None:
                self._first_shapes = shapes
            if shapes != self._first_shapes:
                raise UserError(
                    f"All samples must have one shape, but batch {index} of the {self._split} split has "
                    f"{_show(shapes)} and the first batch {_show(self._first_shapes)} (without the batch dimension)."
                )
            yield inputs, targets


def check_batch(batch: Any, where: str, *, look_inside: bool) -> Batch:
    """Return (inputs, targets) with lists made tuples.

    Args:
        batch: what a loader gave.
        where: for messages: "batch 3 of the train split".
        look_inside: also look for NaN and infinite inputs.

    Raises:
        UserError: no pair of tensors with the same number of samples, at least one; or inputs that are not finite.
    """
    if not (isinstance(batch, (tuple, list)) and len(batch) == 2):
        got = f"a {type(batch).__name__}" + (f" of {len(batch)}" if isinstance(batch, (tuple, list, dict)) else "")
        raise UserError(
            f"A batch is a pair (inputs, targets), but {where} is {got}. Give the loader a collate_fn that returns the "
            "pair; inputs may be a tuple or dict of tensors."
        )
    inputs, targets = (tuple(part) if isinstance(part, list) else part for part in batch)
    for name, part in (("inputs", inputs), ("targets", targets)):
        if not (isinstance(part, (Tensor, tuple, dict)) and _all_tensors(part)):
            raise UserError(
                f"{name.capitalize()} are a tensor, or a tuple or dict of tensors, whose first dimension is the batch, "
                f"but in {where} the {name} are {_describe(part)}."
            )
    sizes = {len(tensor) for part in (inputs, targets) for tensor in tensors_of(part)}
    if len(sizes) != 1 or 0 in sizes:
        raise UserError(
            f"Inputs and targets need the same number of samples, at least one, but {where} has inputs "
            f"{_show(tensors_of(inputs))} and targets {_show(tensors_of(targets))}."
        )
    if look_inside and not all(bool(x.isfinite().all()) for x in tensors_of(inputs) if x.is_floating_point()):
        raise UserError(f"The inputs in {where} hold NaN or infinite values. Clean the data or its transforms.")
    return inputs, targets


def is_map_style(loader: object) -> TypeGuard[DataLoader[Any]]:
    """Whether `loader` is a `DataLoader` that can be taken apart: indexable data, a default sampler, own batching."""
    return (
        isinstance(loader, DataLoader)
        and not isinstance(loader.dataset, IterableDataset)
        and loader.batch_size is not None
        and type(loader.sampler) in (SequentialSampler, RandomSampler)
        and not getattr(loader.sampler, "replacement", False)
        and len(loader.sampler) == len(loader.dataset)  # type: ignore[arg-type]  # both have a length
    )


def rebuild(
    loader: Any,
    dataset: Any | None = None,
    *,
    shuffle: bool = False,
    batches: Sequence[Sequence[int]] | None = None,
    **changes: Any,
) -> DataLoader[Any]:
    """Return a loader like `loader` over `dataset`; of the samples in `batches`, where given.

    Workers end with their pass: one that lived on would draw numbers that depend on the passes before.
    """
    kept = ("batch_size", "num_workers", "collate_fn", "pin_memory", "drop_last", "timeout", "worker_init_fn")
    settings = {name: getattr(loader, name) for name in kept} | changes
    if loader.num_workers:
        settings |= {
            "prefetch_factor": loader.prefetch_factor,
            "multiprocessing_context": loader.multiprocessing_context,
        }
    dataset = loader.dataset if dataset is None else dataset
    if batches is not None:
        settings |= {"batch_sampler": batches, "batch_size": 1, "drop_last": False}  # what goes with a batch sampler
    else:
        settings["shuffle"] = shuffle and len(dataset) > 0  # an empty one cannot be shuffled
    return DataLoader(dataset, **settings)


class Shuffled:
    """The samples of `dataset` in the order of one pass, an indexable data set of its own.

    Before each batch the global generators are seeded with the key and the batch's first position, in whichever
    process reads it: what transforms draw does not depend on the batches before.
    """

    def __init__(self, dataset: Any, *key: int) -> None:
        self._dataset, self._seed = dataset, key_seed(*key)
        self._order = torch.randperm(len(dataset), generator=generator(*key))

    def __len__(self) -> int:
        return len(self._order)

    def __getitems__(self, positions: Sequence[int]) -> list[Any]:
        """The samples of one batch; `DataLoader` asks for them so."""
        seed_global(mixed(self._seed, positions[0]))
        chosen = self._order[list(positions)].tolist()
        together = getattr(self._dataset, "__getitems__", None)
        return together(chosen) if together else [self._dataset[number] for number in chosen]


def _carve(train: Iterable[Any], size: float | None, seed: int) -> tuple[Iterable[Any], Iterable[Any]]:
    if not is_map_style(train):
        raise UserError(
            f"A search split cannot be carved from a {type(train).__name__}: that needs a DataLoader over an indexable "
            "data set with the default sampler. Give a search loader as well."
        )
    total = len(train.dataset)  # type: ignore[arg-type]
    if not total:
        raise UserError("The train loader is empty: it must give at least one batch.")
    wanted = split_size(total, size)
    order = torch.randperm(total, generator=generator(seed, 1))
    rest, carved = (Subset(train.dataset, part.sort().values.tolist()) for part in (order[wanted:], order[:wanted]))
    return rebuild(train, rest, shuffle=True), rebuild(train, carved, shuffle=False, drop_last=False)


def _num_classes(loader: Any) -> int | None:
    dataset = getattr(loader, "dataset", None)
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    classes = getattr(dataset, "classes", None)  # torchvision's name for it
    return len(classes) if classes is not None else None


def _all_tensors(part: Any) -> bool:
    tensors = tensors_of(part)
    return bool(tensors) and all(isinstance(tensor, Tensor) and tensor.ndim > 0 for tensor in tensors)


def _describe(part: Any) -> str:
    if isinstance(part, Tensor):
        return "a tensor without dimensions"
    if isinstance(part, (tuple, dict)):
        kinds = sorted({type(item).__name__ for item in (part.values() if isinstance(part, dict) else part)})
        return f"a {type(part).__name__} of {', '.join(kinds) or 'nothing'}"
    return f"a {type(part).__name__}"


def _show(shapes: list[Any]) -> str:
    return ", ".join(str(list(getattr(shape, "shape", shape))) for shape in shapes)
