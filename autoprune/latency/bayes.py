"""Linear regression on shares with a prior from the roofline: a Gaussian process with linear kernels.

Model, in units of the dense network (``y`` = measured / dense, ``x`` = shares - 1, which is 0 for the dense network):

    y = 1 + x . w + error,    error ~ N(0, (sigma y)^2 + se^2)

The weight of a feature is the time that grows with it. Its prior mean is the roofline's guess c; around it, weights
differ by a factor common to all (sd `COMMON`), by one of each kind and role of op (sd `kinds`), and on their own (sd
`own`, in shares of c plus a small part of everything):

    w = c + common c + amounts^T a + diag(spread) b,    common, a, b normal

So ops that were never cut alone still learn from ops of their kind. `sigma` is the spread that neither measuring nor
the model explains; sigma, kinds and own maximise the marginal likelihood on a fixed grid. The posterior and all
leave-one-out predictions are in closed form (Rasmussen & Williams 2006, "Gaussian Processes for Machine Learning",
equations 2.23, 2.24, 5.8, and 5.10 to 5.12).

Shape letters: N samples, K features, A amounts, R = 1 + A + K independent normal numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_solve, solve_triangular

from autoprune.search_spaces.types import FloatArray

COMMON = 1.0
SIGMAS = (0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.08)
KINDS = (0.1, 0.3, 1.0, 3.0)
OWN = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
FLOOR = 1.0
"""Share of all time that is spread evenly over features for their own deviations: the guess is only a guess."""


@dataclass(frozen=True, slots=True)
class Prior:
    """Guess of the time of each kind and role of op, by feature, [A, K]; sums to 1."""

    amounts: FloatArray

    @property
    def guess(self) -> FloatArray:
        """Prior mean of the weights, [K]."""
        total: FloatArray = self.amounts.sum(0)
        return total

    @property
    def spread(self) -> FloatArray:
        """How far the weight of a feature may be off on its own, for `own` = 1, [K]."""
        spread: FloatArray = self.guess + FLOOR / self.amounts.shape[1]
        return spread

    def root(self, kinds: float, own: float) -> FloatArray:
        """Columns that make weights of independent normal numbers, [K, R]."""
        return np.concatenate(
            [COMMON * self.guess[:, None], kinds * self.amounts.T, np.diag(own * self.spread)], axis=1
        )


@dataclass(frozen=True, slots=True)
class Posterior:
    """Weights after the samples, and what is left unknown of them.

    Attributes:
        weights: [K].
        prior_root: [K, R]; known: [K, N]. The covariance of the weights is prior_root prior_root^T - known known^T.
        sigma, kinds, own: as chosen.
        left_out, left_out_sd: of each sample, predicted from the others, [N].
        evidence: log marginal likelihood.
    """

    weights: FloatArray
    prior_root: FloatArray
    known: FloatArray
    sigma: float
    kinds: float
    own: float
    left_out: FloatArray
    left_out_sd: FloatArray
    evidence: float

    def predict(self, shares: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Shares [n, K] -> ratio to dense [n], standard deviation of a new measurement of it [n]; (1, 0) at dense."""
        x = shares - 1
        ratio = 1 + x @ self.weights
        variance = ((x @ self.prior_root) ** 2).sum(1) - ((x @ self.known) ** 2).sum(1)
        noise = np.where((x != 0).any(1), self.sigma * ratio, 0.0)
        return ratio, np.sqrt(np.maximum(variance, 0) + noise**2)


def fit(shares: FloatArray, ratios: FloatArray, errors: FloatArray, prior: Prior) -> Posterior:
    """Fit to samples.

    Args:
        shares: [N, K].
        ratios: measured / dense, > 0, [N].
        errors: their standard errors, as far as known, [N].
    """
    x = shares - 1
    residual = ratios - 1 - x @ prior.guess
    common = COMMON**2 * np.outer(x @ prior.guess, x @ prior.guess)
    by_kind, by_feature = x @ prior.amounts.T, x * prior.spread
    by_kind, by_feature = by_kind @ by_kind.T, by_feature @ by_feature.T

    def covariance(setting: FloatArray) -> FloatArray:
        sigma, kinds, own = setting
        noise = (sigma * ratios) ** 2 + errors**2
        total: FloatArray = common + kinds**2 * by_kind + own**2 * by_feature + np.diag(noise)
        return total

    def evidence(setting: FloatArray) -> float:
        factor = np.linalg.cholesky(covariance(setting))
        half = solve_triangular(factor, residual, lower=True)
        return float(-0.5 * half @ half - np.log(np.diag(factor)).sum())

    setting = _ascend(evidence, (SIGMAS, KINDS, OWN), (SIGMAS[3], 1.0, 0.2))
    sigma, kinds, own = map(float, setting)
    factor = np.linalg.cholesky(covariance(setting))
    root = prior.root(kinds, own)
    cross = root @ (x @ root).T  # [K, N]
    solved = cho_solve((factor, True), residual)
    inverse = cho_solve((factor, True), np.eye(len(ratios)))
    return Posterior(
        weights=prior.guess + cross @ solved,
        prior_root=root,
        known=solve_triangular(factor, cross.T, lower=True).T,
        sigma=sigma,
        kinds=kinds,
        own=own,
        left_out=ratios - solved / np.diag(inverse),
        left_out_sd=1 / np.sqrt(np.diag(inverse)),
        evidence=evidence(setting),
    )


def _ascend(
    value: Callable[[FloatArray], float], grids: Sequence[Sequence[float]], start: Sequence[float]
) -> FloatArray:
    """The best point of a grid as far as changing one coordinate at a time finds it; of equal ones the first."""
    best, best_value = np.array(start), value(np.array(start))
    while True:
        before = best
        for axis, grid in enumerate(grids):
            for entry in grid:
                point = best.copy()
                point[axis] = entry
                if (found := value(point)) > best_value:
                    best, best_value = point, found
        if best is before:
            return best
