"""The part of each training batch that one of several processes takes, from any step of an epoch on.

A batch is the same whatever the number of processes: process `rank` of `world` takes the samples from ``N rank //
world`` to ``N (rank + 1) // world`` of its N. What comes before the first wanted step is not loaded where the data set
can tell what that would have been; of everything else it is read and thrown away.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, NamedTuple, Protocol, runtime_checkable

from autoprune.data.base import Batch, Inputs, TrainBatches, batch_size_of, map_tensors
from autoprune.data.rng import iterate


class Part(NamedTuple):
    """What one process takes of a batch of `total` samples.

    Where a batch has fewer samples than there are processes, some get its first one, which does not count: `own` is 0.
    """

    inputs: Inputs
    targets: Any
    own: int
    total: int


@runtime_checkable
class Divisible(Protocol):
    """`TrainBatches` that can begin at any step and load no more than one process needs."""

    def parts(self, seed: int, epoch: int, start: int = 0, rank: int = 0, world: int = 1) -> Iterator[Part]:
        """Yield the parts of the batches of `epoch(seed, epoch)` from number `start` on."""
        ...


def train_parts(
    train: TrainBatches, seed: int, epoch: int, start: int = 0, rank: int = 0, world: int = 1
) -> Iterator[Part]:
    """Yield what process `rank` of `world` takes of one pass, from batch `start` on: a function of the arguments."""
    if isinstance(train, Divisible):
        return train.parts(seed, epoch, start, rank, world)
    # Its random numbers come from one stream, which skipped batches draw from as trained ones do.
    return cut_parts(iterate(train.epoch(seed, epoch), seed, epoch), start, rank, world)


def cut_parts(batches: Iterable[Batch], start: int, rank: int, world: int) -> Iterator[Part]:
    """Yield the parts of whole batches, the first `start` of which are read for nothing."""
    for inputs, targets in islice(batches, start, None):
        total = batch_size_of(inputs)
        chosen, own = own_samples(total, rank, world)
        mine = range(total)[chosen]
        if len(mine) < total:
            inputs, targets = (map_tensors(part, lambda tensor: tensor[chosen]) for part in (inputs, targets))  # noqa: B023
        yield Part(inputs, targets, own, total)


def own_samples(total: int, rank: int, world: int) -> tuple[slice, int]:
    """Which of `total` samples process `rank` of `world` loads, and how many of them count."""
    start, stop = total * rank // world, total * (rank + 1) // world
    return (slice(start, stop), stop - start) if stop > start else (slice(0, 1), 0)
