"""The samples of a split in another order, always in the same batches."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from autoprune.data.base import Batch, Batches, Inputs, batch_size_of, concatenate, map_tensors, tensors_of
from autoprune.data.tensors import TensorBatches

MAX_BYTES = 2**30
"""A split that is not in memory already is read into it if it takes no more than this."""


class Indexable(Protocol):
    """Samples that can be taken one by one."""

    def take(self, chosen: Tensor) -> Batch:
        """Return the samples of these numbers, int64 [N]."""
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
        return map(self._samples.take, self.chosen())

    def chosen(self) -> list[Tensor]:
        """Sample numbers of each batch."""
        return list(self.order.split(self._batch_size))


class Held:
    """A split in memory."""

    def __init__(self, inputs: Inputs, targets: Any) -> None:
        self._inputs, self._targets = inputs, targets

    def take(self, chosen: Tensor) -> Batch:
        """Return the samples of these numbers, int64 [N]."""
        inputs, targets = (map_tensors(part, lambda t: t[chosen]) for part in (self._inputs, self._targets))
        return inputs, targets


def hold(split: Batches, max_bytes: int = MAX_BYTES) -> tuple[Indexable, int] | None:
    """Return a split's samples in memory and its batch size; None where they are too many, or of several shapes."""
    if isinstance(split, TensorBatches):
        return split, split.batch_size
    inputs: list[Inputs] = []
    targets: list[Any] = []
    for batch in split:
        if not inputs:
            size = batch_size_of(batch[0])
            tensors = [*tensors_of(batch[0]), *tensors_of(batch[1])]
            if sum(t.numel() * t.element_size() for t in tensors) / size * split.num_samples > max_bytes:
                return None
        inputs.append(batch[0])
        targets.append(batch[1])
    try:
        return Held(concatenate(inputs), concatenate(targets)), size
    except RuntimeError:  # targets of several shapes
        return None
