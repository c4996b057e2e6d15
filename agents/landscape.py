"""Losses with curves by group and terms by pair, and where they are lowest within a budget.

Shape letters: n candidates, G groups, L levels, C limits; u ups, d downs: changes of one group by a few levels.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain

import numpy as np

from autoprune.search_spaces.projection import Space, within
from autoprune.search_spaces.types import Candidate, FloatArray, IntArray

_STEPS = 4
"""Most levels that an exchange moves a group."""
_BATCH = 64
"""Candidates priced at once, in the order of their losses."""
_MOST = 1024
"""Better candidates that are priced before none of them is taken to fit."""
_KICKS, _KICKED = 3, 3
"""Local searches after the first, and draws of groups that are cut before each."""
_SLACK = 1.02
"""Limit, for exchanges, on the cost that is foretold by adding up what both changes cost: it is not exact."""


@dataclass(frozen=True, slots=True)
class Landscape:
    """The loss of a candidate: sum of curves[g, level] + sum over pairs of pairs[i, j] c_i c_j, c the shares cut.

    Attributes:
        curves: [G, L].
        pairs: symmetric, its diagonal 0, [G, G].
        shares: what each level cuts, [G, L].
    """

    curves: FloatArray
    pairs: FloatArray
    shares: FloatArray

    def predict(self, candidates: IntArray) -> FloatArray:
        """Return the losses of candidates [n, G], shape [n]."""
        groups = np.arange(len(self.curves))
        cut = self.shares[groups, candidates]
        losses: FloatArray = self.curves[groups, candidates].sum(axis=1) + ((cut @ self.pairs) * cut).sum(axis=1) / 2
        return losses


def best_untried(
    space: Space,
    limits: Mapping[str, float],
    landscape: Landscape,
    start: Candidate,
    tried: Collection[Candidate],
    rng: np.random.Generator,
) -> Candidate:
    """Return the lowest of what a few local searches meet, each from where the best of them ended, that was not tried.

    The first begins at `start`, which fits; the others where some groups of the lowest candidate so far were cut
    further at random: single exchanges alone would end at the same place, trial after trial. If all ends were tried,
    it is the best exchange around the lowest, or around the next, that was not; what was comes back only where there
    is none that fits.
    """
    lowest = _Around.end(space, limits, landscape, np.array(start))
    ends = [lowest]
    for _ in range(_KICKS):
        kicked = lowest.levels.copy()
        groups = rng.integers(len(kicked), size=_KICKED)
        kicked[groups] -= rng.integers(1, _STEPS + 1, size=_KICKED)
        ends.append(_Around.end(space, limits, landscape, np.maximum(kicked, 0)))
        lowest = min(lowest, ends[-1], key=lambda end: end.loss)
    ends.sort(key=lambda end: end.loss)
    around = (tuple(levels.tolist()) for end in ends for levels in end.fitting(below=np.inf, most=None))
    untried = (candidate for candidate in chain((end.candidate for end in ends), around) if candidate not in tried)
    return next(untried, lowest.candidate)


class _Around:
    """All candidates that a change of one group leads to, or a rise of one and a fall of another.

    What each loses, relative to the middle, is exact; what it costs is foretold, and known once it is priced.
    """

    def __init__(self, space: Space, limits: Mapping[str, float], landscape: Landscape, levels: IntArray) -> None:
        self._space, self._limits, self.levels = space, limits, levels
        self.candidate: Candidate = tuple(levels.tolist())
        self.loss = float(landscape.predict(levels[None])[0])
        steps = np.concatenate([np.arange(1, _STEPS + 1), -np.arange(1, _STEPS + 1)])
        groups = np.repeat(np.arange(len(levels)), len(steps))
        to = levels[groups] + np.tile(steps, len(levels))
        inside = (to >= 0) & (to < space.num_levels[groups])
        self._groups, self._to = groups, to = groups[inside], to[inside]
        rows = np.arange(len(groups))
        single = np.repeat(levels[None], len(groups) + 1, axis=0)  # the last is the middle
        single[rows, groups] = to
        here = np.arange(len(levels)), levels
        cut = landscape.shares[groups, to] - landscape.shares[here][groups]
        change = landscape.curves[groups, to] - landscape.curves[here][groups]
        change += cut * (landscape.pairs @ landscape.shares[here])[groups]
        self._ups, self._downs = up, down = np.flatnonzero(to > levels[groups]), np.flatnonzero(to < levels[groups])
        both = change[up][:, None] + change[down]
        both += cut[up][:, None] * cut[down] * landscape.pairs[groups[up][:, None], groups[down]]
        fits = groups[up][:, None] != groups[down]
        alone = np.ones(len(groups), dtype=np.bool_)
        for name, limit in limits.items():
            costs = space.cost(name, single)
            middle, more = costs[-1], costs[:-1] - costs[-1]
            fits &= middle + more[up][:, None] + more[down] <= _SLACK * limit
            alone &= costs[:-1] <= limit
        self._changes = np.concatenate([np.where(alone, change, np.inf), np.where(fits, both, np.inf).ravel()])

    @classmethod
    def end(cls, space: Space, limits: Mapping[str, float], landscape: Landscape, levels: IntArray) -> _Around:
        """Return where the best changes lead, one after the other, until none that fits lowers the loss."""
        least = -1e-12 * float(np.abs(landscape.curves).max())
        while True:
            around = cls(space, limits, landscape, levels)
            better = next(around.fitting(below=least, most=_MOST), None)
            if better is None:
                return around
            levels = better

    def fitting(self, *, below: float, most: int | None) -> Iterator[IntArray]:
        """Yield the candidates [G] that fit, least loss first, where the loss changes by less than `below`."""
        wanted = np.flatnonzero(self._changes < below)
        order = wanted[np.argsort(self._changes[wanted], kind="stable")][:most]
        for start in range(0, len(order), _BATCH):
            candidates = self._candidates(order[start : start + _BATCH])
            yield from candidates[within(self._space, candidates, self._limits)]

    def _candidates(self, numbers: IntArray) -> IntArray:
        """Return candidates [n, G] by their numbers: first changes of one group, then exchanges."""
        rows, pairs = np.arange(len(numbers)), numbers - len(self._groups)
        candidates = np.repeat(self.levels[None], len(numbers), axis=0)
        if not len(self._downs) or not len(self._ups):
            candidates[rows, self._groups[numbers]] = self._to[numbers]
            return candidates
        row, column = np.divmod(np.maximum(pairs, 0), len(self._downs))
        for each in (self._ups[row], self._downs[column]):
            changed = np.where(pairs < 0, numbers, each)
            candidates[rows, self._groups[changed]] = self._to[changed]
        return candidates
