"""The three splits of a data set, and the few things done to a batch: run it, move it, count it.

Inputs are one tensor, a tuple of tensors (positional arguments) or a dict of tensors (keyword arguments of the
model's `forward`); the first dimension of each is the batch. Targets have the same form; for the score "accuracy"
they are class indices, int64 [N].
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from autoprune.search_spaces.errors import UserError

Inputs: TypeAlias = Tensor | tuple[Tensor, ...] | dict[str, Tensor]
Batch: TypeAlias = tuple[Inputs, Any]


class Batches(Protocol):
    """Batches of (inputs, targets); each `iter` starts a new pass, and every pass gives the same batches."""

    @property
    def num_samples(self) -> int:
        """Samples in one pass."""
        ...

    def __iter__(self) -> Iterator[Batch]: ...

    def __len__(self) -> int:
        """Batches in one pass."""
        ...


class TrainBatches(Batches, Protocol):
    """Batches that can be trained on; plain iteration is in a fixed order and, where we know how, un-augmented."""

    @property
    def is_sized(self) -> bool:
        """Whether `num_samples` is known without a pass over the data."""
        ...

    def epoch(self, seed: int, epoch: int) -> Iterator[Batch]:
        """Yield one shuffled, augmented pass of `len(self)` batches: a function of (seed, epoch)."""
        ...

    def draw(self, num_samples: int, seed: int) -> Iterator[Batch]:
        """Yield the first `num_samples` (or all) of a permutation seeded by `seed`, un-augmented, in batches."""
        ...

    def with_batch_size(self, batch_size: int) -> TrainBatches:
        """Return the same samples in batches of another size."""
        ...


@dataclass(frozen=True)
class Data:
    """Training, search and test split of one data set.

    Attributes:
        name: what the report calls it; the spec for `load_data`.
        train: what fine-tuning and calibration use.
        search: what candidates are scored on; never part of `train` or `test` unless the user made it so.
        test: for final numbers only; None where there is none.
        num_classes: None where unknown.
        seed: seeds the choice of calibration samples.
    """

    name: str
    train: TrainBatches
    search: Batches
    test: Batches | None = None
    num_classes: int | None = None
    seed: int = 0

    def train_epoch(self, seed: int, epoch: int) -> Iterator[Batch]:
        """Yield `len(train)` shuffled batches, augmented where the data set has it: a function of (seed, epoch)."""
        return self.train.epoch(seed, epoch)

    def calibration(self, num_samples: int) -> list[Inputs]:
        """Return batches of un-augmented training inputs: the same `num_samples` (or all there are) at every call."""
        return [inputs for inputs, _ in self.samples(num_samples)]

    def samples(self, num_samples: int) -> Iterator[Batch]:
        """Yield the same training samples with their targets."""
        return self.train.draw(num_samples, self.seed)

    def example(self, batch: int = 1) -> Inputs:
        """Return the first `batch` training inputs, to trace a model with.

        Raises:
            UserError: there are fewer training samples than `batch`.
        """
        parts, missing = [], batch
        for inputs, _ in self.train:
            parts.append(first_samples(inputs, missing))
            missing -= batch_size_of(parts[-1])
            if not missing:
                return concatenate(parts)
        raise UserError(
            f"An example of {batch} samples needs as many, but {self.name!r} has {batch - missing} to train."
        )

    def with_batch_size(self, batch_size: int) -> Data:
        """Return the same data with `batch_size` samples in each training batch."""
        return replace(self, train=self.train.with_batch_size(batch_size))

    @cached_property
    def fingerprint(self) -> str:
        """Hex digest of name, sizes, seed and the first batch of `train` and `search`: a resumed study compares it.

        Inputs that differ between two passes (a random transform that draws from a generator of its own) are left
        out, their targets stay in.
        """
        digest = hashlib.sha256()
        sizes = (self.train.num_samples if self.train.is_sized else None, self.search.num_samples)
        digest.update(repr((self.name, self.num_classes, self.seed, sizes)).encode())
        for split in (self.train, self.search):
            inputs, targets = next(iter(split))
            once, again = _digest(inputs), _digest(next(iter(split))[0])
            digest.update(repr((_digest(targets), once if once == again else None)).encode())
        return digest.hexdigest()[:16]


def forward(model: nn.Module, inputs: Inputs) -> Any:
    """Call `model` with a tensor, a tuple as positional or a dict as keyword arguments."""
    if isinstance(inputs, dict):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def to_device(inputs: Inputs, device: torch.device | str, *, non_blocking: bool = False) -> Any:
    """Return `inputs` (or targets) on `device`; what is there already is not copied."""
    return map_tensors(inputs, lambda tensor: tensor.to(device, non_blocking=non_blocking))


def batch_size_of(inputs: Inputs) -> int:
    """Samples in a batch of inputs or targets."""
    return tensors_of(inputs)[0].shape[0]


def first_samples(inputs: Inputs, num_samples: int) -> Any:
    """Return the first `num_samples` of a batch; all of it where it has fewer."""
    return map_tensors(inputs, lambda tensor: tensor[:num_samples])


def tensors_of(inputs: Inputs) -> list[Tensor]:
    """All tensors of inputs or targets, in order."""
    if isinstance(inputs, Tensor):
        return [inputs]
    return list(inputs.values() if isinstance(inputs, dict) else inputs)


def map_tensors(inputs: Inputs, function: Callable[[Tensor], Tensor]) -> Any:
    """Return inputs of the same form with `function` applied to each tensor."""
    if isinstance(inputs, Tensor):
        return function(inputs)
    if isinstance(inputs, dict):
        return {name: function(tensor) for name, tensor in inputs.items()}
    return tuple(function(tensor) for tensor in inputs)


def concatenate(parts: list[Inputs]) -> Inputs:
    """Join batches of inputs of one form along the batch dimension."""
    joined = iter([torch.cat(tensors) for tensors in zip(*map(tensors_of, parts), strict=True)])
    result: Inputs = map_tensors(parts[0], lambda _: next(joined))
    return result


def take_samples(batches: Iterable[Batch], num_samples: int) -> Iterator[Batch]:
    """Yield batches up to the first `num_samples` samples of a pass, or all there are."""
    if num_samples <= 0:
        return
    for inputs, targets in batches:
        yield first_samples(inputs, num_samples), first_samples(targets, num_samples)
        num_samples -= batch_size_of(inputs)
        if num_samples <= 0:
            return


def split_size(total: int, size: float | None) -> int:
    """Samples to carve from `total` for the search split.

    Args:
        total: training samples there are.
        size: a share in (0, 1), a whole number of samples from 1 on, or None for 10 %, at most 10,000.

    Raises:
        UserError: `size` is neither, or leaves nothing to train on.
    """
    if size is None:
        wanted = min(round(total * 0.1), 10_000)
    elif 0 < size < 1:
        wanted = round(total * size)
    elif size >= 1 and size % 1 == 0:
        wanted = int(size)
    else:
        raise UserError(f"The search split is a share in (0, 1) or a whole number of samples, but got {size!r}.")
    if not 0 < wanted < total:
        raise UserError(
            f"A search split of {wanted:,} cannot be carved from {total:,} training samples: at least one sample must "
            "be in it and one must remain. Set another size, or give a search split of your own."
        )
    return wanted


def _digest(value: Inputs) -> str:
    digest = hashlib.sha256()
    for tensor in tensors_of(value):
        digest.update(repr((tensor.dtype, tuple(tensor.shape))).encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
