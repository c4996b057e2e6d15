"""Keep a budget that was only predicted: measure the candidate, repair what misses, measure again.

A candidate that keeps a predicted latency is in truth somewhat slower or faster. Its measured latency over its
predicted one says by how much the prediction is off around here, so it is moved to the limit over that factor and
measured again (a loop of empirical measurements as in NetAdapt, Yang et al. 2018, ECCV). Moves are levels of single
groups, those that a table of losses says hurt least. One or two end within a percent of the limit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from autoprune.agents.base import Reading
from autoprune.agents.moves import ascend, descend
from autoprune.agents.table import Table
from autoprune.measure.race import TooNoisy
from autoprune.search_spaces import Budget, Candidate, Limit, SearchSpace, UserError, parse_cost
from autoprune.search_spaces.projection import check_budget, is_feasible

if TYPE_CHECKING:
    from autoprune.gauges import Gauges
    from autoprune.measure import Latency

TRIALS = 1.5
"""A trial's latency is wanted less accurately than that of a point, by this factor: soon rather than exactly."""

TIGHT = 0.98
"""A candidate that uses less of its tightest limit, as measured, may grow."""

WHOLE = 0.95
"""Share of the budget from which on a candidate was made for all of it, as predicted: others are small on purpose."""

INSIDE = 0.995
"""Moves aim a little below the limit: the next measurement has an error of its own."""


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What became of a candidate that was to keep a budget.

    Attributes:
        candidate: the largest one measured that keeps the budget; where none does, the one that exceeds it least.
        costs: its measured costs, upper ends of their confidence intervals.
        latencies: of the candidate, by gauge name.
        misses: limited costs that it exceeds.
        readings: all that was measured on the way, in order.
    """

    candidate: Candidate
    costs: dict[str, float]
    latencies: dict[str, Latency]
    misses: tuple[str, ...]
    readings: tuple[Reading, ...]


@dataclass(slots=True)
class Keeper:
    """Measures candidates of a space on its gauges, and moves them to where they keep a budget.

    Attributes:
        table: losses by group and level, for moves; None for `Table.stand_in`.
        accuracy: wanted half width of the confidence interval of a ratio to the dense network; None for the gauge's.
    """

    space: SearchSpace
    gauges: Gauges
    table: Table | None = None
    accuracy: float | None = None

    def keep(self, candidate: Candidate, budget: Budget, *, attempts: int = 4) -> Kept:
        """Measure a candidate; where it misses a limit, move it and measure again.

        A candidate that was made for the whole budget, and as measured leaves some of it, is moved up in the same way.

        Args:
            candidate: where to begin; where its predicted costs do not keep the budget (models have learnt since it was
                thought of), one below it that does.
            budget: to keep.
            attempts: measurements at most.
        """
        candidate = self.fitting(candidate, budget)
        grow = max(self.used(budget, self._predicted(budget, candidate)).values(), default=1.0) >= WHOLE
        tried: dict[Candidate, _Measured] = {}
        readings: list[Reading] = []
        while candidate not in tried and len(tried) < attempts:
            try:
                latencies = self.measure(candidate)
            except TooNoisy:
                if not tried:
                    raise
                break  # what is known of the first ones counts
            readings += self.gauges.readings(candidate, latencies)
            costs = self.gauges.values(latencies)
            used = self.used(budget, costs)
            tried[candidate] = _Measured(max(used.values(), default=0.0), costs, latencies, used)
            share = tried[candidate].share
            if share <= 1 and (share >= TIGHT or not grow):
                break
            try:
                candidate = self.moved(candidate, self._aim(budget, candidate, used))
            except UserError:  # by that estimate not even the smallest subnet fits
                candidate = self.space.smallest
        best = min(tried, key=lambda each: (tried[each].share > 1, abs(1 - tried[each].share)))
        found = tried[best]
        missed = tuple(cost for cost, share in found.used.items() if share > 1)
        return Kept(
            candidate=best, costs=found.costs, latencies=found.latencies, misses=missed, readings=tuple(readings)
        )

    def fitting(self, candidate: Candidate, budget: Budget) -> Candidate:
        """The candidate itself where it keeps the budget as predicted, else one below it that does."""
        return candidate if is_feasible(self.space, candidate, budget) else self.moved(candidate, budget)

    def moved(self, candidate: Candidate, budget: Budget) -> Candidate:
        """Where steps of single groups lead from a candidate: down into the budget, then up as far as it goes."""
        limits = check_budget(self.space, budget)
        table = Table.stand_in(self.space) if self.table is None else self.table
        inside = descend(self.space, limits, table, np.array(candidate))
        return tuple(ascend(self.space, limits, table, inside).tolist())

    def measure(self, candidate: Candidate) -> dict[str, Latency]:
        """Latency of a candidate by gauge name."""
        models = {"candidate": self.space.materialise(candidate, share=True)}
        return {name: found["candidate"] for name, found in self.gauges.measure(models, accuracy=self.accuracy).items()}

    def used(self, budget: Budget, costs: Mapping[str, float]) -> dict[str, float]:
        """The share of each limit that these measured costs use: above 1 it is missed.

        A limit in absolute units is held in the milliseconds of today where the device has become slower.
        """
        shares: dict[str, float] = {}
        for limit in budget.limits:
            if limit.cost in costs:
                share = costs[limit.cost] / self._absolute(limit)
                if not limit.relative and parse_cost(limit.cost)[0] != "energy":  # which is read as it is now
                    share *= self.gauges.slowdown(limit.cost)
                shares[limit.cost] = max(share, shares.get(limit.cost, 0.0))
        return shares

    def _predicted(self, budget: Budget, candidate: Candidate) -> dict[str, float]:
        names = [cost for cost in budget.costs if cost in self.gauges.costs]
        return {cost: float(self.space.cost(cost, [candidate])[0]) for cost in names}

    def _absolute(self, limit: Limit) -> float:
        dense = float(self.space.cost(limit.cost, [self.space.dense])[0])
        return Budget((limit,)).resolve({limit.cost: dense})[limit.cost]

    def _aim(self, budget: Budget, candidate: Candidate, used: Mapping[str, float]) -> Budget:
        """The budget with each measured limit where the prediction is that this candidate's was, over what it used."""
        limits = []
        for limit in budget.limits:
            if limit.cost in used:
                predicted = self._predicted(budget, candidate)[limit.cost]
                factor = INSIDE * predicted / used[limit.cost] / self._absolute(limit)
                value = limit.value * factor
                limit = replace(limit, value=min(value, 1.0) if limit.relative else value)
            limits.append(limit)
        return Budget(tuple(limits))


@dataclass(frozen=True, slots=True)
class _Measured:
    """A measured candidate: the largest share of a limit that it uses, its costs, latencies and shares by cost."""

    share: float
    costs: dict[str, float]
    latencies: dict[str, Latency]
    used: dict[str, float]
