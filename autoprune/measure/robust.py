"""Estimates from noisy times: a quantile with a distribution-free interval, outliers, and drift.

Times have a long upper tail (interrupts, other programs) and no known distribution, so intervals come from order
statistics (David and Nagaraja 2003, "Order Statistics", sec. 7.1): of n independent samples, the number below the
true quantile q is binomial(n, q), whatever the distribution. No resampling, no random numbers.

Neighbouring times are not independent, though: a slow second covers dozens of them. Intervals are therefore widened,
by a factor that was found by measuring the same networks again and again (docs/measuring.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.stats import binom

from autoprune.search_spaces.types import FloatArray

QUANTILE = 0.5
"""THE statistic of a network's times: the median; chosen from data, see docs/measuring.md."""

CONFIDENCE = 0.95

WIDER = 1.5
"""Intervals reach this many times further, as a power of the ratio to the estimate, so that they stay positive."""

OUTLIER = 5.0
"""A time is an outlier where it lies this many robust standard deviations (1.4826 times the median absolute deviation)
above the median. Times far below do not occur: nothing makes a processor faster for one run."""

DRIFT = 1.1
"""Late times differ from early ones where their intervals are disjoint and the estimates lie this factor apart."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value and its 95 % confidence interval, in the same unit."""

    value: float
    low: float
    high: float

    @property
    def accuracy(self) -> float:
        """Half the width of the interval relative to the value: 0.01 = known to ±1 %."""
        return (self.high - self.low) / 2 / self.value if self.value else float("inf")


def estimate(samples: Sequence[float] | FloatArray, quantile: float = QUANTILE) -> Estimate:
    """Return the quantile of `samples` [n] and its interval; times and their ratios are positive.

    With fewer samples than an interval of 95 % needs (6 for the median) it is that of all of them.
    """
    ordered = np.sort(np.asarray(samples, dtype=np.float64))
    low, high = ranks(len(ordered), quantile)
    value = float(np.quantile(ordered, quantile))
    if not value > 0:  # of a clock that is too coarse
        return Estimate(value, float(ordered[low]), float(ordered[high]))
    return Estimate(value, value * float(ordered[low] / value) ** WIDER, value * float(ordered[high] / value) ** WIDER)


@lru_cache(maxsize=1024)
def ranks(n: int, quantile: float) -> tuple[int, int]:
    """Indices into n ascending samples between which the true quantile lies, with each tail at most 2.5 %."""
    tail = (1 - CONFIDENCE) / 2
    below = binom.cdf(np.arange(n), n, quantile)  # at k: P(at most k samples lie below the true quantile)
    low = int((below <= tail).sum()) - 1  # x[k] > quantile means: at most k samples lie below it
    high = int((below < 1 - tail).sum())  # x[k] < quantile means: at least k + 1 samples lie below it
    return max(low, 0), min(high, n - 1)


def spread(samples: Sequence[float] | FloatArray) -> float:
    """Interquartile range relative to the median."""
    q1, median, q3 = np.percentile(samples, [25, 50, 75])
    return float((q3 - q1) / median) if median else float("inf")


def outliers(samples: Sequence[float] | FloatArray) -> list[int]:
    """Indices of the samples far above the others; estimates keep them, since the median hardly feels them."""
    values = np.asarray(samples, dtype=np.float64)
    median = np.median(values)
    deviation = 1.4826 * np.median(np.abs(values - median))
    return [int(index) for index in np.flatnonzero(values > median + OUTLIER * max(deviation, 1e-3 * median))]


def drift(samples: Sequence[float] | FloatArray) -> float | None:
    """Late over early times where the machine changed its speed meanwhile, 1.3 = slower by 30 %; else None.

    Compares the first with the last third; fewer than 18 samples say nothing.
    """
    third = len(samples) // 3
    return changed(estimate(samples[:third]), estimate(samples[-third:])) if third >= 6 else None


def changed(before: Estimate, after: Estimate) -> float | None:
    """`after` over `before` where they differ by more than `DRIFT` and by more than both intervals; else None."""
    if not (before.value > 0 and after.value > 0):
        return None
    factor = after.value / before.value
    if max(factor, 1 / factor) < DRIFT or (before.low <= after.high and after.low <= before.high):
        return None
    return factor
