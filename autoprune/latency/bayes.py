"""Linear regression on shares with a prior from the roofline: a Gaussian process with linear kernels.

Model, in units of the dense network (``y`` = measured / dense; ``s`` = shares; ``x = s - 1``, 0 for the dense network):

    y = 1 + sum_k (w_k x_k + v_k s_k x_k + u c_k s_k [s_k < 1]) + error,    error ~ N(0, (sigma y)^2 + se^2)

So feature k takes the time w s + v s (s - 1): w in the dense network, nothing at width 0, bent in between by v, since
devices are not equally efficient at all widths. u is what cut ops lose beside dense ones, whose widths are rounder.
The prior mean of w is the roofline's guess c, that of v and u is 0. Weights differ from that by a factor common to all
(sd `COMMON`), by one of each kind and role of op (sd `kinds`), and on their own (sd `own` and `bend`, in shares of c
plus a small part of everything; `JUMP` for u):

    w = c + common c + amounts^T a + own spread b,    v = bend spread d,    u = JUMP e,    common, a, b, d, e normal

So ops that were never cut alone still learn from ops of their kind. `sigma` is the spread that neither measuring nor
the model explains; sigma, kinds, own and bend maximise the marginal likelihood on a fixed grid. The posterior and all
leave-one-out predictions are in closed form (Rasmussen & Williams 2006, "Gaussian Processes for Machine Learning",
equations 2.23, 2.24, 5.8, and 5.10 to 5.12).

Shape letters: N samples, n candidates, K features, A amounts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_solve, solve_triangular

from autoprune.search_spaces.types import FloatArray

COMMON = 1.0
JUMP = 0.05
SIGMAS = (0.01, 0.015, 0.02, 0.03, 0.05, 0.08)
KINDS = (0.1, 0.3, 1.0, 3.0)
BENDS = (0.0, 0.03, 0.1, 0.3, 1.0)
OWN = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
START = (0.015, 1.0, 0.2, 0.03)
"""Where the search for sigma, kinds, own and bend begins."""
FLOOR = 1.0
"""Share of all time that is spread evenly over features for their own deviations: the guess is only a guess."""


@dataclass(frozen=True, slots=True)
class Prior:
    """What is thought of the weights before anything is measured.

    Attributes:
        amounts: guess of the time of each kind and role of op, by feature, [A, K]; sums to 1.
    """

    amounts: FloatArray

    @property
    def guess(self) -> FloatArray:
        """Prior mean of w, [K]."""
        total: FloatArray = self.amounts.sum(0)
        return total

    @property
    def spread(self) -> FloatArray:
        """How far the weights of a feature may be off on their own, for `own` = `bend` = 1, [K]."""
        spread: FloatArray = self.guess + FLOOR / self.amounts.shape[1]
        return spread

    def common(self, kinds: float) -> FloatArray:
        """Changes of all weights (w, v, u) by one standard deviation of what they share, [2 K + 1, 1 + A]."""
        together = np.concatenate([COMMON * self.guess[:, None], kinds * self.amounts.T], axis=1)
        return np.concatenate([together, np.zeros((len(together) + 1, together.shape[1]))])

    def alone(self, own: float, bend: float) -> FloatArray:
        """Standard deviation of each weight's own part, [2 K + 1]."""
        return np.concatenate([own * self.spread, bend * self.spread, [JUMP]])


@dataclass(frozen=True, slots=True)
class Posterior:
    """Weights after the samples, and what is left unknown of them.

    Attributes:
        guess: prior mean of w, [K].
        weights: w, v and u, [2 K + 1].
        common, alone, known: [2 K + 1, 1 + A], [2 K + 1], [2 K + 1, N]: the covariance of the weights is
            common common^T + diag(alone^2) - known known^T.
        sigma: as chosen.
        left_out, left_out_sd: of each sample, predicted from the others, [N].
        evidence: log marginal likelihood, up to a constant.
    """

    guess: FloatArray
    weights: FloatArray
    common: FloatArray
    alone: FloatArray
    known: FloatArray
    sigma: float
    left_out: FloatArray
    left_out_sd: FloatArray
    evidence: float

    def predict(self, shares: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Shares [n, K] -> ratio to dense [n], standard deviation of a new measurement of it [n]; (1, 0) at dense."""
        x = basis(shares, self.guess)
        ratio = 1 + x @ self.weights
        variance = ((x @ self.common) ** 2).sum(1) + (x**2) @ self.alone**2 - ((x @ self.known) ** 2).sum(1)
        noise = np.where(x.any(1), self.sigma * ratio, 0.0)
        return ratio, np.sqrt(np.maximum(variance, 0) + noise**2)


def basis(shares: FloatArray, guess: FloatArray) -> FloatArray:
    """What the weights w, v and u are multiplied by, [n, 2 K + 1]; zeros for the dense network."""
    x = shares - 1
    return np.concatenate([x, shares * x, ((shares * (shares < 1)) @ guess)[:, None]], axis=1)


def fit(shares: FloatArray, ratios: FloatArray, errors: FloatArray, prior: Prior) -> Posterior:
    """Fit to samples.

    Args:
        shares: [N, K].
        ratios: measured / dense, > 0, [N].
        errors: their standard errors, as far as known, [N].
    """
    x = basis(shares, prior.guess)
    mean = np.concatenate([prior.guess, np.zeros(len(prior.guess) + 1)])
    residual = ratios - 1 - x @ mean
    # the covariance of the samples is a sum of parts that do not change from setting to setting
    parts = [x @ root for root in (prior.common(0.0), prior.common(1.0)[:, 1:])]
    fixed, own_only, bend_only = prior.alone(0.0, 0.0), prior.alone(1.0, 0.0), prior.alone(0.0, 1.0)
    parts += [x * fixed, x * (own_only - fixed), x * (bend_only - fixed)]
    common, by_kind, by_jump, by_feature, by_bend = (part @ part.T for part in parts)
    common += by_jump

    def covariance(setting: FloatArray) -> FloatArray:
        sigma, kinds, own, bend = setting
        noise = np.diag((sigma * ratios) ** 2 + errors**2)
        total: FloatArray = common + kinds**2 * by_kind + own**2 * by_feature + bend**2 * by_bend + noise
        return total

    def evidence(setting: FloatArray) -> float:
        factor = np.linalg.cholesky(covariance(setting))
        half = solve_triangular(factor, residual, lower=True, check_finite=False)
        return float(-0.5 * half @ half - np.log(np.diag(factor)).sum())

    setting = _ascend(evidence, (SIGMAS, KINDS, OWN, BENDS), START)
    sigma, kinds, own, bend = map(float, setting)
    factor = np.linalg.cholesky(covariance(setting))
    shared, alone = prior.common(kinds), prior.alone(own, bend)
    cross = shared @ (x @ shared).T + alone[:, None] ** 2 * x.T  # [2 K + 1, N]
    solved = cho_solve((factor, True), residual)
    inverse = cho_solve((factor, True), np.eye(len(ratios)))
    return Posterior(
        guess=prior.guess,
        weights=mean + cross @ solved,
        common=shared,
        alone=alone,
        known=solve_triangular(factor, cross.T, lower=True).T,
        sigma=sigma,
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
