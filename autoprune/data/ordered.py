"""The samples of a split in another order, always in the same batches."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from autoprune.data.base import Batch, Batches, Inputs, batch_size_of, concatenate, map_tensors, tensors_of
from autoprune.data.loaders import LoaderBatches
from autoprune.data.tensors import TensorBatches

MAX_BYTES = 2**29
"""A split that a loader gives is kept in memory if it takes no more than this."""


class Indexable(Protocol):
    """Samples that can be read in any order."""

    def in_order(self, batches: Sequence[Tensor]) -> Iterator[Batch]:
        """Yield a batch for each array of sample numbers, int64 [N]."""
        ...


class OrderedBatches:
    """Batches of `samples` in the order of `order`, a permutation of their numbers.

    Attributes:
        order: int64 [samples].
    """

    def __init__(self, samples: Indexable, order: Sequence[int], batch_size: int) -> None:
        self._samples, self._batch_size = samples, batch_size
        self.order = torch.tensor(list(order), dtype=torch.int64)

    @property
    def num_samples(self) -> int:
        """Samples in one pass."""
        return len(self.order)

    def __len__(self) -> int:
        return math.ceil(self.num_samples / self._batch_size)

    def __iter__(self) -> Iterator[Batch]:
        return self._samples.in_order(self.chosen())

    def chosen(self) -> list[Tensor]:
        """Sample numbers of each batch."""
        return list(self.order.split(self._batch_size))


class Held:
    """A split in memory."""

    def __init__(self, inputs: Inputs, targets: Any) -> None:
        self._inputs, self._targets = inputs, targets

    def in_order(self, batches: Sequence[Tensor]) -> Iterator[Batch]:
        """Yield a batch for each array of sample numbers, int64 [N]."""
        return map(self._take, batches)

    def _take(self, chosen: Tensor) -> Batch:
        inputs, targets = (map_tensors(part, lambda t: t[chosen]) for part in (self._inputs, self._targets))
        return inputs, targets


def hold(split: Batches, max_bytes: int = MAX_BYTES) -> tuple[Indexable, int] | None:
    """Return a split whose samples can be read in any order, and its batch size; None where they cannot.

    They can where they are in memory, may be kept there, or lie in an indexable data set without random transforms.
    """
    if isinstance(split, TensorBatches):
        return split, split.batch_size
    inputs: list[Inputs] = []
    targets: list[Any] = []
    for batch in split:
        if not inputs:
            size = batch_size_of(batch[0])
            tensors = [*tensors_of(batch[0]), *tensors_of(batch[1])]
            if sum(t.numel() * t.element_size() for t in tensors) / size * split.num_samples > max_bytes:
                return _from_storage(split, batch, size)
        inputs.append(batch[0])
        targets.append(batch[1])
    try:
        return Held(concatenate(inputs), concatenate(targets)), size
    except RuntimeError:  # targets of several shapes
        return None


def _from_storage(split: Batches, first: Batch, size: int) -> tuple[Indexable, int] | None:
    """The split itself, if its first batch, read backwards, gives the same samples: transforms may draw numbers."""
    if not (isinstance(split, LoaderBatches) and split.is_indexable):
        return None
    backwards = next(split.in_order([torch.arange(size).flip(0)]))
    for part, same in zip(first, backwards, strict=True):
        pairs = zip(tensors_of(part), tensors_of(same), strict=True)
        if not all(torch.equal(one, other.flip(0)) for one, other in pairs):
            return None
    return split, size
