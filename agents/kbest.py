"""The candidates within a budget in the order of a table's loss: best-first branch and bound, exact, anytime.

Groups are decided one after the other; a node is a prefix of levels, all others left open. Two bounds cut the search:

- *Cost*: a prefix with all other groups at their smallest level is the least that anything below it can cost.
- *Loss*, the larger of two. First the losses of the prefix, plus those of the others at the largest level that fits
  when all else is smallest. Second a Lagrangian one. MACs and parameters are sums of products of counts, so convex in
  the logarithms y of the kept units: cost(y) >= cost(y0) + a . (y - y0) for all y, where y0 is the best candidate
  known and a the derivative there. So for any multiplier m >= 0 a candidate that keeps the limit loses at least

      sum over groups of min over levels of [loss + m * a * (y - y0)]  -  m * (limit - cost(y0)),

  and what a prefix adds to that is known group by group. Several limits: one multiplier each.

The first bound needs costs that never fall when more is kept. Should a predicted latency fall somewhere, then what
comes out still keeps every limit, but something better may be missed.

Shape letters: n candidates, G groups, L levels, C limits with a Lagrangian bound.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from autoprune.agents.moves import exchanges, start
from autoprune.agents.table import Table
from autoprune.search_spaces.projection import Space, within
from autoprune.search_spaces.types import Candidate, FloatArray, IntArray

_BATCH = 32
"""Prefixes whose children are priced in one call."""
_NEIGHBOURS = 64
"""Most exchanges around one candidate that are kept, once nodes have run out."""
_SLACK = 1 - 1e-9
"""What a loss bound is multiplied by: floats summed in another order must not exceed the loss that they bound."""
_CONVEX = ("macs", "params")
"""Costs that are sums of products of counts, with factors of 0 or more."""


class KBest:
    """Yields candidates within limits, least loss first, each once; iterate once.

    Of the levels of a group that lose the same only the smallest is used: the others are dominated. The order is
    exact until `max_nodes` prefixes were expanded. From then on it is that of the best known so far: what greedy steps
    and exchanges found, what the search had reached, and the exchanges around all that was yielded.

    Attributes:
        best: the least loss known; it is that of the first candidate, once it was yielded.
        bound: no candidate loses less.
        exact: whether everything yielded so far is proved to be in its place.
        infeasible: prefixes that were cut since nothing below them keeps the limits.
    """

    def __init__(self, space: Space, limits: Mapping[str, float], table: Table, *, max_nodes: int) -> None:
        self._space, self._limits, self._table, self._max_nodes = space, limits, table, max_nodes
        self._incumbent = start(space, limits, table)
        self.best = float(table.predict(self._incumbent[None])[0])
        self.bound, self.exact = 0.0, True
        self.infeasible = 0
        losses = table.padded()
        useful = np.arange(losses.shape[1]) < space.num_levels[:, None]
        useful[:, 1:] &= losses[:, 1:] < losses[:, :-1]
        useful &= within(space, _single(space, np.zeros_like(space.num_levels)), limits).reshape(useful.shape)
        tilted, constant = _lagrangian(space, limits, np.where(useful, losses, np.inf), self._incumbent)
        spread = np.where(useful, tilted, -np.inf).max(axis=1) - np.where(useful, tilted, np.inf).min(axis=1)
        self._order = np.argsort(-spread, kind="stable")  # what matters most is decided first
        self._levels = [np.flatnonzero(useful[group]) for group in self._order]
        # both bounds are a sum over groups: by level [2, G, L], and what the groups from a depth on add [2, G + 1]
        self._terms = np.stack([losses, tilted])
        least = np.where(useful, self._terms, np.inf).min(axis=2)[:, self._order]
        behind = np.concatenate([np.cumsum(least[:, ::-1], axis=1)[:, ::-1], np.zeros((2, 1))], axis=1)
        self._behind = behind + np.array([[0.0], [constant]])
        self._heap: list[tuple[float, int, int, int]] = []  # bound, -depth, brood, place in the brood
        self._broods: dict[int, tuple[IntArray, FloatArray]] = {}  # siblings, by rising bound
        self._num_broods = 0

    def __iter__(self) -> Iterator[Candidate]:
        yielded: set[Candidate] = set()
        self._expand(np.zeros((1, len(self._order)), np.int64), 0)
        while self._heap and self._num_broods < self._max_nodes:
            if not yielded:
                self.bound = max(self.bound, min(self._heap[0][0], self.best))
            if self._depth() == len(self._order):
                loss = self._heap[0][0]
                candidate = _tuple(self._take())
                if not yielded:
                    self.best = self.bound = loss
                yielded.add(candidate)
                yield candidate
                continue
            prefixes: dict[int, list[IntArray]] = {}  # by depth
            for _ in range(_BATCH):
                if not self._heap or self._depth() == len(self._order):
                    break  # a complete one waits: something below these prefixes may be better
                depth = self._depth()
                prefixes.setdefault(depth, []).append(self._take())
            for depth, same in prefixes.items():
                self._expand(np.array(same), depth)
        if self._heap:
            self.exact = False
            yield from self._runners_up(yielded)

    def _depth(self) -> int:
        """Return how many groups the first node of the heap has decided."""
        return -self._heap[0][1]

    def _take(self) -> IntArray:
        """Return the first node of the heap [G], and put its next sibling in its place."""
        _, depth, brood, place = heapq.heappop(self._heap)
        siblings, bounds = self._broods[brood]
        if place + 1 < len(siblings):
            heapq.heappush(self._heap, (float(bounds[place + 1]), depth, brood, place + 1))
        else:
            del self._broods[brood]
        levels: IntArray = siblings[place]
        return levels

    def _expand(self, prefixes: IntArray, depth: int) -> None:
        """Put the children of prefixes [n, G] on the heap; the groups not yet decided stand at level 0."""
        group, levels = self._order[depth], self._levels[depth]
        children = np.repeat(prefixes, len(levels), axis=0)
        children[:, group] = np.tile(levels, len(prefixes))
        parents = np.repeat(np.arange(len(prefixes)), len(levels))
        fitting = within(self._space, children, self._limits)
        self.infeasible += int(np.count_nonzero(~fitting))
        children, parents = children[fitting], parents[fitting]
        if depth + 1 == len(self._order):
            bounds = self._table.predict(children)
        else:
            decided = self._order[: depth + 1]
            sums = self._terms[:, decided, children[:, decided]].sum(axis=2) + self._behind[:, depth + 1, None]
            bounds = np.maximum(_SLACK * sums.max(axis=0), 0)
        for parent in range(len(prefixes)):
            own = np.flatnonzero(parents == parent)
            self._num_broods += 1
            if own.size:
                own = own[np.argsort(bounds[own], kind="stable")]
                self._broods[self._num_broods] = children[own], bounds[own]
                heapq.heappush(self._heap, (float(bounds[own[0]]), -depth - 1, self._num_broods, 0))

    def _runners_up(self, yielded: set[Candidate]) -> Iterator[Candidate]:
        """Yield what is known, best first, and the exchanges around it; nothing that was yielded before."""
        known = {_tuple(self._incumbent), *yielded}
        for _, depth, brood, _ in self._heap:
            if -depth == len(self._order):
                known |= {_tuple(levels) for levels in self._broods[brood][0]}
        self._heap, self._broods = [], {}
        losses = self._table.predict(np.array(sorted(known), dtype=np.int64))
        heap = list(zip(losses.tolist(), sorted(known), strict=True))
        heapq.heapify(heap)
        while heap:
            _, candidate = heapq.heappop(heap)
            if candidate not in yielded:
                yield candidate
            around = exchanges(self._space, np.array(candidate), 2)
            around = around[np.argsort(self._table.predict(around), kind="stable")]
            around = around[within(self._space, around, self._limits)]
            # those that lose much less were found unfit or are known: what is new lies close behind the candidate
            new = [each for each in map(tuple, around[: 4 * _NEIGHBOURS].tolist()) if each not in known][:_NEIGHBOURS]
            known.update(new)
            if new:
                losses = self._table.predict(np.array(new, dtype=np.int64))
                for entry in zip(losses.tolist(), new, strict=True):
                    heapq.heappush(heap, entry)


def _tuple(levels: IntArray) -> Candidate:
    return tuple(levels.tolist())


def _single(space: Space, levels: IntArray) -> IntArray:
    """Return the candidates that differ from `levels` in one group, which has every level in turn, [G * L, G].

    Where a group has fewer than L levels, its last one is repeated.
    """
    num_groups, most = space.level_units.shape
    candidates = np.broadcast_to(levels, (num_groups, most, num_groups)).copy()
    every = np.minimum(np.arange(most), space.num_levels[:, None] - 1)
    candidates[np.arange(num_groups)[:, None], np.arange(most), np.arange(num_groups)[:, None]] = every
    return candidates.reshape(-1, num_groups)


def _lagrangian(
    space: Space, limits: Mapping[str, float], losses: FloatArray, levels: IntArray
) -> tuple[FloatArray, float]:
    """Return losses tilted by what each level costs [G, L], and the constant that makes their sum a lower bound.

    Args:
        losses: by level [G, L], infinite where a level is not used.
        levels: the candidate [G] where costs are linearised.
    """
    convex = [cost for cost in limits if cost in _CONVEX]
    if not convex:
        return losses, 0.0
    linear = [_linearised(space, cost, limits[cost], levels) for cost in convex]
    terms, slacks = np.stack([t for t, _ in linear]), np.array([slack for _, slack in linear])  # [C, G, L], [C]

    def dual(multipliers: FloatArray) -> FloatArray:
        """Return the bounds that multipliers [n, C] give, [n]."""
        tilted = losses + np.einsum("nc,cgl->ngl", multipliers, terms)
        bounds: FloatArray = tilted.min(axis=2).sum(axis=1) - multipliers @ slacks
        return bounds

    scale = max(float(losses[:, 0].sum()), 1e-300)
    best = np.zeros(len(convex))
    for width in (1e6, 1e6, 30.0, 3.0, 1.3, 1.03):  # the bound is concave: search along one limit after the other
        for limit in range(len(convex)):
            tried = np.repeat(best[None], 33, axis=0)
            tried[1:, limit] = (best[limit] or scale) * np.geomspace(1 / width, width, 32)
            best = tried[int(np.argmax(dual(tried)))]
    return losses + np.einsum("c,cgl->gl", best, terms), -float(best @ slacks)


def _linearised(space: Space, cost: str, limit: float, levels: IntArray) -> tuple[FloatArray, float]:
    """Return a * (y - y0) by level [G, L], and limit - cost(y0), both as shares of the limit.

    A cost is a polynomial in the units of each group, with coefficients of 0 or more. One of degree 2 that meets it at
    four levels is the same (Descartes' rule of signs: their difference has three positive roots at most), and then its
    derivative is known. A group without this proof (few levels, a higher degree) stands at its smallest level in y0,
    with a = 0 there, which bounds it as well, since costs rise.
    """
    units = space.level_units / space.level_units[:, -1:]  # [G, L]
    groups = np.arange(len(levels))

    def fitted(base: IntArray) -> tuple[FloatArray, NDArray[np.bool_]]:
        """Return polynomials [G, 3], highest power first, and which groups they are proved for."""
        values = space.cost(cost, _single(space, base)).reshape(units.shape)
        points = np.stack([np.zeros_like(space.num_levels), (space.num_levels - 1) // 2, space.num_levels - 1], axis=1)
        enough = space.num_levels >= 4
        at = units[groups[:, None], points]
        powers = np.where(enough[:, None, None], at[:, :, None] ** np.array([2, 1, 0]), np.eye(3))
        polynomials = np.linalg.solve(powers, values[groups[:, None], points][:, :, None])[:, :, 0]
        shown = (units[:, :, None] ** np.array([2, 1, 0]) * polynomials[:, None]).sum(axis=2)
        proved: NDArray[np.bool_] = enough & (np.abs(shown - values) <= 1e-9 * values.max()).all(axis=1)
        return polynomials.astype(np.float64), proved

    _, proved = fitted(levels)
    base = np.where(proved, levels, 0)
    polynomials, still = fitted(base)
    if (proved & ~still).any():  # not such a cost after all: no bound
        return np.zeros_like(units), 0.0
    here = units[groups, base]
    slopes = np.where(proved, here * (2 * polynomials[:, 0] * here + polynomials[:, 1]), 0)
    terms = slopes[:, None] * (np.log(units) - np.log(here)[:, None])
    return terms / limit, float(limit - space.cost(cost, base[None])[0]) / limit
