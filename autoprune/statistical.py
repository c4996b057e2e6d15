"""A statistical bound: stop a candidate that is very likely worse than the incumbent, the trial that sets its alpha.

Both are compared on the same samples. The incumbent's losses p_j are known for all N samples, the candidate's l_j for
those it was evaluated on. Samples are drawn without replacement, each with a probability proportional to its weight
w_j among those that are left. A gambler bets against the hypothesis

    H: the candidate is at least as good as the incumbent, sum of (p_j - l_j) over all samples >= 0.

Before draw t, let R be what is left, W the sum of its weights, and M what the d_j = p_j - l_j of R must add up to at
least for H to hold: minus the sum of those seen. For sample j, drawn with probability w_j / W, the value
Z = d_j * W / w_j has the mean sum over R of d. So under H the mean of M - Z is at most 0, and the capital

    K_t = K_{t-1} * (1 + stake * (M - Z) / (top - M)),    top = max over R of p_j * W / w_j,   0 < stake < 1,

is a non-negative supermartingale from 1: losses are never negative, so Z <= top. So is the mean of several such, one
for each of `_STAKES`. By Ville's inequality the capital ever reaches 1 / error with a probability of at most `error`.

**What is proved.** A candidate that is at least as good as the incumbent is given up with a probability of at most
`error`: whatever the network, the losses (they need no upper bound) and the weights, and although it is checked after
every batch. The error is that of *each candidate*: every trial has an order of its own, drawn from (study seed,
number) when its candidate and its incumbent are fixed, so that even an agent that learns cannot foresee it. Of all
candidates of a study that are as good as their incumbents, at most this share is cut, on average. Where proposals do
not depend on outcomes (random, uniform, bnb, kl), the best of them is lost with a probability of at most `error`.

**Weights** change no proof, only the speed. Two sorts of samples decide: those that the incumbent has wrong, where
alone the candidate can gain, and those that are hard. w_j = p_j + 2 * mean(p) * (1 - 0.9 * rank of j, hardest first,
in [0, 1]): so a random order still comes close to hardest first.

Source: Waudby-Smith & Ramdas 2020, "Estimating means of bounded random variables by betting", arXiv:2010.09686, sec. 5
(without replacement); weights as in Shekhar, Xu, Lipton, Liang & Ramdas 2023, "Risk-limiting financial audits via
weighted sampling without replacement", arXiv:2305.06884; the order is drawn as in Efraimidis & Spirakis 2006.
Differs: one-sided, so that losses need no upper bound; a mean over fixed stakes in the place of a tuned one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from autoprune.search_spaces.types import FloatArray, IntArray

ERROR = 0.05
"""Default chance, at most, that a candidate which is at least as good as the incumbent is cut."""

AUDIT = 0.1
"""Default share of the candidates to be cut that are evaluated to the end all the same."""

_STAKES = np.array([0.05, 0.15, 0.45])
"""Shares of what may be staked. Seven of them, or twenty, saved no more."""

_ORDER = 11
"""Tells the order of a trial from other random numbers of the same trial."""


def weights(incumbent: FloatArray, hardest_first: Sequence[int]) -> FloatArray:
    """How often samples are wanted early, [N], all > 0, from the incumbent's losses [N] and an order of samples."""
    count = len(incumbent)
    rank = np.empty(count)
    rank[np.asarray(hardest_first)] = np.arange(count) / count
    mean = incumbent.mean()
    found: FloatArray = (incumbent + 2 * mean * (1 - 0.9 * rank)) if mean > 0 else np.ones(count)
    return found


def draw_order(weight: FloatArray, seed: int, number: int) -> IntArray:
    """Draw all samples without replacement, each with a probability proportional to its weight among those left.

    The arrival times of independent exponential clocks, with the weights as rates, have this order.
    """
    rng = np.random.default_rng(np.random.SeedSequence((seed, number, _ORDER)))
    order: IntArray = np.argsort(rng.exponential(size=len(weight)) / weight, kind="stable")
    return order


class PairedTest:
    """Bets on the candidate being worse than the incumbent; see above.

    Args:
        incumbent: its losses [N], none below 0, in the order of the draws.
        weight: of the samples, [N], in the same order.
        error: see `ERROR`.

    Attributes:
        capital: the logarithm of what one unit has become.
    """

    def __init__(self, incumbent: FloatArray, weight: FloatArray, error: float) -> None:
        self._incumbent, self._weight = incumbent, weight
        self._rest = np.cumsum(weight[::-1])[::-1]  # W
        self._top = np.maximum.accumulate((incumbent / weight)[::-1])[::-1] * self._rest
        self._enough = -math.log(error)
        self._logs = np.zeros(len(_STAKES))
        self._seen, self._gained = 0, 0.0
        self.capital = 0.0

    def add(self, losses: Sequence[float]) -> bool:
        """Take in the losses of the next samples; return whether the capital has reached 1 / error on the way."""
        part = slice(self._seen, self._seen + len(losses))
        gain = self._incumbent[part] - np.asarray(losses, dtype=np.float64)
        wanted = -(self._gained + np.concatenate([[0.0], np.cumsum(gain)[:-1]]))  # M
        drawn = gain * self._rest[part] / self._weight[part]  # Z
        room = np.maximum(self._top[part] - wanted, 1e-300)
        # Where M reaches top the candidate cannot catch up: the exact bound says so too.
        factor = np.maximum((wanted - drawn) / room, -1.0)
        logs = self._logs[:, None] + np.log1p(_STAKES[:, None] * factor).cumsum(axis=1)
        capitals = np.logaddexp.reduce(logs, axis=0) - math.log(len(_STAKES))
        self._logs, self._seen, self._gained = logs[:, -1], part.stop, self._gained + float(gain.sum())
        self.capital = float(capitals[-1])
        return bool(capitals.max() >= self._enough)
