"""First a coefficient for every cluster of groups, then a keep ratio for every group.

With many groups, an agent learns little from a few dozen trials; of a few clusters of groups it learns enough to begin
the fine search at a better place.

Shape letters: n candidates, G groups, K clusters, M most levels of a cluster.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from autoprune.agents.base import Agent, Trial, check_count, ratios
from autoprune.agents.table import Table
from autoprune.agents.warm import WarmAgent
from autoprune.search_spaces.budget import Budget
from autoprune.search_spaces.projection import Space, project
from autoprune.search_spaces.types import Candidate, FloatArray, Group, IntArray

_LEVELS = 16
"""Levels of a cluster, about evenly spaced in kept units; that of the base may come on top."""


class ClusteredSpace:
    """A `Space` whose groups are clusters of the groups of another, neighbours in the order of the network.

    The level of a cluster says by how much the keep ratios of all its members differ from those of a base candidate:
    one number for the cluster, rounded to a level of each member. Costs are those of the expanded candidates, so a
    budget is one of the other space.

    Attributes:
        groups: one per cluster; its units are those of all members.
        level_units: [K, M], as of any space.
        num_levels: [K].
    """

    def __init__(self, space: Space, base: Candidate, num_clusters: int) -> None:
        self._space = space
        num_groups = len(space.groups)
        cluster_of = np.arange(num_groups) * min(num_clusters, num_groups) // num_groups
        self._members = [np.flatnonzero(cluster_of == cluster) for cluster in range(cluster_of[-1] + 1)]
        self._levels = [_levels(space, base, members) for members in self._members]  # [levels, members] each
        units = [
            space.level_units[members, levels].sum(axis=1)
            for members, levels in zip(self._members, self._levels, strict=True)
        ]
        self.num_levels: IntArray = np.array([len(each) for each in units])
        self.level_units: IntArray = np.array([np.pad(u, (0, self.num_levels.max() - len(u)), "edge") for u in units])
        self.groups = tuple(
            Group(space.groups[members[0]].name, "channels", int(each[-1]), tuple(each.tolist()), True, ())
            for members, each in zip(self._members, units, strict=True)
        )

    @property
    def cost_names(self) -> tuple[str, ...]:
        return self._space.cost_names

    def cost(self, name: str, candidates: IntArray) -> FloatArray:
        return self._space.cost(name, self.expand(candidates))

    def project(self, wishes: Sequence[float], budget: Budget) -> Candidate:
        return project(self, wishes, budget)

    def expand(self, candidates: IntArray) -> IntArray:
        """Return the candidates [n, G] of the other space that candidates [n, K] of this one mean."""
        columns = [levels[candidates[:, cluster]] for cluster, levels in enumerate(self._levels)]
        expanded: IntArray = np.concatenate(columns, axis=1)
        return expanded

    def nearest(self, candidate: Candidate) -> Candidate:
        """Return the candidate here whose members' keep ratios differ least from those of one of the other space."""
        kept = self._space.level_units / self._space.level_units[:, -1:]
        wanted = kept[np.arange(len(kept)), candidate]
        return tuple(
            int(np.abs(kept[members, levels] - wanted[members]).sum(axis=1).argmin())
            for members, levels in zip(self._members, self._levels, strict=True)
        )

    def table(self, table: Table) -> Table:
        """Return the losses of clusters: the sums over their members."""
        losses = table.padded()
        return Table(
            losses[members, levels].sum(axis=1) for members, levels in zip(self._members, self._levels, strict=True)
        )


def _levels(space: Space, base: Candidate, members: IntArray) -> IntArray:
    """Return which levels the members have at each level of their cluster, [levels, members], the base among them."""
    units = space.level_units[members]
    middles = (units[:, :-1] + units[:, 1:]) / (2 * units[:, -1:])
    exists = np.arange(units.shape[1] - 1) < space.num_levels[members, None] - 1
    shifts = np.where(exists, middles - ratios(space, base)[members, None], np.inf)  # at which a member goes up
    points = np.append(-np.inf, np.unique(shifts[np.isfinite(shifts)]))
    levels: IntArray = np.count_nonzero(shifts <= points[:, None, None], axis=2)
    kept = units[np.arange(len(members)), levels].sum(axis=1)
    even = np.abs(kept[:, None] - np.linspace(kept[0], kept[-1], _LEVELS)).argmin(axis=0)
    at_base = np.count_nonzero(points <= 0) - 1
    chosen: IntArray = levels[np.unique(np.append(even, at_base))]
    return chosen


