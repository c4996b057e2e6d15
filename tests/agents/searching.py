"""How far agents get on losses with a known optimum."""

from __future__ import annotations

import numpy as np

from autoprune.agents import Trial, make_agent
from autoprune.agents.table import Table
from autoprune.search_spaces.budget import Budget
from tests.fakes import FakeSpace


def mean_best_loss(name: str, space: FakeSpace, budget: Budget, table: Table, *, trials: int = 60) -> float:
    """Return the lowest loss that an agent without a table finds, where the true loss is `table`; mean of 3 seeds."""
    best = []
    for seed in range(3):
        agent = make_agent(name, space, budget, seed=seed)
        losses = []
        for number in range(trials):
            candidate = agent.ask(number)
            losses.append(float(table.predict(np.array([candidate]))[0]))
            agent.tell(Trial(number=number, candidate=candidate, state="complete", score=-losses[-1]))
        best.append(min(losses))
    return sum(best) / len(best)


def hard_table(space: FakeSpace) -> Table:
    """Return a quadratic loss: the units of every second group matter ten times as much."""
    ratios = [np.array(group.levels) / group.num_units for group in space.groups]
    return Table([(1.0 if group % 2 else 0.1) * (1 - each) ** 2 for group, each in enumerate(ratios)])
