"""Evolution: level switches and crossover among the best trials."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from autoprune.agents.base import check_count, trial_rng
from autoprune.agents.table import Table
from autoprune.agents.warm import WarmAgent
from autoprune.search_spaces.budget import Budget
from autoprune.search_spaces.projection import Space
from autoprune.search_spaces.types import Candidate


class EvolutionAgent(WarmAgent):
    """Breeds a candidate from the `population` best complete trials: crossover half the time, then level switches.

    A parent is the better of two drawn. Crossover takes each group's ratio from one of two parents. A level switch
    raises one group and lowers another, the rest is shifted to meet the budget; there is one switch, or two or three
    with falling chances. While fewer than two trials are complete, the uniform candidate is the parent. Cut and failed
    trials are only not tried again.

    Args:
        table: losses by group and level; it gives the second candidate of the warm start.
        costs: to be minimised beside the score; the best trials are then those that nobody dominates, the least
            crowded first, and a switch or a crossover may change what is spent.
        population: how many of the best trials breed, at least 2.

    Source: Sieberling et al. 2024, "EvoPress", arXiv:2410.14649, sec. 3 (level switch; the number of switches is the
    least of two draws); Liu et al. 2019, "MetaPruning", arXiv:1903.10258, sec. 3.2 (crossover among the best).
    Differs: no generations, every trial counts at once; candidates are projected, not rejected.
    """

    def __init__(
        self,
        space: Space,
        budget: Budget,
        *,
        seed: int,
        table: Table | None = None,
        costs: Sequence[str] = (),
        population: int = 10,
    ) -> None:
        check_count("evolution", "population", population, least=2)
        super().__init__(space, budget, seed=seed, table=table, costs=costs)
        self._population = population

    def propose(self, number: int) -> Candidate:
        rng = trial_rng(self.seed, number)
        parents = self.best(self._population) or self.warm[:1]
        return self.untried(lambda: self._breed(parents, rng), rng)

    def _breed(self, parents: list[Candidate], rng: np.random.Generator) -> Candidate:
        first, second = (parents[int(rng.integers(len(parents), size=2).min())] for _ in range(2))
        child = first
        if rng.random() < 0.5 and first != second:
            mask = rng.random(self.num_wishes) < 0.5
            child = self.project(np.where(mask, self.executed(first), self.executed(second)))
        for _ in range(int(rng.integers(1, 4, size=2).min())):
            child = self.exchanged(child, rng)
        return child
