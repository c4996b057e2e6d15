"""What reinforcement-learning agents share: trials told as episodes, proposals as episodes with noise.

Shape letters: n episodes, G groups (steps of an episode), F features.
"""

from __future__ import annotations

import random
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from autoprune.agents.base import Trial, check_count, trial_rng
from autoprune.agents.features import Features
from autoprune.agents.table import Table
from autoprune.agents.warm import WarmAgent
from autoprune.search_spaces.budget import Budget
from autoprune.search_spaces.errors import UserError
from autoprune.search_spaces.projection import Space
from autoprune.search_spaces.types import Candidate, FloatArray

_LEAST_NOISE = 0.05
"""Below it, episodes would round to candidates that were tried."""
_PREPARED = 0.4
"""Share of the noise that a prepared agent begins with."""


class EpisodicAgent(WarmAgent):
    """Walks through the groups as `PruningEnv` does, each action drawn around that of a policy, and projects the walk.

    After the warm start, proposals are random until `n_startup` trials have a score or a bound. Then the noise is a
    normal distribution truncated to [0, 1], and its deviation falls by the factor `decay` with every such trial. An
    agent that was `prepared` from a table uses its policy from the start, with less noise.

    What is learnt from are the executed actions, the pruning ratios of the candidate: wishes would show one candidate
    at many points, and a trial does not hold them. Failed trials, and cut ones without a bound, teach nothing; their
    candidates are not proposed again.

    Attributes:
        features: what is seen of each group.
        observations, actions: of the episodes told, [G, F] and [G] each.
        scores: of the episodes told; of a cut trial its bound.
        cut: which of the scores are bounds.
        prepared: whether the policy is worth something before anything was told.
    """

    def __init__(
        self,
        space: Space,
        budget: Budget,
        *,
        seed: int,
        table: Table | None,
        n_startup: int,
        noise: float,
        decay: float,
        name: str,
    ) -> None:
        check_count(name, "n_startup", n_startup)
        if not noise > 0:
            raise UserError(f"`noise` of agent {name!r} must be above 0, but got {noise!r}.")
        if not 0 < decay <= 1:
            raise UserError(f"`decay` of agent {name!r} must be above 0 and up to 1, but got {decay!r}.")
        super().__init__(space, budget, seed=seed, table=table)
        self._n_startup, self._noise, self._decay = n_startup, noise, decay
        self.features = Features(space, budget)
        self.observations: list[NDArray[np.float32]] = []
        self.actions: list[FloatArray] = []
        self.scores: list[float] = []
        self.cut: list[bool] = []
        self.prepared = False

    @abstractmethod
    def policy(self, observations: NDArray[np.float32]) -> FloatArray:
        """Return the pruning ratios [n] that the agent believes to be best, in [0, 1], for what it sees [n, F]."""

    @abstractmethod
    def learn(self) -> None:
        """Train on the episodes told; all global generators are seeded for it, and torch has one thread."""

    def propose(self, number: int) -> Candidate:
        rng = trial_rng(self.seed, number)
        beyond = len(self.scores) - self._n_startup
        if beyond < 0 and not self.prepared:
            return self.untried(lambda: self.project(rng.random(len(self.space.groups))), rng)
        first = self._noise * (_PREPARED if self.prepared else 1)
        sigma = max(_LEAST_NOISE, first * self._decay ** max(0, beyond))
        with isolated(self.seed, number):
            return self.untried(lambda: self.draw(sigma, rng), rng)

    def tell(self, trial: Trial) -> None:
        super().tell(trial)
        if trial.state == "failed" or trial.score is None:
            return
        levels = np.array([trial.candidate])
        self.observations.append(self.features.episodes(levels)[0])
        self.actions.append(self.features.actions(levels)[0])
        self.scores.append(trial.score)
        self.cut.append(trial.state == "cut")
        if len(self.scores) >= self._n_startup:
            with isolated(self.seed, trial.number):
                self.learn()

    def draw(self, sigma: float, rng: np.random.Generator) -> Candidate:
        """Return a candidate near the policy."""
        return self.project(1 - self.walk(sigma, rng, np.full((1, len(self.space.groups)), np.nan))[0])

    def walk(self, sigma: float, rng: np.random.Generator, centres: FloatArray) -> FloatArray:
        """Return the actions [n, G] of n episodes, drawn around `centres` [n, G], or the policy where those are NaN."""
        actions = np.zeros((len(centres), 0))
        for centre, drawn in zip(centres.T, rng.random(centres.shape).T, strict=True):
            mean = np.where(np.isnan(centre), self.policy(self.features.observe(actions)), centre)
            low, high = ndtr(-mean / sigma), ndtr((1 - mean) / sigma)
            action = np.clip(mean + sigma * ndtri(low + (high - low) * drawn), 0, 1)
            actions = np.append(actions, action[:, None], axis=1)
        return actions


def standardised(scores: FloatArray) -> FloatArray:
    """Return scores [n] less their mean, over their standard deviation; 0 where all are equal.

    AMC subtracts a moving average, which forgets; here all scores are at hand.
    """
    scores = scores / max(np.abs(scores).max(), 1e-300)  # squares of huge scores would overflow
    centred: FloatArray = scores - scores.mean()
    spread = centred.std()
    return centred / spread if spread > 1e-9 else np.zeros_like(centred)


@contextmanager
def isolated(seed: int, number: int) -> Iterator[None]:
    """Torch on one thread and every global generator seeded by (seed, number), all put back afterwards.

    One thread, so that sums come out the same everywhere; global generators, since torch's initialisation and
    Stable-Baselines3 draw from them.
    """
    words = np.random.SeedSequence((seed, number, 2)).generate_state(3)  # 2: apart from the draws of `trial_rng`
    threads, states = torch.get_num_threads(), (random.getstate(), np.random.get_state())
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(words[0]))
            np.random.seed(words[1])
            random.seed(int(words[2]))
            yield
    finally:
        torch.set_num_threads(threads)
        random.setstate(states[0])
        np.random.set_state(states[1])
