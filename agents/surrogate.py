"""A cheap model of the loss of candidates, learnt from trials: rising curves by group, pairs, and what is left.

Shape letters: n trials, G groups, L levels of a group, K curves of a group, p weights.

With c the share of units that a candidate cuts from each group, the loss of a candidate is modelled as

    w_0 + w_T table(c) + sum_g sum_k w_gk curve_k(c_g)  +  sum_g path_g(c_g) + sum_ij b_ij c_i c_j  +  noise

The weights w of the curves are at least 0, since a loss rises with what is cut. Curves are powers of c and, given a
table, the table's own curve of the group. What no such curve can follow is a Gaussian process: paths are Brownian in
c_g, so that any curve can be met, and pairs may help or harm each other. Pairs that share an operation have a variance
of their own, learnt like all the others: one by group (its curves), one each for paths, connected pairs, all pairs, and
noise.

A draw from the posterior is the mode of a perturbed problem: the prior's mean and the data are disturbed by draws from
the prior and the noise, then the problem is solved under the same bounds. Without the bounds that is exact.

Sources: Bayesian linear regression with variances by evidence, MacKay 1992, "Bayesian Interpolation", Neural
Computation 4, and Tipping 2001, JMLR 1; for the process the steps of Zhou et al. 2019, "MM Algorithms for Variance
Components Models", J. Comput. Graph. Stat. 28; perturbed draws: Papandreou and Yuille 2010, "Gaussian sampling
by local perturbations", and Matheron's rule. Differs: bounds on weights, inverse-gamma priors on all variances.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from autoprune.agents.landscape import Landscape
from autoprune.agents.table import Table
from autoprune.search_spaces.projection import Space
from autoprune.search_spaces.types import FloatArray, IntArray

_POWERS = (1, 2, 4)
"""Exponents of the curves."""
_MOST = 300
"""Trials that are modelled at once: the newest half, and the best of the others. The cost grows with their cube."""
_REST = np.array([0.001, 0.03, 0.001, 0.001])
"""First variances of paths, connected pairs, all pairs and noise, of losses scaled to variance 1."""
_USUAL = np.array([0.001, 0.03, 0.001, 1e-5])
"""Where the priors on these variances are highest."""
_WORTH = np.array([1.0, 1.0, 1.0, 2.0])
"""What these priors count: as much as twice so many observations."""
_GROUP = 1.0
"""What the prior on the variance of a group counts, which is the geometric mean of all groups."""
_SLOPE = 1.0
"""Share of the spread of losses that the table's total is expected to explain, before any trial tells."""
_INTERCEPT = 25.0
"""Variance of w_0."""
_ROUNDS = 4
"""Times that the floors of cut trials are looked at again in one solution."""
_FAR = 100.0
"""Gaps to the best loss count up to this many times the median gap."""
_LEAST = 1e-7
"""Smallest variance: it keeps matrices regular."""
_TINY = 1e-300
"""In place of a division by 0."""


@dataclass(frozen=True, slots=True)
class _Told:
    """Trials as the model sees them.

    Attributes:
        candidates: [n, G].
        cut: shares that are cut, c, [n, G].
        features: what the weights are multiplied by: curves, the table's total, 1; [n, p].
        losses: scaled to mean 0 and variance 1, [n].
        floors: where `losses` are lower bounds only, [n].
        kernels: covariances of paths, connected pairs, all pairs and noise, each for a variance of 1, [4, n, n].
        slope: what the weight of the table's total is expected to be.
    """

    candidates: IntArray
    cut: FloatArray
    features: FloatArray
    losses: FloatArray
    floors: NDArray[np.bool_]
    kernels: FloatArray
    slope: float


@dataclass(frozen=True, slots=True)
class _Solved:
    """The mode of the posterior, and the matrices that led to it.

    Attributes:
        known: which trials were used, [n]; m of them.
        weights: w, [p].
        free: weights that are not held at 0, [p].
        alpha: what the process adds is its kernel times this, [m].
        precision: inverse covariance of process and noise, [m, m].
        weighted: precision times features, [m, p].
        inverse: inverse covariance of the weights, [p, p].
    """

    known: NDArray[np.bool_]
    weights: FloatArray
    free: NDArray[np.bool_]
    alpha: FloatArray
    precision: FloatArray
    weighted: FloatArray
    inverse: FloatArray


