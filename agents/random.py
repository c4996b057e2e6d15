"""Independent random keep ratios: the second baseline."""

from __future__ import annotations

from autoprune.agents.base import Agent, trial_rng
from autoprune.search_spaces.types import Candidate


class RandomAgent(Agent):
    """Proposes the projection of keep ratios drawn uniformly from [0, 1], independently per group and trial.

    Learns nothing and remembers nothing. Every proposal is tight, so it spends the whole budget; with `costs`, a
    share of it that is drawn uniformly too. On the set of tight candidates the distribution is not uniform.
    """

    def ask(self, number: int) -> Candidate:
        return self.project(trial_rng(self.seed, number).random(self.num_wishes))
