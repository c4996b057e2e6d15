"""The default agent: a model of the loss, learnt from the trials, and its best candidate."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from autoprune.agents.base import Trial, trial_rng
from autoprune.agents.landscape import best_untried
from autoprune.agents.surrogate import Surrogate
from autoprune.agents.table import Table
from autoprune.agents.warm import WarmAgent
from autoprune.search_spaces.budget import Budget
from autoprune.search_spaces.projection import Space, check_budget
from autoprune.search_spaces.types import Candidate, FloatArray

_EARLY = 0.25
"""What a cut trial is taken to lose: its loss when it was cut, divided by the share evaluated to this power."""


class AutoAgent(WarmAgent):
    """Models losses by rising curves of each group and by pairs (`Surrogate`), and proposes where they may be lowest.

    After the warm start every proposal is the best candidate within the budget by one draw from the posterior
    (Thompson sampling), whose width is drawn as well: from the mode of the posterior to all of it. The candidate is
    found by exchanges from the best trial so far; if it was tried, it is the best exchange around it that was not.

    A cut trial loses at least what its bound says. With the share of the samples that it took to reach the bound, what
    it loses is estimated, never below the bound. Where that is not possible, the bound pulls up a draw that says less,
    and nothing else. A failed trial is not learnt, and not proposed again.

    Args:
        table: losses by group and level, from which the model starts. Without one, `Table.stand_in`.

    Source: Thompson 1933, Biometrika 25; in combinatorial spaces, Baptista and Poloczek 2018, "Bayesian Optimization of
    Combinatorial Structures" (BOCS), arXiv:1806.08838. Differs: the model (see there), widths, exchanges in a budget.
    """

    def __init__(self, space: Space, budget: Budget, *, seed: int, table: Table | None = None) -> None:
        super().__init__(space, budget, seed=seed, table=table)
        self._limits = check_budget(space, budget)
        self._surrogate = Surrogate(space, self.table)
        self._cut: list[Trial] = []

    def tell(self, trial: Trial) -> None:
        super().tell(trial)
        if trial.state == "cut" and trial.score is not None:
            self._cut.append(trial)
        if trial.score is None or not self.complete:
            return
        scores = np.array([score for score, _ in self.complete])
        estimates, bounds_only = _estimated(self._cut, scores)
        candidates = [candidate for _, candidate in self.complete] + [cut.candidate for cut in self._cut]
        self._surrogate.learn(
            np.array(candidates),
            -np.concatenate([scores, estimates]),
            np.concatenate([np.zeros(len(scores), dtype=np.bool_), bounds_only]),
            steps=2,
        )

    def propose(self, number: int) -> Candidate:
        rng = trial_rng(self.seed, number)
        landscape = self._surrogate.draw(rng, scale=float(rng.random()))
        start = max(self.complete, key=lambda done: done[0], default=(0.0, self.warm[0]))[1]
        found = best_untried(self.space, self._limits, landscape, start, self.tried, rng)
        if found not in self.tried:
            return found
        return self.untried(lambda: self.project(rng.random(len(self.space.groups))), rng)


def _estimated(cut: list[Trial], scores: FloatArray) -> tuple[FloatArray, NDArray[np.bool_]]:
    """Return the estimated scores of cut trials [n], and which of them are their bounds, for want of an estimate, [n].

    A cut trial reached the loss of its bound early or late; the samples that were left would have added to it. What
    scores are losses from is 0 where none is above (minus a divergence), and 1 where all are from 0 to 1 (accuracy).
    """
    bounds = np.array([trial.score for trial in cut], dtype=np.float64)
    shares = np.array([trial.evaluated for trial in cut])
    perfect = 0.0 if scores.max() <= 0 else 1.0 if scores.min() >= 0 and scores.max() <= 1 else -np.inf
    known = (bounds <= perfect) & (shares > 0)
    estimates = np.where(known, perfect - (perfect - bounds) / np.where(known, shares, 1.0) ** _EARLY, bounds)
    return estimates, ~known
