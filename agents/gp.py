"""A Gaussian process over the keep ratios, by Optuna."""

from __future__ import annotations

from collections.abc import Sequence

from optuna.samplers import BaseSampler, GPSampler

from autoprune.agents.base import check_count, trial_rng
from autoprune.agents.samplers import SamplerAgent
from autoprune.agents.table import Table
from autoprune.search_spaces.budget import Budget
from autoprune.search_spaces.projection import Space
from autoprune.search_spaces.types import Candidate

_MOST = 300
"""Complete trials up to which the process is fitted: its cost grows with the cube of their number."""
_FRONT = 10
"""From so many of the best trials, with `costs`, one is drawn where the process is not fitted."""


class GPAgent(SamplerAgent):
    """Models the score by a Gaussian process, and proposes where the expected improvement is highest.

    After the warm start, proposals are random until `n_startup` trials are complete. The process is fitted to the
    complete trials only, without noise; of 300 or more it would take seconds, and proposals are then exchanges around
    the best trial. What it proposes is projected; a candidate already tried gives way to exchanges around it.

    Args:
        table: losses by group and level; its best candidate is then the second proposal.
        costs: to be minimised beside the score: the expected improvement is then that of the hypervolume.
        n_startup: complete trials before the model is used, the warm start among them, at least 1.

    Source: Jones, Schonlau and Welch 1998, "Efficient Global Optimization", J. Global Optimization 13; implementation:
    `optuna.samplers.GPSampler` with `deterministic_objective`. Differs: wishes are projected and the executed ratios
    learnt; warm start; no candidate twice.
    """

    def __init__(
        self,
        space: Space,
        budget: Budget,
        *,
        seed: int,
        table: Table | None = None,
        costs: Sequence[str] = (),
        n_startup: int = 10,
    ) -> None:
        check_count("gp", "n_startup", n_startup)
        super().__init__(space, budget, seed=seed, table=table, costs=costs)
        self._n_startup = n_startup

    def propose(self, number: int) -> Candidate:
        rng = trial_rng(self.seed, number)
        if len(self.complete) < self._n_startup:
            return self.untried(lambda: self.project(rng.random(self.num_wishes)), rng)
        if len(self.complete) < _MOST:
            start = self.project(next(self.draw(rng)))
            if start not in self.tried:
                return start
        else:
            best = self.best(_FRONT if self.costs else 1)
            start = best[int(rng.integers(len(best)))]
        return self.untried(lambda: self.exchanged(start, rng), rng)

    def sampler(self, seed: int) -> BaseSampler:
        return GPSampler(seed=seed, n_startup_trials=1, deterministic_objective=True)
