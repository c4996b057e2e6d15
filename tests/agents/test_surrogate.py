from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.optimize import nnls

from autoprune.agents.surrogate import Surrogate, connected, nonnegative
from autoprune.agents.table import Table
from autoprune.search_spaces.types import FloatArray, IntArray
from tests.agents.oracles import random_table
from tests.fakes import FakeSpace, chain_space, random_space, tiny_space


def candidates_of(space: FakeSpace, num: int, seed: int = 0) -> IntArray:
    return np.random.default_rng(seed).integers(0, space.num_levels, size=(num, len(space.groups)))


def told(space: FakeSpace, candidates: IntArray, losses: FloatArray, *, steps: int, table: Table | None) -> Surrogate:
    surrogate = Surrogate(space, table)
    surrogate.learn(candidates, losses, np.zeros(len(losses), dtype=np.bool_), steps=steps)
    return surrogate


def textbook(
    surrogate: Surrogate, space: FakeSpace, table: Table, at: IntArray, losses: FloatArray, to: IntArray
) -> tuple[FloatArray, FloatArray]:
    """Posterior mean and covariance of the losses of `to`, entry by entry, by the formulas for a Gaussian process."""
    losses = (losses - losses.mean()) / losses.std()
    total = table.predict(at) / table.predict(np.zeros_like(at[:1]))[0]
    slope = 1 / total.std()
    paths, near, far, noise = surrogate.rest

    def cut(levels: IntArray) -> list[float]:
        return [1 - g.levels[level] / g.num_units for g, level in zip(space.groups, levels.tolist(), strict=True)]

    def covariance(one: IntArray, other: IntArray) -> float:
        c, d = cut(one), cut(other)
        found: float = 25.0 + slope**2 * share(one) * share(other)
        for group, (x, y) in enumerate(zip(c, d, strict=True)):
            own, whole = table.losses[group], table.losses[group][0]
            curves = (x * y) + (x * y) ** 2 + (x * y) ** 4 + own[one[group]] * own[other[group]] / whole**2
            found += surrogate.by_group[group] * curves + paths * min(x, y)
        for i, j in itertools.combinations(range(len(c)), 2):
            found += (far + near * (j == i + 1)) * c[i] * c[j] * d[i] * d[j]
        return found

    def share(levels: IntArray) -> float:
        return float(table.predict(levels[None])[0] / table.predict(np.zeros_like(levels[None]))[0])

    gaps = losses - losses.min()
    doubt = 1 + (gaps / np.median(gaps[gaps > 0])) ** 2
    known = np.array([[covariance(a, b) for b in at] for a in at]) + noise * np.diag(doubt)
    cross = np.array([[covariance(a, b) for b in at] for a in to])
    prior = np.array([[covariance(a, b) for b in to] for a in to])
    mean = np.array([slope * share(each) for each in to])
    mean += cross @ np.linalg.solve(known, losses - slope * np.array([share(each) for each in at]))
    return mean, prior - cross @ np.linalg.solve(known, cross.T)


def test_without_bounds_mode_and_draws_are_those_of_the_textbook() -> None:
    space = tiny_space()
    table = random_table(space, 1)
    at, to = candidates_of(space, 15), candidates_of(space, 4, seed=1)
    losses = np.random.default_rng(2).random(15)
    surrogate = told(space, at, losses, steps=2, table=table)
    surrogate._positive[:] = False
    mean, covariance = textbook(surrogate, space, table, at, losses, to)
    mode = surrogate.draw(np.random.default_rng(0), 0.0).predict(to)
    assert np.ptp(mode - mean) < 1e-6  # but for the constant, which is the same for all candidates
    rng = np.random.default_rng(3)
    draws = np.array([surrogate.draw(rng).predict(to) for _ in range(3000)])
    contrast = np.eye(4)[1:] - np.eye(4)[0]
    assert np.cov(draws @ contrast.T, rowvar=False) == pytest.approx(
        contrast @ covariance @ contrast.T, rel=0.15, abs=0.03 * np.trace(covariance)
    )


