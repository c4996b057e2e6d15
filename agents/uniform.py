"""One keep ratio for every group: what each other agent has to beat."""

from __future__ import annotations

import numpy as np

from autoprune.agents.base import Agent
from autoprune.search_spaces.budget import Budget
from autoprune.search_spaces.projection import Space, uniform_line
from autoprune.search_spaces.types import Candidate


class UniformAgent(Agent):
    """Proposes the largest uniform candidate within the budget, then smaller ones spread evenly below it.

    The first proposal is tight: what rounding left of the budget is given to groups one level at a time. The others
    are the uniform candidates within the budget, in the order of the van der Corput sequence, each once; then they
    come again. Nothing is random and no score is used; where a proposal stands is its `rank`.

    Source of the order: van der Corput 1935, "Verteilungsfunktionen"; base 2.
    """

    def __init__(self, space: Space, budget: Budget, *, seed: int) -> None:
        super().__init__(space, budget, seed=seed)
        tight = self.uniform()
        line: list[Candidate] = [tuple(levels) for levels in uniform_line(space, budget).tolist()]
        below = [candidate for candidate in line if candidate != tight]
        self._proposals = [tight, *(below[index] for index in _van_der_corput_order(len(below)))]

    def ask(self, number: int) -> Candidate:
        return self._proposals[self.rank % len(self._proposals)]


def _van_der_corput_order(size: int) -> list[int]:
    """Return 0 ... size - 1 so that every beginning of the list is spread evenly: 8 gives 4 2 6 1 5 3 7 0."""
    bits = max(1, (size - 1).bit_length())
    counts = np.arange(1, 2**bits + 1) % 2**bits  # 0 last: it is the smallest subnet
    reverse = sum(((counts >> bit) & 1) << (bits - 1 - bit) for bit in range(bits))
    return [index for index in np.asarray(reverse).tolist() if index < size]
