"""A prior over candidates: what each level of each group is expected to cost in quality, added up.

Shape letters: n candidates, G groups, L levels of a group.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from scipy.optimize import isotonic_regression

from autoprune.search_spaces.errors import UserError
from autoprune.search_spaces.projection import Space
from autoprune.search_spaces.types import FloatArray, IntArray


class Table:
    """Losses by group and level; the loss of a candidate is their sum (no group knows of another).

    Args:
        losses: one array [L] per group, in the order of `space.groups`, smallest level first. They never rise with
            the level (keeping more never hurts more), and the last, of the dense level, is 0.

    Raises:
        UserError: a loss is negative or not finite, rises with the level, or is not 0 where the group is dense.
    """

    def __init__(self, losses: Iterable[Sequence[float] | FloatArray]) -> None:
        self.losses: tuple[FloatArray, ...] = tuple(np.array(each, dtype=np.float64) for each in losses)
        for group, each in enumerate(self.losses):
            where = f"the losses of group {group}"
            if each.ndim != 1 or not each.size or not np.isfinite(each).all():
                raise UserError(f"Give one finite loss per level, but got {each.tolist()} as {where}.")
            if (np.diff(each) > 0).any() or each[-1] != 0:
                raise UserError(
                    f"Losses fall with the level, down to 0 where everything is kept, but got {each.tolist()} as "
                    f"{where}. Measured losses: Table.measured(losses)."
                )
        longest = max(map(len, self.losses), default=1)
        rows = [np.append(each, np.zeros(longest - len(each))) for each in self.losses]
        self._padded = np.array(rows).reshape(len(rows), longest)

    @classmethod
    def measured(cls, losses: Iterable[Sequence[float] | FloatArray]) -> Table:
        """Return the monotone table nearest to measured losses (least squares), the dense level 0, none below 0.

        Raises:
            UserError: a loss is not finite.
        """
        fitted = []
        for group, each in enumerate(losses):
            array = np.asarray(each, dtype=np.float64)
            if array.ndim != 1 or not array.size or not np.isfinite(array).all():
                raise UserError(f"Give one finite loss per level, but got {array.tolist()} for group {group}.")
            cut = isotonic_regression(np.maximum(array[:-1], 0), increasing=False).x if len(array) > 1 else array[:0]
            fitted.append(np.append(cut, 0.0))
        return cls(fitted)

    @classmethod
    def stand_in(cls, space: Space) -> Table:
        """Return losses for want of measured ones: share of MACs saved times share of units cut, each group alone.

        That is about w * (1 - keep ratio)^2, with the group's share w of the MACs: what a unit is worth is what it
        computes. The best candidate is then nearly the uniform one. It knows nothing of the network.
        """
        dense = space.num_levels - 1
        losses = []
        for group, num_levels in enumerate(space.num_levels.tolist()):
            candidates = np.repeat(dense[None], num_levels, axis=0)
            candidates[:, group] = np.arange(num_levels)
            macs = space.cost("macs", candidates)
            units = space.level_units[group, :num_levels] / space.level_units[group, num_levels - 1]
            losses.append((1 - macs / macs[-1]) * (1 - units))
        return cls(losses)

    def check(self, space: Space) -> None:
        """Make sure that there is a loss for every level of the space.

        Raises:
            UserError: there is not.
        """
        have, want = [len(each) for each in self.losses], space.num_levels.tolist()
        if have != want:
            raise UserError(f"The table is of another space: it has {have} levels by group, the space has {want}.")

    def predict(self, candidates: IntArray) -> FloatArray:
        """Return the losses of candidates [n, G], shape [n]."""
        losses: FloatArray = self._padded[np.arange(len(self.losses)), candidates].sum(axis=1)
        return losses

    def padded(self) -> FloatArray:
        """Return the losses as one array [G, L], rows padded with 0 behind their last level."""
        return self._padded.copy()


def given(table: Table | None, space: Space) -> Table | None:
    """Return the table that an agent was given, once it is sure that it is one and of this space.

    Raises:
        UserError: it is not.
    """
    if table is None:
        return None
    if not isinstance(table, Table):
        raise UserError(f"The option `table` of an agent takes a `Table`, but got {type(table).__name__} {table!r}.")
    table.check(space)
    return table