class ClusteredAgent(Agent):
    """An agent, whose first `cluster_trials` trials are those of a second one of its kind on clusters of groups.

    After the warm start the second one is made, on shifts of the best candidate by then. What it proposes is filled up
    by projection. The first is told all trials, so it goes on from them; it also proposes where filling up leads to
    what was tried. The second is told the candidate that it proposed, which is found by asking it again, and of any
    other trial the nearest one that it knows.

    Args:
        kind: the agent's class.
        clusters: how many, 2 or more; groups next to each other in the network, about as many in each.
        cluster_trials: trials before every group goes its own way, the warm start among them, 1 or more.
        options: of the agent.

    Source: searching a few coefficients for all layers is from Frantar and Alistarh 2022, "SPDY", arXiv:2203.13604,
    sec. 3, and Chin et al. 2020, "LeGR", arXiv:1904.12368. Differs: a coefficient is a shift of keep ratios, not a
    factor of losses; clusters share one; and the search goes on without them.
    """

    def __init__(
        self,
        kind: type[WarmAgent],
        space: Space,
        budget: Budget,
        *,
        seed: int,
        clusters: int,
        cluster_trials: int = 40,
        **options: Any,
    ) -> None:
        check_count("with clusters", "clusters", clusters, least=2)
        check_count("with clusters", "cluster_trials", cluster_trials)
        self._fine = kind(space, budget, seed=seed, **options)
        super().__init__(space, budget, seed=seed, costs=self._fine.costs)
        self._kind, self._options = kind, options
        self._num_clusters, self._cluster_trials = clusters, cluster_trials
        self._coarse: _Coarse | None = None
        self._asked: tuple[int, Candidate, Candidate] | None = None

    @property
    def ruled_out(self) -> dict[str, int]:
        return self._fine.ruled_out

    def ask(self, number: int) -> Candidate:
        self._fine.pending, self._fine.place = self.pending, self.place
        if self._coarse is not None:
            candidate = self._proposal(self._coarse, number)[1]
            if candidate not in self._fine.tried:
                return candidate
        return self._fine.ask(number)

    def tell(self, trial: Trial) -> None:
        super().tell(trial)
        if self._coarse is not None:
            proposed, filled = self._proposal(self._coarse, trial.number)
            self._coarse.tell(trial, proposed if trial.candidate == filled else None)
        self._fine.tell(trial)
        self._asked = None
        done = len(self.trials)
        if done >= self._cluster_trials:
            self._coarse = None
        elif done == len(self._fine.warm):
            self._coarse = self._begin()

    def _begin(self) -> _Coarse:
        """Return the agent on clusters, told the warm start."""
        base = (self._fine.best(1) or self._fine.warm)[0]
        clusters = ClusteredSpace(self.space, base, self._num_clusters)
        options = dict(self._options)
        if self._fine.table is not None:
            options["table"] = clusters.table(self._fine.table)
        coarse = _Coarse(clusters, self._kind(clusters, self.budget, seed=self.seed, **options))
        for trial in self.trials:
            coarse.tell(trial)
        return coarse

    def _proposal(self, coarse: _Coarse, number: int) -> tuple[Candidate, Candidate]:
        """Return what the agent on clusters proposes, and what that becomes once filled up."""
        if self._asked is None or self._asked[0] != number:
            proposed = coarse.agent.ask(number)
            expanded: Candidate = tuple(coarse.clusters.expand(np.array([proposed]))[0].tolist())
            self._asked = (number, proposed, self.project(self.executed(expanded)))
        return self._asked[1:]


@dataclass(frozen=True, slots=True)
class _Coarse:
    """The agent on clusters, and their space."""

    clusters: ClusteredSpace
    agent: Agent

    def tell(self, trial: Trial, candidate: Candidate | None = None) -> None:
        """Tell a trial of the other space as one of `candidate`, or of the nearest one there is."""
        self.agent.tell(replace(trial, candidate=candidate or self.clusters.nearest(trial.candidate)))
