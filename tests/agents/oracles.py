"""What small spaces tell by enumeration, and tables to try agents with."""

from __future__ import annotations

import itertools

import numpy as np

from autoprune.agents.table import Table
from autoprune.search_spaces.budget import Budget
from autoprune.search_spaces.projection import check_budget, within
from autoprune.search_spaces.types import IntArray
from tests.fakes import FakeSpace


def feasible(space: FakeSpace, budget: Budget) -> IntArray:
    """Return every candidate within the budget, [n, G]."""
    every = np.array(list(itertools.product(*(range(n) for n in space.num_levels.tolist()))), dtype=np.int64)
    return every[within(space, every, check_budget(space, budget))]


def random_table(space: FakeSpace, seed: int, *, plateaus: bool = False) -> Table:
    """Return losses that fall with the level, of every scale and shape; with plateaus some levels lose the same."""
    rng = np.random.default_rng(seed)
    losses = []
    for num_levels in space.num_levels.tolist():
        steps = np.exp(rng.normal()) * rng.random(num_levels - 1) ** 3
        if plateaus:
            steps *= rng.random(num_levels - 1) < 0.6
        losses.append(np.append(np.cumsum(steps[::-1])[::-1], 0.0))
    return Table(losses)
