"""The default agent: a model of the loss, learnt from the trials, and its best candidate."""

from __future__ import annotations

import numpy as np

from autoprune.agents.base import Trial, trial_rng
from autoprune.agents.landscape import best_untried
from autoprune.agents.surrogate import Surrogate
from autoprune.agents.table import Table
from autoprune.agents.warm import WarmAgent
from autoprune.search_spaces.budget import Budget
from autoprune.search_spaces.projection import Space, check_budget
from autoprune.search_spaces.types import Candidate


class AutoAgent(WarmAgent):
    """Models losses by rising curves of each group and by pairs (`Surrogate`), and proposes where they may be lowest.

    After the warm start every proposal is the best candidate within the budget by one draw from the posterior
    (Thompson sampling): where little is known draws differ, and proposals explore; where much is known they agree.
    The candidate is found by exchanges from the best trial so far, priced exactly; if it was tried, it is the best
    exchange around it that was not. A cut trial is known to lose at least what its bound says, which pulls up a draw
    that says less, and nothing else. A failed trial is not learnt, and not proposed again.

    Args:
        table: losses by group and level, from which the model starts. Without one, `Table.stand_in`.

    Source: Thompson 1933, Biometrika 25; in combinatorial spaces, Baptista and Poloczek 2018, "Bayesian Optimization of
    Combinatorial Structures" (BOCS), arXiv:1806.08838. Differs: the model (see there), exchanges within a budget.
    """

    def __init__(self, space: Space, budget: Budget, *, seed: int, table: Table | None = None) -> None:
        super().__init__(space, budget, seed=seed, table=table)
        self._limits = check_budget(space, budget)
        self._surrogate = Surrogate(space, self.table)
        self._bounds: list[tuple[float, Candidate]] = []

    def tell(self, trial: Trial) -> None:
        super().tell(trial)
        if trial.state == "cut" and trial.score is not None:
            self._bounds.append((trial.score, trial.candidate))
        told = self.complete + self._bounds
        if trial.state == "failed" or not told:
            return
        losses = -np.array([score for score, _ in told])
        floors = np.arange(len(told)) >= len(self.complete)
        self._surrogate.learn(np.array([candidate for _, candidate in told]), losses, floors, steps=2)

    def propose(self, number: int) -> Candidate:
        rng = trial_rng(self.seed, number)
        landscape = self._surrogate.draw(rng, scale=float(rng.random()))
        start = max(self.complete, key=lambda done: done[0], default=(0.0, self.warm[0]))[1]
        found = best_untried(self.space, self._limits, landscape, start, self.tried, rng)
        return self.untried(lambda: found, rng)
