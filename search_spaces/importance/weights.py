"""Criteria that read weights only: norms, distances, and random scores as the baseline.

They score the rows of the weights that make a unit (`Group.producers`): filters of a convolution, rows of a linear
layer, columns of an embedding. A unit of several rows is one long row. Where several layers make it (a residual
stream), each layer's scores are scaled to mean 1 and averaged.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from autoprune.search_spaces.importance.base import Batch, Criterion, Loss, mean_scaled, unit_rows
from autoprune.search_spaces.types import FloatArray

if TYPE_CHECKING:
    from autoprune.search_spaces.space import SearchSpace


class RowCriterion(Criterion):
    """Scores rows of weights, one producer at a time."""

    needs: ClassVar[Literal["weights"]] = "weights"

    def scores(self, space: SearchSpace, batches: Iterable[Batch], loss: Loss) -> list[FloatArray]:
        """One score per unit, averaged over producers."""
        return [
            mean_scaled([self.of_rows(rows) for rows in unit_rows(space, index, space.producing_places(index))])
            for index in range(len(space.groups))
        ]

    @abstractmethod
    def of_rows(self, rows: FloatArray) -> FloatArray:
        """Score [U] of rows [U, elements]."""


class L1(RowCriterion):
    """Sum of absolute weights (Li et al. 2017, arXiv:1608.08710, sec. 3.1).

    Differs: the paper ranks one layer; tied layers are averaged after scaling, so that a large one does not rule.
    """

    name = "l1"
    summary = "sum of absolute weights"

    def of_rows(self, rows: FloatArray) -> FloatArray:
        """Sum of |w|."""
        total: FloatArray = np.abs(rows).sum(1)
        return total


class L2(RowCriterion):
    """Euclidean norm of the weights (He et al. 2018, arXiv:1808.06866, eq. 2)."""

    name = "l2"
    summary = "Euclidean norm of the weights"

    def of_rows(self, rows: FloatArray) -> FloatArray:
        """Root of the sum of squares."""
        norms: FloatArray = np.sqrt(np.square(rows).sum(1))
        return norms


class FPGM(RowCriterion):
    """Sum of distances to all other filters of the layer (He et al. 2019, arXiv:1811.00250, sec. 3.3).

    The filter nearest to the geometric median of its layer has the smallest sum: the others can stand in for it.
    """

    name = "fpgm"
    summary = "distance to the other filters (geometric median)"

    def of_rows(self, rows: FloatArray) -> FloatArray:
        """Sum over j of |row i - row j|, from one matrix product; 2 x U x U x 8 bytes of memory."""
        squares = np.square(rows).sum(1)
        sizes = squares[:, None] + squares
        distances = sizes - 2 * (rows @ rows.T)
        distances[distances < 1e-12 * sizes] = 0  # equal rows: what is left of them is rounding
        sums: FloatArray = np.sqrt(distances).sum(1)
        # Equal rows may get sums that differ in their last digits, which must not decide between them.
        return np.round(sums / max(float(sums.mean()), 1e-30), 10)


class Random(Criterion):
    """Random scores, the same for the same group at every call: the baseline that a criterion has to beat.

    Strong in its own right after fine-tuning: Mittal et al. 2018, arXiv:1801.10447.
    """

    name = "random"
    summary = "random: the baseline"
    needs: ClassVar[Literal["weights"]] = "weights"

    def scores(self, space: SearchSpace, batches: Iterable[Batch], loss: Loss) -> list[FloatArray]:
        """Uniform in [0, 1)."""
        return [np.random.default_rng((0, i)).random(group.num_units) for i, group in enumerate(space.groups)]
