"""Greedy descent from the dense model, then exchanges around the best candidate found."""

from __future__ import annotations

from autoprune.agents.base import trial_rng
from autoprune.agents.moves import descend
from autoprune.agents.table import Table
from autoprune.agents.warm import WarmAgent
from autoprune.search_spaces.budget import Budget
from autoprune.search_spaces.projection import Space, check_budget
from autoprune.search_spaces.types import Candidate


class GreedyAgent(WarmAgent):
    """Goes down from the dense model, always where least is lost per cost saved; then climbs by exchanges.

    After the warm start comes the candidate of the descent, which needs no trials: losses are those of the table.
    Every later trial is an exchange around the best complete trial so far (the uniform candidate while there is
    none): one group's ratio up, another's down, the rest shifted to meet the budget. The best score counts; cut and
    failed trials are only not tried again.

    Args:
        table: losses by group and level. Without one, `Table.stand_in`, which knows only where the MACs are.

    Source: Yang et al. 2018, "NetAdapt", arXiv:1804.03230, alg. 1. Differs: a step is judged by the table, not by a
    short fine-tune of each proposal, and is one level of one group, not a fixed saving; the exchanges are ours.
    """

    def __init__(self, space: Space, budget: Budget, *, seed: int, table: Table | None = None) -> None:
        super().__init__(space, budget, seed=seed, table=table)
        losses = self.table or Table.stand_in(space)
        descent: Candidate = tuple(descend(space, check_budget(space, budget), losses).tolist())
        if descent not in self.warm:
            self.warm.append(descent)

    def propose(self, number: int) -> Candidate:
        rng = trial_rng(self.seed, number)
        best = max(self.complete, key=lambda done: done[0], default=(0.0, self.warm[0]))[1]
        return self.untried(lambda: self.exchanged(best, rng), rng)
