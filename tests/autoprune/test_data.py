"""In-memory batches, `Data`, and random numbers that depend on a key only."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from autoprune.data import Augment, Data, Inputs, TensorBatches, batch_size_of, forward, to_device
from autoprune.data.base import split_size
from autoprune.data.rng import generator, iterate, key_seed
from autoprune.data.tensors import carve
from autoprune.search_spaces.errors import UserError


def numbered(count: int = 10, batch_size: int = 4) -> TensorBatches:
    """Sample i is an image full of i, with target i."""
    images = torch.arange(count, dtype=torch.uint8).reshape(-1, 1, 1, 1).repeat(1, 1, 4, 4)
    return TensorBatches(images, torch.arange(count), batch_size=batch_size, mean=[1.0], std=[2.0])


def make_data(count: int = 10, seed: int = 0, name: str = "numbered") -> Data:
    return Data(name, numbered(count), numbered(6), num_classes=10, seed=seed)


def targets_of(batches: object) -> list[int]:
    return [int(target) for _, targets in batches for target in targets]  # type: ignore[attr-defined]


def global_states() -> tuple[list[int], list[int], object]:
    return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()  # type: ignore[index]


def test_plain_pass_is_in_order_normalised_and_repeatable() -> None:
    batches = numbered()
    assert [len(targets) for _, targets in batches] == [4, 4, 2]
    assert len(batches) == 3
    assert batches.num_samples == 10
    for _ in range(2):
        assert targets_of(batches) == list(range(10))
    for inputs, targets in batches:
        assert isinstance(inputs, Tensor)
        assert inputs.dtype == torch.float32
        assert torch.equal(inputs, ((targets.float() - 1) / 2).reshape(-1, 1, 1, 1).expand_as(inputs))
    assert batches.inputs.dtype == torch.uint8  # normalising touched no stored value
    assert int(batches.inputs.max()) == 9


def test_epoch_is_a_permutation_that_depends_on_seed_and_epoch() -> None:
    data = make_data(100)
    order = targets_of(data.train_epoch(3, 1))
    assert sorted(order) == list(range(100))
    assert order == targets_of(data.train_epoch(3, 1))
    others = [targets_of(data.train_epoch(*key)) for key in ((3, 2), (4, 1), (1, 3))]
    assert all(other != order for other in [*others, list(range(100))])


def test_epoch_has_as_many_batches_as_stated_and_none_is_tiny() -> None:
    batches = numbered(count=9, batch_size=4)  # plain: 4, 4, 1
    sizes = [len(targets) for _, targets in batches.epoch(0, 0)]
    assert len(sizes) == len(batches)
    assert sizes == [3, 3, 3]


def test_nothing_draws_from_the_global_generators() -> None:
    before = global_states()
    data = make_data()
    targets_of(data.train_epoch(0, 0))
    data.calibration(5)
    assert data.fingerprint
    list(Augment(shift=1, flip=True)(torch.zeros(2, 1, 4, 4), generator(0)))
    assert global_states() == before


def test_calibration_is_fixed_unaugmented_and_of_the_asked_size() -> None:
    images = torch.rand(20, 1, 4, 4)
    batches = TensorBatches(images, torch.arange(20), batch_size=8, augment=Augment(shift=2, flip=True))
    data = Data("x", batches, batches, seed=5)
    taken = data.calibration(11)
    assert [batch_size_of(part) for part in taken] == [8, 3]
    joined = torch.cat([part for part in taken if isinstance(part, Tensor)])
    assert all(any(torch.equal(image, original) for original in images) for image in joined)
    assert len({image.sum().item() for image in joined}) == 11
    again = torch.cat([part for part in data.calibration(11) if isinstance(part, Tensor)])
    assert torch.equal(joined, again)
    other = Data("x", batches, batches, seed=6).calibration(11)[0]
    assert not torch.equal(joined[:8], other) if isinstance(other, Tensor) else False
    assert sum(batch_size_of(part) for part in data.calibration(1000)) == 20


def test_example_spans_batches() -> None:
    data = make_data(10)
    example = data.example(6)
    assert isinstance(example, Tensor)
    assert example[:, 0, 0, 0].tolist() == [(i - 1) / 2 for i in range(6)]
    assert batch_size_of(data.example()) == 1
    with pytest.raises(UserError, match=r"example of 11 samples .* has 10"):
        data.example(11)


def test_another_batch_size_keeps_the_samples() -> None:
    data = make_data(10).with_batch_size(3)
    assert [len(targets) for _, targets in data.train] == [3, 3, 3, 1]
    assert targets_of(data.train) == list(range(10))
    with pytest.raises(UserError, match="batch size must be at least 1, but got 0"):
        data.with_batch_size(0)


def test_fingerprint_notices_other_data_and_nothing_else() -> None:
    assert make_data().fingerprint == make_data().fingerprint
    prints = [
        make_data(),
        make_data(count=11),
        make_data(seed=1),
        make_data(name="other"),
        Data("numbered", numbered(), numbered(7), num_classes=10),
        Data(
            "numbered", numbered(), TensorBatches(torch.ones(6, 1, 4, 4), torch.arange(6), batch_size=4), num_classes=10
        ),
    ]
    assert len({data.fingerprint for data in prints}) == len(prints)


@pytest.mark.parametrize(
    ("inputs", "targets", "message"),
    [
        (torch.zeros(3, 1), torch.zeros(2), "As many inputs as targets .* got 3 and 2"),
        (torch.zeros(0, 1), torch.zeros(0), "got 0 and 0"),
        (torch.tensor([[1.0], [float("nan")]]), torch.zeros(2), "NaN or infinite"),
    ],
)
def test_tensors_that_cannot_be_used(inputs: Tensor, targets: Tensor, message: str) -> None:
    with pytest.raises(UserError, match=message):
        TensorBatches(inputs, targets)


def test_shift_moves_each_image_by_whole_pixels() -> None:
    images = torch.zeros(200, 2, 9, 9)
    images[:, :, 4, 4] = torch.tensor([1.0, 2.0])
    moved = Augment(shift=2)(images, generator(0))
    assert moved.shape == images.shape
    assert torch.equal(moved.sum((2, 3)), images.sum((2, 3)))  # the dot stays inside, and channels move together
    places = moved[:, 0].flatten(1).argmax(1)
    assert torch.equal(places, moved[:, 1].flatten(1).argmax(1))
    found = {(int(place) // 9 - 4, int(place) % 9 - 4) for place in places}
    assert found == {(y, x) for y in range(-2, 3) for x in range(-2, 3)}


def test_flip_mirrors_about_half_of_the_images() -> None:
    images = torch.rand(200, 1, 3, 3)
    flipped = Augment(flip=True)(images, generator(0))
    same = (flipped == images).flatten(1).all(1)
    mirrored = (flipped == images.flip(3)).flatten(1).all(1)
    assert bool((same ^ mirrored).all())
    assert 60 < int(mirrored.sum()) < 140


def test_grey_images_are_repeated_and_colour_is_left_alone() -> None:
    grey = TensorBatches(torch.rand(2, 1, 4, 4), torch.arange(2), channels=3)
    inputs, _ = next(iter(grey))
    assert isinstance(inputs, Tensor)
    assert inputs.shape == (2, 3, 4, 4)
    assert torch.equal(inputs[:, 0], inputs[:, 2])
    colour, _ = next(iter(TensorBatches(torch.rand(2, 3, 4, 4), torch.arange(2), channels=1)))
    assert isinstance(colour, Tensor)
    assert colour.shape == (2, 3, 4, 4)


@given(counts=st.lists(st.integers(1, 40), min_size=2, max_size=6), share=st.floats(0.05, 0.6))
def test_carving_keeps_the_classes_in_proportion(counts: list[int], share: float) -> None:
    targets = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    if not 0 < round(len(targets) * share) < len(targets):
        return
    rest, carved = carve(targets, share, generator(1))
    assert sorted([*rest.tolist(), *carved.tolist()]) == list(range(len(targets)))
    assert len(carved) == round(len(targets) * share)
    for label, count in enumerate(counts):
        expected = count * len(carved) / len(targets)
        assert abs(int((targets[carved] == label).sum()) - expected) < 1 + 1e-9


def test_carving_depends_on_the_seed() -> None:
    targets = torch.arange(100) % 10
    one, same, other = (carve(targets, 20, generator(seed))[1].tolist() for seed in (0, 0, 1))
    assert one == same
    assert one != other


@pytest.mark.parametrize(
    ("total", "size", "expected"), [(1_000, None, 100), (10**6, None, 10_000), (1_000, 0.25, 250), (1_000, 7, 7)]
)
def test_split_size(total: int, size: float | None, expected: int) -> None:
    assert split_size(total, size) == expected


@pytest.mark.parametrize("size", [0, -1, 1.5, float("nan"), float("inf")])
def test_split_size_refuses_what_is_neither_share_nor_count(size: float) -> None:
    with pytest.raises(UserError, match=r"share in \(0, 1\) or a whole number"):
        split_size(100, size)


@pytest.mark.parametrize(("total", "size"), [(100, 100), (100, 0.001), (1, None), (4, None)])
def test_split_size_leaves_something_on_both_sides(total: int, size: float | None) -> None:
    with pytest.raises(UserError, match="cannot be carved from"):
        split_size(total, size)


def test_keys_do_not_collide() -> None:
    keys = [(0,), (0, 0), (0, 0, 0), (1,), (0, 1), (1, 0), (1, 0, 0), (2**40, 1)]
    assert len({key_seed(*key) for key in keys}) == len(keys)
    with pytest.raises(UserError, match="integer from 0 on, but got -1"):
        key_seed(3, -1)


def test_iterate_makes_global_draws_private_and_repeatable() -> None:
    def draws() -> Iterator[tuple[float, float, float]]:
        for _ in range(3):
            yield float(torch.rand(())), float(np.random.rand()), random.random()

    def interrupted(*key: int) -> list[object]:
        taken: list[object] = []
        for item in iterate(draws(), *key):
            taken.append(item)
            torch.rand(3)  # what happens between two batches must not matter
            random.random()
        return taken

    torch_before = torch.get_rng_state()
    one = list(iterate(draws(), 1, 2))
    assert torch.equal(torch.get_rng_state(), torch_before)
    assert interrupted(1, 2) == one
    assert interrupted(1, 3) != one


class Sum(nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return a + 2 * b


@pytest.mark.parametrize(
    "inputs", [(torch.ones(2), torch.full((2,), 3.0)), {"b": torch.full((2,), 3.0), "a": torch.ones(2)}]
)
def test_models_of_several_inputs(inputs: Inputs) -> None:
    assert forward(Sum(), inputs).tolist() == [7, 7]
    assert batch_size_of(inputs) == 2
    moved = to_device(inputs, "meta")
    assert type(moved) is type(inputs)
    assert all(tensor.is_meta for tensor in (moved.values() if isinstance(moved, dict) else moved))


def test_one_tensor_is_one_argument() -> None:
    assert forward(nn.Identity(), torch.ones(2, 3)).shape == (2, 3)
