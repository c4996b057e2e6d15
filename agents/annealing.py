"""Simulated annealing on the scores of trials."""

from __future__ import annotations

import math

import numpy as np

from autoprune.agents.base import Trial, trial_rng
from autoprune.agents.table import Table
from autoprune.agents.warm import WarmAgent
from autoprune.search_spaces.budget import Budget
from autoprune.search_spaces.errors import UserError
from autoprune.search_spaces.projection import Space
from autoprune.search_spaces.types import Candidate


class AnnealingAgent(WarmAgent):
    """Proposes an exchange around one candidate, and moves to it if it is better, or by chance if it is not.

    A complete trial that scores lower by d is moved to with probability exp(-d / T). T begins with the spread of
    scores, as the median distance from one complete trial to the next, and falls by the factor `decay` with every
    one; so do the steps, down to a tenth. A cut or failed trial is never moved to.

    Args:
        table: losses by group and level; it gives the second candidate of the warm start.
        decay: factor of the temperature per complete trial, in (0, 1].

    Source: Kirkpatrick, Gelatt and Vecchi 1983, "Optimization by Simulated Annealing", Science 220. Differs: the
    scale of T is learnt, and neighbours are exchanges projected onto the budget.
    """

    def __init__(
        self, space: Space, budget: Budget, *, seed: int, table: Table | None = None, decay: float = 0.97
    ) -> None:
        if not 0 < decay <= 1:
            raise UserError(f"`decay` of agent 'annealing' must be above 0 and up to 1, but got {decay!r}.")
        super().__init__(space, budget, seed=seed, table=table)
        self._decay = decay
        self._at: tuple[float, Candidate] | None = None
        self._distances: list[float] = []

    def propose(self, number: int) -> Candidate:
        rng = trial_rng(self.seed, number)
        at = self.warm[0] if self._at is None else self._at[1]
        scale = max(0.05, 0.5 * self._decay ** len(self.complete))
        return self.untried(lambda: self.exchanged(at, rng, scale), rng)

    def tell(self, trial: Trial) -> None:
        super().tell(trial)
        if trial.state != "complete" or trial.score is None:
            return
        if self._at is None:
            self._at = trial.score, trial.candidate
            return
        worse = self._at[0] - trial.score
        self._distances.append(abs(worse))
        temperature = float(np.median(self._distances)) * self._decay ** len(self.complete)
        # apart from the draws of `propose`, of which nothing is known here
        chance = float(np.random.default_rng(np.random.SeedSequence((self.seed, trial.number, 1))).random())
        if worse <= 0 or (temperature > 0 and chance < math.exp(-worse / temperature)):
            self._at = trial.score, trial.candidate
