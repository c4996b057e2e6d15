"""Adaptation of a covariance matrix over the keep ratios, by the package cmaes."""

from __future__ import annotations

import cmaes
import numpy as np

from autoprune.agents.base import Trial, check_count, trial_rng
from autoprune.agents.table import Table
from autoprune.agents.warm import WarmAgent
from autoprune.search_spaces.budget import Budget
from autoprune.search_spaces.errors import UserError
from autoprune.search_spaces.projection import Space
from autoprune.search_spaces.types import Candidate


class CMAESAgent(WarmAgent):
    """Draws wishes from a normal distribution, and moves and shapes it towards the better half of each generation.

    It begins around the best trial of the warm start, `sigma` wide in every keep ratio. A generation is `population`
    trials in the order in which they were told, with the ratios that were executed. Only their order by score counts:
    a cut trial stands below the complete ones, by its bound among its like; a failed one is only not tried again.

    Args:
        table: losses by group and level; it gives the second candidate of the warm start.
        sigma: first standard deviation of a keep ratio, in (0, 1].
        population: trials in a generation, at least 4.

    Source: Hansen 2016, "The CMA Evolution Strategy: A Tutorial", arXiv:1604.00772; implementation: `cmaes.CMA`.
    Differs: wishes are projected and the executed ratios learnt, as Hansen 2011, "Injecting external solutions into
    CMA-ES", arXiv:1110.4181, allows, without its limit on their length; no candidate twice. Not by way of
    `optuna.samplers.CmaEsSampler`, which learns only from trials that it proposed itself in the same storage.
    """

    def __init__(
        self,
        space: Space,
        budget: Budget,
        *,
        seed: int,
        table: Table | None = None,
        sigma: float = 0.1,
        population: int = 8,
    ) -> None:
        if not 0 < sigma <= 1:
            raise UserError(f"`sigma` of agent 'cmaes' must be above 0 and up to 1, but got {sigma!r}.")
        check_count("cmaes", "population", population, least=4)
        super().__init__(space, budget, seed=seed, table=table)
        self._sigma = sigma
        self._population = population
        self._normal = self._around(self.warm[0])
        self._generation: list[Trial] = []

    def tell(self, trial: Trial) -> None:
        super().tell(trial)
        if len(self.trials) <= len(self.warm):
            self._normal = self._around((self.best(1) or self.warm)[0])
        elif trial.state != "failed":
            self._generation.append(trial)
        if len(self._generation) == self._population:
            self._generation.sort(key=_badness)
            # cmaes minimises; places, not scores, which may be of any size, and of a cut trial unknown
            self._normal.tell([(self.executed(each.candidate), place) for place, each in enumerate(self._generation)])
            self._generation = []

    def propose(self, number: int) -> Candidate:
        rng = trial_rng(self.seed, number)
        self._normal.reseed_rng(int(rng.integers(2**32)))
        return self.untried(lambda: self.project(np.clip(self._normal.ask(), 0, 1)), rng)

    def _around(self, candidate: Candidate) -> cmaes.CMA:
        return cmaes.CMA(mean=self.executed(candidate), sigma=self._sigma, population_size=self._population, seed=0)


def _badness(trial: Trial) -> tuple[bool, float]:
    """Return what trials of a generation are sorted by, the best first."""
    return trial.state == "cut", np.inf if trial.score is None else -trial.score