def test_recovers_curves_and_pairs() -> None:
    space = chain_space([32] * 8, step=2)
    rng = np.random.default_rng(0)
    weights, pairs = rng.random(8), np.triu(rng.normal(size=(8, 8)), 1) / 2

    def loss(candidates: IntArray) -> FloatArray:
        cut = 1 - space.units(candidates) / 32
        losses: FloatArray = (weights * cut**3).sum(axis=1) + ((cut @ pairs) * cut).sum(axis=1)
        return losses

    at, to = candidates_of(space, 150), candidates_of(space, 200, seed=1)
    surrogate = Surrogate(space, None)
    for num in range(2, 151):
        surrogate.learn(at[:num], loss(at[:num]), np.zeros(num, dtype=np.bool_))
    predicted = surrogate.draw(rng, 0.0).predict(to)
    assert np.corrcoef(predicted, loss(to))[0, 1] > 0.998


def test_a_floor_counts_where_the_model_lies_below_it_and_nowhere_else() -> None:
    space = tiny_space()
    at = candidates_of(space, 30)
    losses = (1 - space.units(at) / space.level_units[:, -1]).sum(axis=1) ** 2
    middle = int(np.argsort(losses)[15])
    others = np.arange(30) != middle
    only = told(space, at[others], losses[others], steps=0, table=None)
    free = only.draw(np.random.default_rng(0), 0.0).predict(at)

    def with_floor(height: float) -> FloatArray:
        floored = np.where(others, losses, height)
        surrogate = Surrogate(space, None)
        surrogate.learn(at, floored, ~others, steps=0)
        lifted = surrogate.draw(np.random.default_rng(0), 0.0).predict(at)
        relative: FloatArray = lifted - lifted[np.argmin(losses)]
        return relative

    free = free - free[np.argmin(losses)]
    below, above = with_floor(float(losses.min())), with_floor(float(losses.max()))
    assert np.corrcoef(below, free)[0, 1] > 0.9999
    assert above[middle] > below[middle] + 0.05


def test_scores_of_any_size_make_one_model() -> None:
    space = tiny_space()
    at, losses = candidates_of(space, 20), np.random.default_rng(0).random(20)
    models = [told(space, at, scale * losses, steps=3, table=None) for scale in (1.0, 2.0**40, 2.0**900)]
    curves = [model.draw(np.random.default_rng(0)).curves for model in models]
    assert (curves[0] == curves[1]).all()
    assert np.allclose(curves[0], curves[2])


def test_noise_is_told_from_curves() -> None:
    space = chain_space([32] * 4, step=2)
    at = candidates_of(space, 200)
    clean = (1 - space.units(at) / 32).sum(axis=1)
    noisy = clean + 0.3 * np.random.default_rng(0).normal(size=200)
    noises = []
    for losses in (clean, noisy):
        surrogate = Surrogate(space, None)
        for num in range(2, 201):
            surrogate.learn(at[:num], losses[:num], np.zeros(num, dtype=np.bool_))
        noises.append(float(surrogate.rest[-1]))
    assert noises[0] < 1e-3 < 0.01 < noises[1]


@pytest.mark.parametrize("seed", range(20))
def test_nonnegative_finds_what_scipy_finds(seed: int) -> None:
    rng = np.random.default_rng(seed)
    features, target = rng.normal(size=(30, 12)), rng.normal(size=30)
    weights, free = nonnegative(features.T @ features, features.T @ target, np.ones(12, dtype=np.bool_))
    assert weights == pytest.approx(nnls(features, target)[0], abs=1e-9)
    assert (weights[~free] == 0).all()
    assert 0 < free.sum() < 12
    unbounded, _ = nonnegative(features.T @ features, features.T @ target, np.zeros(12, dtype=np.bool_))
    assert unbounded == pytest.approx(np.linalg.lstsq(features, target, rcond=None)[0])


def test_groups_that_share_an_operation_are_connected() -> None:
    chain = np.eye(6, k=1) + np.eye(6, k=-1)
    assert (connected(chain_space([24] * 6, step=4)) == chain).all()
    space = random_space(3, 12, step=8)
    shared = np.zeros((12, 12))
    for op in space.ops:
        if op.source >= 0 and op.target >= 0 and op.source != op.target:
            shared[op.source, op.target] = shared[op.target, op.source] = 1
    assert (connected(space) == shared).all()
