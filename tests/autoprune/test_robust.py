from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from autoprune.measure.robust import WIDER, Estimate, changed, drift, estimate, outliers, ranks, spread


@pytest.mark.parametrize("quantile", [0.1, 0.5])
@pytest.mark.parametrize("n", [6, 10, 31, 200])
def test_intervals_cover_the_true_quantile(n: int, quantile: float) -> None:
    """Of uniform samples the true quantile is known, and so is how often an interval misses it."""
    low, high = ranks(n, quantile)
    samples = np.sort(np.random.default_rng(0).random((20_000, n)), axis=1)
    too_high, too_low = np.mean(samples[:, low] > quantile), np.mean(samples[:, high] < quantile)
    reachable = low > 0 or (1 - quantile) ** n <= 0.025  # else even the lowest sample is often above the quantile
    assert too_low <= 0.028
    assert too_high <= 0.028 or not reachable
    if reachable and n > 6:  # one rank narrower would miss too often
        assert np.mean(samples[:, low + 1] > quantile) > 0.022
        assert np.mean(samples[:, high - 1] < quantile) > 0.022


def test_the_median_and_its_interval_by_hand() -> None:
    found = estimate([5.0, 1.0, 9.0, 4.0, 2.0, 3.0, 6.0, 7.0, 8.0, 10.0])
    assert ranks(10, 0.5) == (1, 8)  # of 2 to 9: 97.9 %, and of 3 to 8 only 89 %
    assert (found.value, found.low, found.high) == pytest.approx(
        (5.5, 5.5 * (2 / 5.5) ** WIDER, 5.5 * (9 / 5.5) ** WIDER)
    )
    assert estimate([0.0, 0.0, 0.0]).value == 0.0


def test_scaling_times_scales_estimates() -> None:
    samples = np.random.default_rng(1).lognormal(size=40)
    one, two = estimate(samples), estimate(3 * samples)
    assert (two.value, two.low, two.high) == pytest.approx((3 * one.value, 3 * one.low, 3 * one.high))
    assert two.accuracy == pytest.approx(one.accuracy)
    assert spread(3 * samples) == pytest.approx(spread(samples))


def test_outliers_are_those_far_above() -> None:
    quiet = [10.0, 10.1, 9.9, 10.2, 9.8, 10.0, 10.1]
    assert outliers(quiet) == []
    assert outliers([*quiet, 20.0, 10.3, 1.0]) == [7]
    assert outliers([1.0] * 9 + [1.004]) == [], "half a percent is nothing, even beside equal times"


def test_drift_is_late_over_early() -> None:
    rng = np.random.default_rng(2)
    steady = rng.normal(10.0, 0.2, 60)
    slowing = steady * np.where(np.arange(60) < 30, 1.0, 1.3)
    assert drift(steady) is None
    assert drift(slowing) == pytest.approx(1.3, rel=0.03)
    assert drift(slowing[::-1]) == pytest.approx(1 / 1.3, rel=0.03)
    assert drift(slowing[25:40]) is None, "15 samples are too few to say"
    assert drift(rng.normal(10.0, 5.0, 60).clip(1)) is None, "noise is no drift"


def test_changed_needs_both_distance_and_separate_intervals() -> None:
    narrow, near, far = Estimate(10, 9.9, 10.1), Estimate(10.5, 10.4, 10.6), Estimate(13, 12.9, 13.1)
    wide = Estimate(13, 9, 17)
    assert changed(narrow, far) == 1.3
    assert changed(far, narrow) == pytest.approx(1 / 1.3)
    for a, b in [*combinations((narrow, near), 2), (narrow, wide), (wide, narrow)]:
        assert changed(a, b) is None
