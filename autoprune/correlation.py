"""Rank correlation of two scores over the same candidates, with a bootstrap interval.

Spearman's rho (Pearson's correlation of midranks) and Kendall's tau-b, as `scipy.stats` defines them. The
interval is the percentile bootstrap over candidates (Efron & Tibshirani 1993, "An Introduction to the Bootstrap",
sec. 13.3). A resample in which one score is constant tells nothing about order and counts as 0, which widens the
interval of very few candidates.

Shape letters: n candidates, B resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.stats

from autoprune.search_spaces.types import FloatArray, IntArray

RESAMPLES = 2001
LEVEL = 0.95
MIN_PAIRS = 5
"""Fewer candidates give no correlation worth a number."""


@dataclass(frozen=True, slots=True)
class Correlation:
    """A rank correlation in [-1, 1] and the ends of its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        value, low, high = (f"{round(number, 2) + 0.0:.2f}" for number in (self.value, self.low, self.high))
        return f"{value} [{low}, {high}]"


def correlate(
    x: Sequence[float], y: Sequence[float], *, seed: int = 0
) -> tuple[Correlation, Correlation] | tuple[None, None]:
    """Spearman's and Kendall's correlation of finite numbers [n] and [n].

    Returns:
        Both, or None twice where a score is the same for all candidates or there are fewer than `MIN_PAIRS`.
    """
    a, b = np.asarray(x, np.float64), np.asarray(y, np.float64)
    assert a.shape == b.shape, "scores of the same candidates"
    assert bool(np.isfinite(a).all() and np.isfinite(b).all())
    if len(a) < MIN_PAIRS or len(np.unique(a)) == 1 or len(np.unique(b)) == 1:
        return None, None
    draws: IntArray = np.random.default_rng(seed).integers(len(a), size=(RESAMPLES, len(a)))
    draws[0] = np.arange(len(a))  # the candidates themselves
    return _with_interval(_spearman(a[draws], b[draws])), _with_interval(_kendall(a, b, draws))


def _with_interval(resampled: FloatArray) -> Correlation:
    """From [B], of which the first is the value."""
    low, high = np.quantile(resampled[1:], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Correlation(float(resampled[0]), float(low), float(high))


def _spearman(a: FloatArray, b: FloatArray) -> FloatArray:
    """Row by row, [B, n] -> [B]."""
    ranks = [scipy.stats.rankdata(values, axis=1) for values in (a, b)]
    ra, rb = (r - r.mean(axis=1, keepdims=True) for r in ranks)
    return _ratio((ra * rb).sum(1), (ra**2).sum(1), (rb**2).sum(1))


def _kendall(a: FloatArray, b: FloatArray, draws: IntArray) -> FloatArray:
    """Of the pairs drawn, [n] and [B, n] -> [B]: sums over pairs of signs, weighted by how often each was drawn."""
    times = np.zeros(draws.shape)
    np.add.at(times, (np.arange(len(draws))[:, None], draws), 1)
    sa, sb = np.sign(a[:, None] - a), np.sign(b[:, None] - b)
    both, one, other = (((times @ signs) * times).sum(1) for signs in (sa * sb, sa**2, sb**2))
    return _ratio(both, one, other)


def _ratio(both: FloatArray, one: FloatArray, other: FloatArray) -> FloatArray:
    norm = np.sqrt(one * other)
    return np.clip(np.divide(both, norm, out=np.zeros_like(norm), where=norm > 0), -1, 1)
