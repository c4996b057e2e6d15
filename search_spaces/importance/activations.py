"""Criteria that read activations: how often a unit is zero, how large it is, how many dimensions its maps have.

Activations are taken where units are read (`reading`): behind norm and nonlinearity, as APoZ and HRank measure them.
Each place gives one score per unit, the mean over samples and positions; several places (a residual stream, a dense
block) are scaled to mean 1 and averaged, as weights are. Only sums per unit are kept, in float64.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor

from autoprune.search_spaces.errors import UserError
from autoprune.search_spaces.importance.base import (
    Batch,
    Criterion,
    Loss,
    arguments,
    instead,
    mean_scaled,
    on_device,
)
from autoprune.search_spaces.importance.reading import read
from autoprune.search_spaces.runs import without_own_storage
from autoprune.search_spaces.types import FloatArray

if TYPE_CHECKING:
    from autoprune.search_spaces.space import SearchSpace


class ActivationCriterion(Criterion):
    """Averages a measure of activations over samples; subclasses say which."""

    needs: ClassVar[Literal["activations"]] = "activations"
    silent: ClassVar[str]

    def scores(self, space: SearchSpace, batches: Iterable[Batch], loss: Loss) -> list[FloatArray]:
        """One forward pass a batch. Groups that the measure does not apply to are ranked by `l2`, with a warning."""
        model = without_own_storage(space.model).eval()
        totals: dict[tuple[int, str], tuple[FloatArray, int]] = {}
        empty = True
        for inputs, _ in batches:
            empty = False
            args, kwargs = arguments(on_device(inputs, model))
            for place, (sums, count) in read(space, model, args, kwargs, self.measure).measured.items():
                before = totals.get(place, (0.0, 0))
                totals[place] = before[0] + sums, before[1] + count
        if empty:
            raise UserError(f"The importance {self.name!r} needs at least one batch of data, but got none.")
        found: list[FloatArray | None] = []
        for index in range(len(space.groups)):
            places = [sums / count for (group, _), (sums, count) in totals.items() if group == index]
            found.append(mean_scaled(places) if places and self.tells_apart(places) else None)
        return instead(space, self.name, found, f"{self.silent}, or they do not run in evaluation mode")

    @abstractmethod
    def measure(self, x: Tensor, positions: int) -> tuple[Tensor, int] | None:
        """Sums over all dimensions of `x` behind the first `positions`, see `reading.Measure`."""

    def tells_apart(self, places: list[FloatArray]) -> bool:
        """Do these means say anything about the units?"""
        return True


class APoZ(ActivationCriterion):
    """Share of activations that are not zero (Hu et al. 2016, arXiv:1607.03250, sec. 3.1): 1 - APoZ.

    Differs: the paper prunes by a threshold, and fine-tunes in between.
    """

    name = "apoz"
    summary = "share of activations that are not zero"
    silent = "hardly any activation is zero where they are read, so there is no ReLU"

    def measure(self, x: Tensor, positions: int) -> tuple[Tensor, int]:
        """Count of non-zeros."""
        nonzero = x != 0
        return _total(nonzero, positions), nonzero.shape[positions:].numel()

    def tells_apart(self, places: list[FloatArray]) -> bool:
        """One in a hundred is zero somewhere: fewer are the underflow of a smooth nonlinearity."""
        return any(share.mean() <= 0.99 for share in places)


class MeanActivation(ActivationCriterion):
    """Mean absolute activation (Molchanov et al. 2017, arXiv:1611.06440, sec. 2.2).

    Differs: absolute values, since not every activation is that of a ReLU.
    """

    name = "mean_activation"
    summary = "mean absolute activation"
    silent = "they are read by no op"

    def measure(self, x: Tensor, positions: int) -> tuple[Tensor, int]:
        """Sum of |a|."""
        return _total(x.abs(), positions), x.shape[positions:].numel()


class HRank(ActivationCriterion):
    """Mean rank of a unit's feature maps (Lin et al. 2020, arXiv:2002.10179, sec. 3).

    A map is the matrix over the last two dimensions without units; before them there must be one for samples. The
    rank is `torch.linalg.matrix_rank` at its default tolerance. A unit of several channels has the mean of their ranks.

    Differs: measured where units are read, so a residual stream is ranked by its sums.
    """

    name = "hrank"
    summary = "rank of the feature maps"
    silent = "they have no feature maps (height x width) where they are read"

    def measure(self, x: Tensor, positions: int) -> tuple[Tensor, int] | None:
        """Sum of ranks over samples; singular values in float32."""
        if x.dim() - positions < 3 or min(x.shape[-2:]) == 1:
            return None
        maps = x.to(torch.promote_types(x.dtype, torch.float32))
        ranks = torch.linalg.matrix_rank(maps)
        return _total(ranks, positions), ranks.shape[positions:].numel()


def _total(x: Tensor, positions: int) -> Tensor:
    """Sum over all dimensions behind the first `positions`, in float64."""
    dims = tuple(range(positions, x.dim()))
    return x.sum(dims, dtype=torch.float64) if dims else x.double()
