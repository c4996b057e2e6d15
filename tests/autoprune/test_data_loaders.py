"""The user's loaders: carved, shuffled by (seed, epoch), checked."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, WeightedRandomSampler

from autoprune.data import Data, batch_size_of, data_from_loaders
from autoprune.search_spaces.errors import UserError


def dataset(count: int = 40) -> TensorDataset:
    return TensorDataset(torch.arange(count, dtype=torch.float32).reshape(-1, 1), torch.arange(count))


def loader(count: int = 40, **settings: Any) -> DataLoader[Any]:
    return DataLoader(dataset(count), **{"batch_size": 8, "shuffle": True} | settings)


def targets_of(batches: Any) -> list[int]:
    return [int(target) for _, targets in batches for target in targets]


class Noisy(Dataset[Any]):
    """Map-style, with a random transform that draws from two global generators."""

    classes = ("even", "odd")

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.tensor([index + 0.1 * float(torch.rand(())) + 0.1 * random.random()]), index % 2


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter([(torch.tensor([float(i)]), i) for i in range(10)])


def test_carved_split_is_disjoint_seeded_and_never_in_training() -> None:
    data = data_from_loaders(loader(), search_fraction=0.25, seed=3)
    train, search = targets_of(data.train), targets_of(data.search)
    assert sorted(train + search) == list(range(40))
    assert len(search) == data.search.num_samples == 10
    assert set(targets_of(data.train_epoch(0, 0))) == set(train)
    assert targets_of(data_from_loaders(loader(), search_fraction=0.25, seed=3).search) == search
    assert set(targets_of(data_from_loaders(loader(), search_fraction=0.25, seed=4).search)) != set(search)
    assert data.test is None


def test_epochs_depend_on_seed_and_epoch_only() -> None:
    data = data_from_loaders(loader(), loader(8))
    one = targets_of(data.train_epoch(1, 2))
    torch.rand(5)
    assert targets_of(data.train_epoch(1, 2)) == one
    assert targets_of(data.train_epoch(1, 3)) != one
    assert targets_of(data.train_epoch(2, 2)) != one
    assert targets_of(data.train) == sorted(one)


def test_a_shuffled_search_loader_is_read_in_order_and_whole() -> None:
    data = data_from_loaders(loader(), loader(12, drop_last=True), loader(4))
    assert targets_of(data.search) == list(range(12))
    assert data.search.num_samples == 12
    assert data.test is not None
    assert targets_of(data.test) == list(range(4))


def test_batching_of_the_user_is_kept() -> None:
    def halve(samples: list[Any]) -> tuple[Tensor, Tensor]:
        return torch.stack([x for x, _ in samples]) / 2, torch.stack([y for _, y in samples])

    data = data_from_loaders(loader(20, collate_fn=halve, drop_last=True), search_fraction=2)
    assert [len(targets) for _, targets in data.train_epoch(0, 0)] == [8, 8]
    assert len(data.train) == 2
    for inputs, targets in [*data.train, *data.search]:
        assert torch.equal(inputs[:, 0] * 2, targets.float())
    resized = data.with_batch_size(6)
    assert [len(targets) for _, targets in resized.train_epoch(0, 0)] == [6, 6, 6]
    assert set(targets_of(resized.train)) <= set(range(20)) - set(targets_of(data.search))


def test_random_transforms_are_repeatable_and_leave_the_global_state() -> None:
    torch_before, python_before = torch.get_rng_state(), random.getstate()
    data = data_from_loaders(DataLoader(Noisy(), batch_size=5), search_fraction=0.5)
    search = [torch.cat([inputs for inputs, _ in data.search]) for _ in range(2)]  # type: ignore[misc]
    assert torch.equal(*search)
    epochs = [torch.cat([x for x, _ in data.train_epoch(0, epoch)]).sort(0)[0] for epoch in (0, 0, 1)]  # type: ignore[misc]
    assert torch.equal(epochs[0], epochs[1])
    assert not torch.equal(epochs[0], epochs[2])
    assert data.num_classes == 2
    assert data.fingerprint == data_from_loaders(DataLoader(Noisy(), batch_size=5), search_fraction=0.5).fingerprint
    assert torch.equal(torch.get_rng_state(), torch_before)
    assert random.getstate() == python_before


def test_workers_give_the_same_epoch_each_time() -> None:
    train = DataLoader(Noisy(), batch_size=5, num_workers=2, persistent_workers=True)
    data = data_from_loaders(train, [(torch.zeros(2, 1), torch.zeros(2))])
    first, other, again = (torch.cat([x for x, _ in data.train_epoch(0, epoch)]) for epoch in (1, 0, 1))  # type: ignore[misc]
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_fingerprint_survives_inputs_that_differ_at_every_pass() -> None:
    class Unrepeatable:
        count = 0.0

        def __iter__(self) -> Iterator[Any]:
            Unrepeatable.count += 1
            yield torch.full((2, 1), Unrepeatable.count), torch.tensor([0, 1])

    def make(labels: Tensor) -> Data:
        return data_from_loaders(Unrepeatable(), [(torch.zeros(2, 1), labels)])

    assert make(torch.tensor([0, 1])).fingerprint == make(torch.tensor([0, 1])).fingerprint
    assert make(torch.tensor([0, 1])).fingerprint != make(torch.tensor([1, 1])).fingerprint


def test_calibration_of_map_style_and_of_other_loaders() -> None:
    data = data_from_loaders(loader(), loader(8), seed=2)
    parts = data.calibration(11)
    assert [batch_size_of(part) for part in parts] == [8, 3]
    assert torch.equal(torch.cat(parts), torch.cat(data.calibration(11)))  # type: ignore[arg-type]
    assert torch.cat(parts).flatten().tolist() != list(range(11))  # type: ignore[arg-type]
    stream = data_from_loaders(DataLoader(Stream(), batch_size=4), loader(8))
    assert torch.cat(stream.calibration(6)).flatten().tolist() == list(range(6))  # type: ignore[arg-type]


def test_streams_and_lists_of_batches_are_used_as_they_are() -> None:
    data = data_from_loaders(DataLoader(Stream(), batch_size=4), [(torch.zeros(2, 1), torch.zeros(2))] * 3)
    assert len(data.train) == 3
    assert data.train.num_samples == 10
    assert data.search.num_samples == 6
    assert targets_of(data.train_epoch(0, 0)) == list(range(10))
    with pytest.raises(UserError, match="train loader cannot be changed to 2"):
        data.with_batch_size(2)


def test_a_sampler_of_the_user_is_kept_and_made_repeatable() -> None:
    weights = [0.0] * 30 + [1.0] * 10
    train = DataLoader(dataset(), batch_size=8, sampler=WeightedRandomSampler(weights, 16))
    data = data_from_loaders(train, loader(8))
    drawn = targets_of(data.train_epoch(0, 0))
    assert len(drawn) == 16
    assert set(drawn) <= set(range(30, 40))
    assert targets_of(data.train_epoch(0, 0)) == drawn
    assert targets_of(data.train_epoch(0, 1)) != drawn
    with pytest.raises(UserError, match=r"cannot be carved from a DataLoader.*Give a search loader"):
        data_from_loaders(train)


def test_several_inputs_come_as_tuples_and_dicts() -> None:
    def as_dict(samples: list[Any]) -> tuple[dict[str, Tensor], Tensor]:
        return {"x": torch.stack([x for x, _ in samples])}, torch.stack([y for _, y in samples])

    pairs = [((torch.tensor([1.0]), torch.tensor([2.0])), 0)] * 6  # default collation makes lists of tuples
    data = data_from_loaders(DataLoader(pairs, batch_size=2), loader(8, collate_fn=as_dict))  # type: ignore[arg-type]
    inputs = data.example(3)
    assert isinstance(inputs, tuple)
    assert [tensor.flatten().tolist() for tensor in inputs] == [[1.0] * 3, [2.0] * 3]
    named, _ = next(iter(data.search))
    assert isinstance(named, dict)
    assert named["x"].shape == (8, 1)


GOOD = (torch.zeros(2, 3), torch.zeros(2))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: (batch for batch in [GOOD]), "generator, which can be iterated only once"),
        (lambda: iter([GOOD]), "list_iterator, which can be iterated only once"),
        (lambda: [], "search loader is empty"),
        (lambda: loader(0, shuffle=False), "search loader is empty"),
        (lambda: 3, "must give batches when iterated, but got int"),
        (lambda: [torch.zeros(2, 3)], "pair .* batch 0 of the search split is a Tensor"),
        (lambda: [{"x": 1, "labels": 2, "mask": 3}], "batch 0 of the search split is a dict of 3.*collate_fn"),
        (lambda: [(torch.zeros(2),)], "is a tuple of 1"),
        (lambda: [(torch.zeros(2, 3), [1, 2])], "targets are a tuple of int"),
        (lambda: [("ab", torch.zeros(2))], "inputs are a str"),
        (lambda: [(torch.tensor(1.0), torch.zeros(1))], "inputs are a tensor without dimensions"),
        (lambda: [((), torch.zeros(1))], "inputs are a tuple of nothing"),
        (lambda: [(torch.zeros(2, 3), torch.zeros(4))], r"inputs \[2, 3\] and targets \[4\]"),
        (lambda: [(torch.zeros(0, 3), torch.zeros(0))], "at least one"),
        (lambda: [(torch.full((2, 3), float("inf")), torch.zeros(2))], "batch 0 of the search split hold NaN or inf"),
    ],
)
def test_bad_first_batches_are_refused_at_once(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        data_from_loaders([GOOD], make())


def test_a_bad_later_batch_is_refused_when_it_comes() -> None:
    data = data_from_loaders(
        [GOOD, GOOD, (torch.zeros(2, 4), torch.zeros(2))], [GOOD, (torch.zeros(1), torch.zeros(3))]
    )
    with pytest.raises(UserError, match=r"batch 2 of the train split has \[4\] and the first batch \[3\]"):
        list(data.train_epoch(0, 0))
    with pytest.raises(UserError, match="batch 1 of the search split"):
        list(data.search)


def test_an_empty_train_loader_says_so() -> None:
    with pytest.raises(UserError, match="train loader is empty"):
        data_from_loaders(loader(0, shuffle=False))
    with pytest.raises(UserError, match=r"train loader is empty.*drop_last"):
        data_from_loaders(loader(5, drop_last=True), loader(8))
