"""The best candidates by a table of losses, one after the other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from autoprune.agents.base import Agent, Trial, check_count
from autoprune.agents.kbest import KBest
from autoprune.agents.table import Table, given
from autoprune.search_spaces.budget import Budget
from autoprune.search_spaces.projection import Space, check_budget
from autoprune.search_spaces.types import Candidate


@dataclass(frozen=True, slots=True)
class Gap:
    """How far the best loss found may be from the least possible: `bound <= optimum <= best`.

    Attributes:
        best: loss of the first proposal.
        bound: no candidate within the budget loses less.
        exact: whether every proposal so far is proved to be in its place.
    """

    best: float
    bound: float
    exact: bool

    @property
    def relative(self) -> float:
        """The share of `best` that an optimum could still save, in [0, 1]."""
        return (self.best - self.bound) / self.best if self.best > 0 else 0.0


class BnBAgent(Agent):
    """Proposes the candidate that a table ranks k-th for its k-th trial: branch and bound over the additive losses.

    Exact as long as `max_nodes` suffice, with any number of limits; beyond that the best known, and `gap` says how far
    from the optimum the first one may be. Learns nothing from scores: it is as good as its table, and the order in
    which it goes through the table's favourites. When every candidate was proposed they come again.

    Args:
        table: losses by group and level. Without one, `Table.stand_in`, which knows only where the MACs are: the
            proposals are then the candidates around the uniform one.
        max_nodes: prefixes of candidates to expand, at least 1.

    Source: Land and Doig 1960, "An automatic method of solving discrete programming problems", Econometrica 28;
    best-first order and k best as in Lawler 1972, Management Science 18. Differs: see `autoprune.agents.kbest`, whose
    loss bound linearises products of widths in their logarithms.
    """

    def __init__(
        self, space: Space, budget: Budget, *, seed: int, table: Table | None = None, max_nodes: int = 10_000
    ) -> None:
        check_count("bnb", "max_nodes", max_nodes)
        super().__init__(space, budget, seed=seed)
        self.table = given(table, space) or Table.stand_in(space)
        self._search = KBest(space, check_budget(space, budget), self.table, max_nodes=max_nodes)
        self._coming: Iterator[Candidate] = iter(self._search)
        self._ranked: list[Candidate] = []  # how far the search was asked to go; no part of the state

    def ask(self, number: int) -> Candidate:
        self._advance(self.rank)
        return self._ranked[self.rank % len(self._ranked)] if self._ranked else (0,) * len(self.space.groups)

    def tell(self, trial: Trial) -> None:
        self._advance(len(self.trials))  # as far as it was asked: costs that are measured may be others later
        super().tell(trial)

    def _advance(self, rank: int) -> None:
        while len(self._ranked) <= rank:
            candidate = next(self._coming, None)
            if candidate is None:
                break
            self._ranked.append(candidate)

    @property
    def ruled_out(self) -> dict[str, int]:
        """Prefixes of candidates that cannot keep the budget."""
        return {"constraint": self._search.infeasible}

    @property
    def gap(self) -> Gap:
        """What is proved of the proposals so far."""
        return Gap(self._search.best, self._search.bound, self._search.exact)
