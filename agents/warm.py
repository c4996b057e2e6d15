"""What every agent tries before it relies on what it learnt."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet

import numpy as np

from autoprune.agents.base import FRONT_SHARES, Agent, Trial
from autoprune.agents.dominance import leaders, objective_array
from autoprune.agents.kbest import KBest
from autoprune.agents.table import Table, given
from autoprune.search_spaces.budget import Budget
from autoprune.search_spaces.projection import Space, check_budget
from autoprune.search_spaces.types import Candidate

_MAX_NODES = 2_000
"""Prefixes that branch and bound may expand for the candidate it gives a start with."""
_REDRAWS = 10
"""Draws, and then exchanges, before a candidate that was tried already is proposed once more."""


class WarmAgent(Agent):
    """An agent that begins with the uniform candidate and, given a table, the best by it; then it proposes its own.

    With `costs` it begins with those of several shares of the budget.

    Attributes:
        table: losses by group and level, None where there is none.
        warm: what comes first.
        complete: score and candidate of the complete trials, in their order.
    """

    def __init__(
        self, space: Space, budget: Budget, *, seed: int, table: Table | None = None, costs: Sequence[str] = ()
    ) -> None:
        super().__init__(space, budget, seed=seed, costs=costs)
        self.table = given(table, space)
        self._told: set[Candidate] = set()
        self.complete: list[tuple[float, Candidate]] = []
        warm = []
        for share in FRONT_SHARES if costs else (1.0,):
            share = max(share, self.least_share)
            warm.append(self.uniform(share))
            if self.table is not None:
                limits = check_budget(space, budget.scaled(share))
                warm.append(next(iter(KBest(space, limits, self.table, max_nodes=_MAX_NODES))))
        self.warm = list(dict.fromkeys(warm))

    def ask(self, number: int) -> Candidate:
        return self.warm[self.rank] if self.rank < len(self.warm) else self.propose(number)

    @property
    def tried(self) -> AbstractSet[Candidate]:
        """Candidates that were told, whatever became of them, or are pending."""
        return self._told.union(each for each in self.pending if each is not None) if self.pending else self._told

    def tell(self, trial: Trial) -> None:
        super().tell(trial)
        self._told.add(trial.candidate)
        if trial.state == "complete" and trial.score is not None:
            self.complete.append((trial.score, trial.candidate))

    def best(self, count: int) -> list[Candidate]:
        """Return the best complete candidates, best first: by score, with `costs` by domination and crowding."""
        trials = [trial for trial in self.trials if trial.state == "complete"]
        return [trials[index].candidate for index in leaders(objective_array(trials, self.costs), count)]

    @abstractmethod
    def propose(self, number: int) -> Candidate:
        """Return the agent's own candidate for trial `number`, after the warm start."""

    def untried(self, draw: Callable[[], Candidate], rng: np.random.Generator) -> Candidate:
        """Return the first draw that was not tried yet; after a few, what exchanges lead to from the last one."""
        candidate = draw()
        for attempt in range(2 * _REDRAWS):
            if candidate not in self.tried:
                break
            candidate = draw() if attempt < _REDRAWS else self.exchanged(candidate, rng)
        return candidate

    def exchanged(self, candidate: Candidate, rng: np.random.Generator, scale: float = 0.3) -> Candidate:
        """Return a neighbour: one group's keep ratio higher, another's lower, the rest shifted to meet the budget.

        The changes are drawn from (0, `scale`], small ones more often; they grow until the projection is another
        candidate than this one, or a few draws have failed (a space may have one candidate only). With `costs`, what
        may be spent is one more coordinate that may go up or down.
        """
        for widen in range(1, 9):
            wishes = self.executed(candidate)
            up, down = rng.integers(self.num_wishes, size=2)
            rise, fall = widen * scale * rng.random(2) ** 2
            wishes[up] += rise
            wishes[down] -= fall
            neighbour = self.project(np.clip(wishes, 0, 1))
            if neighbour != candidate:
                break
        return neighbour
