"""From one candidate to the next: down from the dense one, up from the smallest, exchanges, as a table judges them.

An exchange takes levels from one group and gives levels to another. Shape letters: n candidates, G groups, L levels.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from autoprune.agents.table import Table
from autoprune.search_spaces.projection import Space, within
from autoprune.search_spaces.types import IntArray

_STEPS = 4
"""Most levels that one exchange moves a group."""
_BATCH = 256
"""Candidates priced at once, in the order of their losses."""


def descend(space: Space, limits: Mapping[str, float], table: Table, levels: IntArray | None = None) -> IntArray:
    """Return the candidate [G] to which greedy steps lead from `levels`, else the dense one; the smallest one fits.

    A step takes one group down to its next level that saves anything: the group that loses least per cost saved. Of
    several limits, saved is counted where too much is spent, each as a share of its limit.
    """
    levels = space.num_levels - 1 if levels is None else levels
    losses = table.padded()
    groups = np.arange(len(levels))
    while not within(space, levels[None], limits)[0]:
        below = np.maximum(levels - 1, 0)
        lower = np.where(np.eye(len(levels), dtype=np.bool_), below, levels)
        saved = np.zeros(len(levels))
        for cost, limit in limits.items():
            values = space.cost(cost, np.concatenate([levels[None], lower]))
            if values[0] > limit:
                saved += (values[0] - values[1:]) / limit
        lost = losses[groups, below] - losses[groups, levels]
        price = np.where(levels > 0, lost / np.maximum(saved, 1e-12), np.inf)
        levels = lower[int(np.argmin(price))]
    return levels


def ascend(space: Space, limits: Mapping[str, float], table: Table, levels: IntArray | None = None) -> IntArray:
    """Return the candidate [G] to which greedy steps lead from `levels` [G], or from the smallest; it is known to fit.

    A step takes one group up a level, where that fits: the group that gains most per cost spent. Of several limits,
    spent is added up, each as a share of its limit.
    """
    levels = np.zeros_like(space.num_levels) if levels is None else levels
    losses = table.padded()
    groups = np.arange(len(levels))
    while True:
        above = np.minimum(levels + 1, space.num_levels - 1)
        higher = np.where(np.eye(len(levels), dtype=np.bool_), above, levels)
        open_ = (levels < space.num_levels - 1) & within(space, higher, limits)
        if not open_.any():
            return levels
        spent = np.zeros(len(levels))
        for cost, limit in limits.items():
            values = space.cost(cost, np.concatenate([levels[None], higher]))
            spent += np.maximum(values[1:] - values[0], 0) / limit
        gained = losses[groups, levels] - losses[groups, above]
        worth = np.where(open_, gained / np.maximum(spent, 1e-12), -np.inf)
        levels = higher[int(np.argmax(worth))]


def start(space: Space, limits: Mapping[str, float], table: Table) -> IntArray:
    """Return the better of the two candidates [G] that exchanges make of the way down and of the way up."""
    down, up = (improve(space, limits, table, way(space, limits, table)) for way in (descend, ascend))
    return down if table.predict(down[None])[0] <= table.predict(up[None])[0] else up


def exchanges(space: Space, levels: IntArray, most: int = _STEPS) -> IntArray:
    """Return all candidates [n, G] that one exchange of up to `most` levels, or one such single step, leads to."""
    num_groups = len(levels)
    unit = np.eye(num_groups, dtype=np.int64)
    steps = np.arange(1, most + 1)
    moves = unit[:, None] * steps[:, None]  # [G, most, G]
    up = moves[(levels[:, None] + steps < space.num_levels[:, None])]
    down = moves[levels[:, None] >= steps]
    pairs = (up[:, None] - down[None]).reshape(-1, num_groups)
    pairs = pairs[(pairs > 0).any(axis=1) & (pairs < 0).any(axis=1)]  # of one group alone is a single step
    others: IntArray = levels + np.concatenate([up, -down, pairs])
    return others


def improve(space: Space, limits: Mapping[str, float], table: Table, levels: IntArray) -> IntArray:
    """Return where the best exchanges lead, one after the other, until none lowers the loss of the table."""
    while True:
        others = exchanges(space, levels)
        losses = table.predict(others)
        better = np.flatnonzero(losses < table.predict(levels[None])[0] * (1 - 1e-12))
        first = first_fit(space, limits, others[better[np.argsort(losses[better], kind="stable")]])
        if first is None:
            return levels
        levels = first


def first_fit(space: Space, limits: Mapping[str, float], candidates: IntArray) -> IntArray | None:
    """Return the first of the candidates [n, G] that keeps the limits, None if there is none."""
    for start in range(0, len(candidates), _BATCH):
        fitting = np.flatnonzero(within(space, candidates[start : start + _BATCH], limits))
        if fitting.size:
            found: IntArray = candidates[start + fitting[0]]
            return found
    return None
