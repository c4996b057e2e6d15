"""Data sets that fit into memory: one tensor, batches are slices of it or one gather.

Images stay uint8 as they were stored (a quarter of float32) and become float32 a batch at a time; that costs less
than a hundredth of a forward pass. No sample is touched on its own.

Shape letters: N samples, C channels, H height, W width.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from autoprune.data.base import Batch, split_size
from autoprune.data.parts import Part, own_samples
from autoprune.data.rng import generator
from autoprune.search_spaces.errors import UserError


@dataclass(frozen=True, slots=True, kw_only=True)
class Augment:
    """What training images go through: shifts by up to `shift` pixels (zeros come in) and mirroring left-right."""

    shift: int = 0
    flip: bool = False

    def __call__(self, images: Tensor, rng: torch.Generator, *, first: int = 0, total: int | None = None) -> Tensor:
        """Return [N, C, H, W] images, each moved and mirrored on its own.

        Args:
            images: those from number `first` on of a batch of `total`, by default all: each sample goes through the
                same, whichever others are given with it.
            rng: what is drawn, for the whole batch.
        """
        N, _, H, W = images.shape
        total, own = N if total is None else total, slice(first, first + N)
        if self.shift:
            padded = F.pad(images, [self.shift] * 4)
            y, x = torch.randint(2 * self.shift + 1, (2, total), generator=rng)[:, own]
            # Every window as a view [N, C, 2 shift + 1, 2 shift + 1, H, W], of which one a sample is copied.
            images = padded.unfold(2, H, 1).unfold(3, W, 1)[torch.arange(N), :, y, x]
        if self.flip:
            mirror = torch.rand(total, generator=rng)[own] < 0.5
            images = torch.where(mirror[:, None, None, None], images.flip(3), images)
        return images


class TensorBatches:
    """Batches of samples that lie in memory.

    Args:
        inputs: [N, ...], any dtype; [N, C, H, W] where `augment` or `channels` is given.
        targets: [N, ...].
        batch_size: samples a batch; the last of a plain pass may have fewer.
        mean, std: per channel, in the units of `inputs`; given, batches are float32 `(inputs - mean) / std`.
        augment: what `epoch` does to the images; plain iteration and `draw` leave them alone.
        channels: repeat greyscale images to this many channels.

    Raises:
        UserError: no samples, different numbers of inputs and targets, or inputs that are not finite.
    """

    is_sized = True

    def __init__(
        self,
        inputs: Tensor,
        targets: Tensor,
        *,
        batch_size: int = 128,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        augment: Augment | None = None,
        channels: int | None = None,
    ) -> None:
        if len(inputs) != len(targets) or not len(inputs):
            raise UserError(f"As many inputs as targets are needed, but got {len(inputs):,} and {len(targets):,}.")
        if inputs.is_floating_point() and not bool(inputs.isfinite().all()):
            raise UserError("The inputs hold NaN or infinite values.")
        self.inputs, self.targets = inputs, targets
        self.batch_size = _checked_batch_size(batch_size)
        self._mean = None if mean is None else torch.tensor(mean).reshape(-1, 1, 1)
        self._std = None if std is None else torch.tensor(std).reshape(-1, 1, 1)
        self._augment = augment
        self._channels = channels

    @property
    def num_samples(self) -> int:
        """Samples in one pass."""
        return len(self.inputs)

    def __len__(self) -> int:
        return math.ceil(self.num_samples / self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        for start in range(0, self.num_samples, self.batch_size):
            chosen = slice(start, start + self.batch_size)
            yield self._ready(self.inputs[chosen]), self.targets[chosen]

    def epoch(self, seed: int, epoch: int) -> Iterator[Batch]:
        """Yield one shuffled, augmented pass: a function of (seed, epoch).

        Batch sizes differ by one at most, so that no batch is too small for BatchNorm.
        """
        return ((part.inputs, part.targets) for part in self.parts(seed, epoch))

    def parts(self, seed: int, epoch: int, start: int = 0, rank: int = 0, world: int = 1) -> Iterator[Part]:
        """Yield what process `rank` of `world` takes of the batches of `epoch`, from number `start` on."""
        batches = torch.randperm(self.num_samples, generator=generator(seed, epoch)).tensor_split(len(self))
        for index in range(start, len(batches)):
            total = len(batches[index])
            own, count = own_samples(total, rank, world)
            chosen = batches[index][own]
            inputs = self.inputs.index_select(0, chosen)
            if self._augment is not None:
                rng = generator(seed, epoch, index)  # of its own for each batch: those before need not be drawn
                inputs = self._augment(inputs, rng, first=own.start, total=total)
            yield Part(self._ready(inputs), self.targets.index_select(0, chosen), count, total)

    def draw(self, num_samples: int, seed: int) -> Iterator[Batch]:
        """Yield the first `num_samples` (or all) of a permutation seeded by `seed`, un-augmented, in batches."""
        chosen = torch.randperm(self.num_samples, generator=generator(seed))[:num_samples]
        for part in chosen.split(self.batch_size) if num_samples > 0 else ():
            yield self._take(part)

    def in_order(self, batches: Sequence[Tensor]) -> Iterator[Batch]:
        """Yield an un-augmented batch for each array of sample numbers, int64 [N]."""
        return map(self._take, batches)

    def _take(self, chosen: Tensor) -> Batch:
        return self._ready(self.inputs.index_select(0, chosen)), self.targets.index_select(0, chosen)

    def with_batch_size(self, batch_size: int) -> TensorBatches:
        """Return the same samples in batches of another size."""
        other = copy.copy(self)
        other.batch_size = _checked_batch_size(batch_size)
        return other

    def _ready(self, inputs: Tensor) -> Tensor:
        if self._mean is not None and self._std is not None:
            inputs = inputs.float().sub(self._mean).div_(self._std)
        if self._channels is not None and inputs.shape[1] == 1 != self._channels:
            inputs = inputs.repeat(1, self._channels, 1, 1)
        return inputs


def carve(targets: Tensor, size: float | None, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Split samples in two parts with the same share of every class, as nearly as numbers allow.

    Args:
        targets: class indices [N].
        size: of the second part, as in `split_size`.
        rng: what is drawn.

    Returns:
        Ascending sample indices of the rest and of the carved part.
    """
    wanted = split_size(len(targets), size)
    shuffled = torch.randperm(len(targets), generator=rng)
    # Samples in random order within their class: every (N / wanted)-th is a stratified sample.
    by_class = shuffled[targets[shuffled].argsort(stable=True)]
    positions = (torch.arange(wanted, dtype=torch.float64) + 0.5).mul_(len(targets) / wanted).long()
    carved = torch.zeros(len(targets), dtype=torch.bool)
    carved[by_class[positions]] = True
    return (~carved).nonzero().flatten(), carved.nonzero().flatten()


def _checked_batch_size(batch_size: int) -> int:
    if batch_size < 1:
        raise UserError(f"The batch size must be at least 1, but got {batch_size}.")
    return batch_size
