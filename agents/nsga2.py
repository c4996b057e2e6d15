"""NSGA-II over the keep ratios, by Optuna."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from optuna.samplers import BaseSampler, NSGAIISampler

from autoprune.agents.base import Trial, check_count, trial_rng
from autoprune.agents.samplers import SamplerAgent
from autoprune.agents.table import Table
from autoprune.search_spaces.budget import Budget
from autoprune.search_spaces.projection import Space
from autoprune.search_spaces.types import Candidate


class NSGA2Agent(SamplerAgent):
    """Breeds generations: parents are the best of all before, by domination and crowding; a tournament mates two.

    A generation is `population` complete trials, in the order in which they were told; the first one is the warm start
    and random candidates. A child takes each coordinate from one of two parents, in a tenth of the cases all from one,
    and on average one coordinate is drawn anew. Cut and failed trials are only not tried again.

    Args:
        table: losses by group and level; its best candidate is then the second proposal.
        costs: to be minimised beside the score. Without, domination is the order of the scores.
        population: complete trials in a generation, and parents of the next, at least 2.

    Source: Deb, Pratap, Agarwal and Meyarivan 2002, "A fast and elitist multiobjective genetic algorithm: NSGA-II",
    IEEE Trans. Evolutionary Computation 6; implementation: `optuna.samplers.NSGAIISampler`. Differs: wishes are
    projected and the executed ratios learnt; warm start; candidates already tried are drawn again.
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
        check_count("nsga2", "population", population, least=2)
        super().__init__(space, budget, seed=seed, table=table, costs=costs)
        self._population = population

    def tell(self, trial: Trial) -> None:
        super().tell(trial)
        if trial.state == "complete" and len(self.complete) % self._population == 0:
            # Optuna selects the parents of a generation when it is first asked for a child, and gives them in another
            # order from then on. Asked here, they are in one order whenever a study is resumed.
            next(self.draw(np.random.default_rng(0)))

    def propose(self, number: int) -> Candidate:
        rng = trial_rng(self.seed, number)
        if len(self.complete) < self._population:
            return self.untried(lambda: self.project(rng.random(self.num_wishes)), rng)
        draws = self.draw(rng)
        return self.untried(lambda: self.project(next(draws)), rng)

    def attributes(self, trial: Trial) -> dict[str, int]:
        # the trial itself is counted already
        generation = (len(self.complete) - 1) // self._population
        return {NSGAIISampler._get_generation_key(): generation} if trial.state == "complete" else {}

    def sampler(self, seed: int) -> BaseSampler:
        return NSGAIISampler(seed=seed, population_size=self._population)