class Surrogate:
    """Learns from losses of candidates, and tells what losses may be elsewhere.

    Args:
        space: where candidates live.
        table: losses by group and level, None for `Table.stand_in`, whose curves by group are not used.

    Attributes:
        by_group: variances of the weights of the groups' curves [G].
        rest: variances of paths, connected pairs, all pairs and noise, [4]. All of losses scaled to variance 1.
    """

    def __init__(self, space: Space, table: Table | None) -> None:
        units = space.level_units
        self._shares: FloatArray = 1 - units / units[:, -1:]
        self._groups = np.arange(len(units))
        prior = (table or Table.stand_in(space)).padded()
        self._total = prior / max(float(prior.max(axis=1).sum()), _TINY)
        curves = [self._shares**power for power in _POWERS]
        if table is not None:
            curves.append(prior / np.maximum(prior[:, :1], _TINY))
        self._curves: FloatArray = np.stack(curves)  # [K, G, L]
        self._connected = connected(space)
        self._positive = np.append(np.ones(len(curves) * len(units) + 1, dtype=np.bool_), False)
        self.by_group: FloatArray = np.full(len(units), 0.2)
        self.rest: FloatArray = _REST.copy()
        self._told = self._take(np.zeros((0, len(units)), dtype=np.int64), np.zeros(0), np.zeros(0, dtype=np.bool_))

    def learn(self, candidates: IntArray, losses: FloatArray, floors: NDArray[np.bool_], *, steps: int = 1) -> None:
        """Take in all trials so far: candidates [n, G], losses [n], and where those are lower bounds only, [n].

        Variances move `steps` times towards their most likely values, from where the last call left them.
        """
        self._told = self._take(candidates, losses, floors)
        for _ in range(steps if len(losses) > 1 else 0):
            self._move_variances()

    def draw(self, rng: np.random.Generator, scale: float = 1.0) -> Landscape:
        """Return what the losses may be: a draw from the posterior, its deviations times `scale`; 0 gives the mode."""
        told = self._told
        mean, variances = self._prior()
        weights = mean + scale * np.sqrt(variances) * rng.normal(size=len(mean))
        prior = self._draw_rest(rng, scale)
        noise = scale * np.sqrt(self.rest[-1] * told.kernels[-1].diagonal()) * rng.normal(size=len(told.losses))
        known = ~told.floors
        disturbed = told.losses + noise - prior.predict(told.candidates)
        for _ in range(_ROUNDS):
            solved = self._solve(known, disturbed, weights)
            below = told.floors & ~known & (disturbed > self._fitted(solved))
            if not below.any():
                break
            known |= below
        return self._landscape(solved, prior)

    def _take(self, candidates: IntArray, losses: FloatArray, floors: NDArray[np.bool_]) -> _Told:
        if len(losses) > _MOST:
            newest = np.arange(len(losses)) >= len(losses) - _MOST // 2
            order = np.lexsort((losses, newest))
            kept = np.sort(np.concatenate([order[: _MOST // 2], np.flatnonzero(newest)]))
            candidates, losses, floors = candidates[kept], losses[kept], floors[kept]
        num = len(losses)
        cut = self._shares[self._groups, candidates]
        total = self._total[self._groups, candidates].sum(axis=1)
        features = self._curves[:, self._groups, candidates].transpose(1, 0, 2).reshape(num, len(self._positive) - 2)
        scaled = _scaled(losses)
        products = cut @ cut.T
        first, second = np.nonzero(np.triu(self._connected))
        pairs = cut[:, first] * cut[:, second]
        kernels = np.stack(
            [
                (np.add.outer(cut.sum(axis=1), cut.sum(axis=1)) - cdist(cut, cut, "cityblock")) / 2,  # sum of minima
                pairs @ pairs.T,
                (products**2 - (cut**2) @ (cut**2).T) / 2,
                np.diag(_doubt(scaled)),
            ]
        )
        spread = float(total.std()) if num else 0.0
        return _Told(
            candidates,
            cut,
            np.column_stack([features, total, np.ones(num)]),
            scaled,
            floors,
            kernels,
            _SLOPE * min(1 / max(spread, _TINY), 100.0) if spread else 1.0,
        )

    def _prior(self) -> tuple[FloatArray, FloatArray]:
        """Return mean and variances of the weights, [p]."""
        variances = np.tile(self.by_group, len(self._curves))
        slope = self._told.slope
        mean = np.append(np.zeros(len(variances)), [slope, 0.0])
        return mean, np.append(variances, [slope**2, _INTERCEPT])

    def _draw_rest(self, rng: np.random.Generator, scale: float) -> Landscape:
        """Return paths and pairs drawn from the prior."""
        path, near, far = (scale * np.sqrt(self.rest[:3])).tolist()
        steps = -np.diff(self._shares, axis=1, append=0.0)
        walk = rng.normal(size=steps.shape) * np.sqrt(steps)
        drawn = rng.normal(size=(2, len(steps), len(steps)))
        pairs = np.triu(near * self._connected * drawn[0] + far * drawn[1], 1)
        return Landscape(path * np.cumsum(walk[:, ::-1], axis=1)[:, ::-1], pairs + pairs.T, self._shares)

    def _solve(self, known: NDArray[np.bool_], losses: FloatArray, mean: FloatArray) -> _Solved:
        """Return the mode, given the losses [n] of the trials that are `known` [n] and the prior's mean [p]."""
        told, (_, variances) = self._told, self._prior()
        features = told.features[known]
        covariance = np.einsum("k,knm->nm", self.rest, told.kernels)[known][:, known]
        precision = np.linalg.inv(covariance)
        weighted = precision @ features
        inverse = features.T @ weighted + np.diag(1 / variances)
        weights, free = nonnegative(inverse, weighted.T @ losses[known] + mean / variances, self._positive)
        alpha = precision @ (losses[known] - features @ weights)
        return _Solved(known.copy(), weights, free, alpha, precision, weighted, inverse)

    def _fitted(self, solved: _Solved) -> FloatArray:
        """Return the losses of all trials that the solution gives, [n]."""
        kernel = np.tensordot(self.rest[:3], self._told.kernels[:3], 1)[:, solved.known]
        fitted: FloatArray = self._told.features @ solved.weights + kernel @ solved.alpha
        return fitted

    def _landscape(self, solved: _Solved, prior: Landscape) -> Landscape:
        """Return the solution as losses by level and pair, on top of what was drawn from the prior."""
        cut, alpha = self._told.cut[solved.known], solved.alpha
        path, near, far = self.rest[:3].tolist()
        by_curve = solved.weights[:-2].reshape(len(self._curves), -1)
        curves = np.einsum("kg,kgl->gl", by_curve, self._curves) + solved.weights[-2] * self._total
        curves += prior.curves + path * np.einsum("n,ngl->gl", alpha, np.minimum(cut[:, :, None], self._shares))
        pairs = (cut * alpha[:, None]).T @ cut * (near * self._connected + far)
        np.fill_diagonal(pairs, 0)
        return Landscape(curves, prior.pairs + pairs, self._shares)

    def _move_variances(self) -> None:
        """Move all variances one step towards where the evidence and their priors are highest."""
        told, (mean, variances) = self._told, self._prior()
        known = ~told.floors
        if known.sum() < 2:
            return
        solved = self._solve(known, told.losses, mean)
        free = np.flatnonzero(solved.free)
        posterior = np.linalg.inv(solved.inverse[np.ix_(free, free)])
        # curves: the effective number of weights (MacKay), their squares, and the prior: like the other groups
        effective = np.zeros(len(mean))
        effective[free] = 1 - np.diag(posterior) / variances[free]
        count, squares = (
            each[:-2].reshape(len(self._curves), -1).sum(axis=0) for each in (effective, solved.weights**2)
        )
        usual = np.exp(np.log(self.by_group).mean())
        self.by_group = np.clip((squares + 2 * _GROUP * usual) / (count + 2 * _GROUP), _LEAST, 1e4)
        # paths, pairs and noise: a step of the MM algorithm, with the weights integrated out
        within = solved.weighted[:, free]
        whole = solved.precision - within @ posterior @ within.T
        kernels = told.kernels[:, known][:, :, known]
        fit = self.rest**2 * (kernels @ solved.alpha @ solved.alpha)
        trace = np.maximum(kernels.reshape(len(kernels), -1) @ whole.ravel(), _LEAST)
        rest = (np.sqrt(_WORTH**2 + trace * (fit + 2 * _WORTH * _USUAL)) - _WORTH) / trace
        self.rest = np.clip(rest, _LEAST, 1e4)


def connected(space: Space) -> FloatArray:
    """Return 1 for every two groups that share an operation and 0 for others, symmetric [G, G].

    They do where their costs multiply: what both cuts save together is not the sum of what each saves.
    """
    dense = space.num_levels - 1
    num_groups = len(dense)
    alone = np.where(np.eye(num_groups, dtype=np.bool_), 0, dense)
    whole = space.cost("macs", dense[None])[0]
    saved = whole - space.cost("macs", alone)
    pairs = np.zeros((num_groups, num_groups))
    for group in range(num_groups):  # one after the other: the square of many groups would not fit into memory
        both = alone.copy()
        both[:, group] = 0
        together = whole - space.cost("macs", both) - saved - saved[group]
        pairs[group] = np.abs(together) > 1e-9 * whole
    np.fill_diagonal(pairs, 0)
    return pairs


def nonnegative(
    matrix: FloatArray, target: FloatArray, bounded: NDArray[np.bool_]
) -> tuple[FloatArray, NDArray[np.bool_]]:
    """Minimise w A w / 2 - t w with w >= 0 where bounded; return w [p] and which weights are not held at 0, [p].

    Args:
        matrix: A, positive definite, [p, p].
        target: t, [p].
        bounded: which weights may not be negative, [p].

    Source: block principal pivoting, Portugal, Judice and Vicente 1994, Mathematics of Computation 63.
    """
    free = np.ones(len(target), dtype=np.bool_)
    fewest, patience = len(target) + 1, 3
    tolerance = 1e-9 * float(np.abs(target).max(initial=_TINY))
    while True:
        weights = np.zeros(len(target))
        weights[free] = np.linalg.solve(matrix[np.ix_(free, free)], target[free])
        wrong = bounded & np.where(free, weights < 0, matrix @ weights - target < -tolerance)
        count = int(wrong.sum())
        if count < fewest:
            fewest, patience = count, 3
        elif patience:
            patience -= 1
        else:  # one at a time, which ends
            wrong[: np.flatnonzero(wrong)[-1]] = False
        if not count:
            return weights, free
        free ^= wrong


def _scaled(losses: FloatArray) -> FloatArray:
    """Return losses [n], of any size, with mean 0 and variance 1; all 0 where they are equal.

    Losses far beyond the others are drawn in, or nothing else would count.
    """
    if not len(losses):
        return losses
    finite = np.nan_to_num(losses)
    gaps = finite / max(float(np.abs(finite).max()), _TINY)
    gaps -= gaps.min()
    above = gaps[gaps > 0]
    if not len(above):
        return gaps
    gaps = np.minimum(gaps / np.median(above), _FAR)
    scaled: FloatArray = (gaps - gaps.mean()) / gaps.std()
    return scaled


def _doubt(losses: FloatArray) -> FloatArray:
    """Return the variance of the noise of each loss [n], relative to that of the best: they need not fit equally well.

    No model is right everywhere; where it counts is near the best. Gaps to it are measured by their median.
    """
    gaps = losses - losses.min(initial=np.inf)
    above = gaps[gaps > 0]
    doubt: FloatArray = 1 + (gaps / np.median(above)) ** 2 if len(above) else np.ones(len(losses))
    return doubt
