"""Turn wishes (one keep ratio per group) into the nearest candidate that keeps every limit of a budget.

Every level of every group has a threshold: the common shift of all wishes at which rounding reaches that level.
`project` raises the shift from below. First for all groups together, up to the largest shift whose candidate fits;
then for each group on its own, in the order of the thresholds, as long as anything fits. Only differences between
wishes matter, since the shift is free. No proposal is rejected, and no limit is missed after rounding.

Rounding: a group gets the level nearest to clip(wish + shift, 0, 1) * num_units, of two equally near the smaller.

Costs rise with kept units, except a predicted latency, which need not. Nothing here trusts that they rise: whatever
is returned was itself found to fit, and no single level up from it fits. A cost that falls somewhere can only make
the shift smaller than the largest possible. The smallest subnet must fit in any case.

Shape letters: G groups, L most levels of a group, T distinct thresholds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from autoprune.search_spaces.budget import Budget
from autoprune.search_spaces.errors import UserError
from autoprune.search_spaces.quantities import quantity_of
from autoprune.search_spaces.types import Candidate, FloatArray, Group, IntArray

_BATCH = 16
"""Candidates per call of a cost: numpy takes little longer for 16 than for one, so bisection cuts by 17, not by 2."""


class Space(Protocol):
    """What projection and agents use of a `SearchSpace`, which has more.

    `level_units` is [G, L], its rows padded with their last level; `cost` takes level indices [n, G] and gives [n].
    """

    @property
    def groups(self) -> tuple[Group, ...]: ...
    @property
    def level_units(self) -> IntArray: ...
    @property
    def num_levels(self) -> IntArray: ...
    @property
    def cost_names(self) -> tuple[str, ...]: ...
    def cost(self, name: str, candidates: IntArray) -> FloatArray: ...
    def project(self, wishes: Sequence[float], budget: Budget) -> Candidate: ...


def project(space: Space, wishes: Sequence[float] | FloatArray, budget: Budget) -> Candidate:
    """Return the candidate nearest to the wishes, up to one common shift, that fits the budget and is tight.

    Tight: no single group can go one level up within the budget.

    Args:
        space: where the candidate lives.
        wishes: keep ratio per group in [0, 1], shape [G], in the order of `space.groups`.
        budget: limits that the candidate will keep.

    Raises:
        UserError: a wish is not in [0, 1], their number is wrong, or `check_budget` fails.
    """
    thresholds = _thresholds(space, _check_wishes(space, wishes))
    limits = check_budget(space, budget)
    levels = _fill(space, _raise_together(space, thresholds, limits), thresholds, limits)
    return tuple(levels.tolist())


def uniform_line(space: Space, budget: Budget) -> IntArray:
    """Return every candidate with one keep ratio for all groups that fits the budget, smallest first, shape [n, G].

    Neither filled nor tight: rounding alone makes the ratios of two groups differ.

    Raises:
        UserError: `check_budget` fails.
    """
    limits = check_budget(space, budget)
    thresholds = _thresholds(space, np.ones(len(space.groups)))
    candidates = _at_shift(thresholds, np.concatenate([[-np.inf], _shifts(thresholds)]))
    return candidates[within(space, candidates, limits)]


def is_feasible(space: Space, candidate: Candidate, budget: Budget) -> bool:
    """Whether the candidate keeps every limit of the budget.

    Raises:
        UserError: the budget limits a cost that the space does not have.
    """
    limits = budget.resolve({cost: dense for cost, (_, dense) in _extremes(space, budget).items()})
    return bool(within(space, np.array([candidate], dtype=np.int64), limits)[0])


def check_budget(space: Space, budget: Budget) -> dict[str, float]:
    """Return the absolute upper limit of every limited cost, once it is sure that a subnet keeps them all.

    Nothing is cached: a cost added or replaced later (`space.add_cost`) counts at once.

    Raises:
        UserError: the budget limits a cost that the space does not have, or the smallest subnet exceeds a limit.
    """
    extremes = _extremes(space, budget)
    limits = budget.resolve({cost: dense for cost, (_, dense) in extremes.items()})
    if any(extremes[cost][0] > limit for cost, limit in limits.items()):
        raise _infeasible(budget, extremes)
    return limits


def _extremes(space: Space, budget: Budget) -> dict[str, tuple[float, float]]:
    """Return what the smallest subnet and the dense model cost, by the name of each limited cost."""
    for cost in budget.costs:
        if cost not in space.cost_names:
            have, step = ", ".join(space.cost_names), quantity_of(cost).missing.format(cost=cost)
            raise UserError(
                f"The budget {budget} limits {cost}, which this space cannot tell, only {have}. {step}".strip()
            )
    candidates = np.stack([np.zeros_like(space.num_levels), space.num_levels - 1])
    costs = {cost: space.cost(cost, candidates) for cost in budget.costs}
    return {cost: (float(smallest), float(dense)) for cost, (smallest, dense) in costs.items()}


def _infeasible(budget: Budget, extremes: Mapping[str, tuple[float, float]]) -> UserError:
    """Return the error that names, for each limit that the smallest subnet exceeds, its cost and a limit that works."""
    parts = []
    for limit in budget.limits:
        smallest, dense = extremes[limit.cost]
        allowed = limit.resolve(dense)
        if smallest > allowed:
            least = limit.quantity.least
            ratio = dense / smallest if least else smallest / dense
            parts.append(
                f"{limit} {'asks for' if least else 'allows'} {limit.show(allowed)}, but the smallest subnet "
                f"{'reaches' if least else 'costs'} {limit.show(smallest)} ({ratio:.3g}x of the dense model): "
                f"use {limit.allowing(smallest, dense)} or {'less' if least else 'more'}"
            )
    return UserError(f"No subnet fits the budget. {'; '.join(parts)}.")


def _check_wishes(space: Space, wishes: Sequence[float] | FloatArray) -> FloatArray:
    ratios = np.asarray(wishes, dtype=np.float64)
    if ratios.shape != (len(space.groups),):
        raise UserError(f"Give one keep ratio per group, {len(space.groups)} in all, but got shape {ratios.shape}.")
    bad = np.flatnonzero(~((ratios >= 0) & (ratios <= 1)))  # NaN compares false: it is bad too
    if bad.size:
        name = space.groups[bad[0]].name
        raise UserError(f"A keep ratio must be in [0, 1], but got {ratios[bad[0]]} for group {name!r}.")
    return ratios


def _thresholds(space: Space, ratios: FloatArray) -> FloatArray:
    """Return the shift above which group g rounds to level l + 1 or higher, [G, L - 1]; inf where there is no level.

    It is where ratio + shift passes the middle between levels l and l + 1. Clipping to [0, 1] moves none of them,
    since every middle lies strictly between 0 and 1.
    """
    units = space.level_units
    middles = (units[:, :-1] + units[:, 1:]) / (2.0 * units[:, -1:])
    missing = np.arange(units.shape[1] - 1) >= space.num_levels[:, None] - 1
    shifts: FloatArray = np.where(missing, np.inf, middles - ratios[:, None])
    return shifts


def _shifts(thresholds: FloatArray) -> FloatArray:
    """Return the distinct finite thresholds, ascending, [T]: between two of them no candidate changes."""
    return np.unique(thresholds[np.isfinite(thresholds)])


def _at_shift(thresholds: FloatArray, shifts: FloatArray) -> IntArray:
    """Return the candidates just above the given shifts, [n, G]."""
    levels: IntArray = np.count_nonzero(thresholds <= shifts[:, None, None], axis=2)
    return levels


def within(space: Space, candidates: IntArray, limits: Mapping[str, float]) -> NDArray[np.bool_]:
    """Return which candidates keep every limit, [n]."""
    fits = np.ones(len(candidates), dtype=np.bool_)
    for cost, limit in limits.items():
        fits &= space.cost(cost, candidates) <= limit
    return fits


def _raise_together(space: Space, thresholds: FloatArray, limits: Mapping[str, float]) -> IntArray:
    """Return the candidate at the largest common shift that fits, [G]; the smallest subnet is known to fit."""
    shifts = np.concatenate([[-np.inf], _shifts(thresholds)])
    low, high = 0, len(shifts)  # low fits, high does not or is the end
    while high - low > 1:
        points = np.unique(np.linspace(low, high, _BATCH + 2).astype(np.int64)[1:-1])
        points = points[points > low]
        fitting = points[within(space, _at_shift(thresholds, shifts[points]), limits)]
        low = int(fitting[-1]) if fitting.size else low
        high = int(min(points[points > low], default=high))
    chosen: IntArray = _at_shift(thresholds, shifts[low : low + 1])[0]
    return chosen


def _fill(space: Space, levels: IntArray, thresholds: FloatArray, limits: Mapping[str, float]) -> IntArray:
    """Raise one group at a time, always the one whose next level has the lowest threshold and still fits.

    Ties go to the first group. Groups whose next level does not fit are left out; of the others the next few raises
    are tried in one call, and as many are taken as fit.
    """
    num_groups = len(levels)
    while True:
        open_groups = np.flatnonzero(levels < space.num_levels - 1)
        single = levels + np.eye(num_groups, dtype=np.int64)[open_groups]
        fitting = open_groups[within(space, single, limits)]
        if not fitting.size:
            return levels
        ahead = np.where(np.arange(thresholds.shape[1]) >= levels[fitting, None], thresholds[fitting], np.inf)
        order = np.argsort(ahead, axis=None, kind="stable")[:_BATCH]
        order = order[np.isfinite(ahead.ravel()[order])]
        raised = fitting[order // thresholds.shape[1]]
        chain = levels + np.cumsum(np.eye(num_groups, dtype=np.int64)[raised], axis=0)
        fits = within(space, chain, limits)
        fits[0] = True  # the same as one of `single`, which fits
        levels = chain[np.flatnonzero(~fits)[0] - 1 if not fits.all() else -1]
