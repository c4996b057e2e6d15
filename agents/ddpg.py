"""The agent of AMC: a policy over groups, and a critic whose gradient it climbs.

Shape letters: n episodes, G groups (steps of an episode), F features.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from autoprune.agents.base import check_count
from autoprune.agents.episodes import EpisodicAgent, isolated, standardised
from autoprune.agents.features import NAMES
from autoprune.agents.table import Table
from autoprune.search_spaces.budget import Budget
from autoprune.search_spaces.projection import Space
from autoprune.search_spaces.types import Candidate, FloatArray

_BATCH = 16
"""Episodes per update."""
_LEARNING_RATE = 1e-3
_WALKS = 8
"""Episodes drawn for a proposal, of which the critic chooses."""
_PREPARE_CANDIDATES = 100
_PREPARE_UPDATES = 300
"""What both networks learn from a table before the first trial: on so many random candidates, in so many steps."""


class DDPGAgent(EpisodicAgent):
    """Learns a policy, features of a group -> its pruning ratio, by the gradient of a critic.

    The critic gives each step a value, and is fitted so that the values of an episode sum to its reward: which group
    earned it is then a regression over all episodes. The actor is trained on what projection makes of its ratios, to
    first order: all are shifted by one number to the cost of the episode. Without that the best policy for the critic
    is to prune nothing anywhere, and what it knows of the groups is lost at the ends of the range.

    Of eight walks, half of them around the policy and half around the best trial, the critic chooses the proposal. With
    the policy alone, some searches stay for ever where the noise left them when it got small.

    A cut trial teaches that its episode earns no more than the bound, and nothing below it. What a failed trial was is
    not proposed again. Both networks also see, one-hot, which group it is.

    Args:
        table: losses by group and level; its best candidate is then the second proposal, and both networks begin with
            what it says of random candidates. The policy is then used from the start, with less noise.
        n_startup: trials with a score or bound before the policy is used, at least 1.
        noise: deviation of the first actions around the policy.
        decay: factor of the noise per trial, in (0, 1].
        updates: training steps per trial, each on 16 episodes, at least 1.
        hidden: units of the two hidden layers of actor and critic, at least 1.

    Source: He et al. 2018, "AMC", arXiv:1802.03494, sec. 3; Lillicrap et al. 2016, arXiv:1509.02971; the sum over an
    episode: Efroni et al. 2021, "Reinforcement Learning with Trajectory Feedback", arXiv:2008.06036. Differs: AMC gives
    every step the reward of the episode and bootstraps, with target networks; here nothing is bootstrapped. Shorter
    warm-up, smaller networks, the actor's shift, the choice among walks.
    """

    def __init__(
        self,
        space: Space,
        budget: Budget,
        *,
        seed: int,
        table: Table | None = None,
        n_startup: int = 10,
        noise: float = 0.5,
        decay: float = 0.96,
        updates: int = 20,
        hidden: int = 64,
    ) -> None:
        check_count("ddpg", "updates", updates)
        check_count("ddpg", "hidden", hidden)
        super().__init__(
            space, budget, seed=seed, table=table, n_startup=n_startup, noise=noise, decay=decay, name="ddpg"
        )
        self._updates = updates
        width = len(NAMES) + len(space.groups)
        with isolated(seed, 0):
            self._actor, self._critic = _network(width, hidden), _network(width + 1, hidden)
        self._actor_optimizer, self._critic_optimizer = (
            torch.optim.Adam(network.parameters(), lr=_LEARNING_RATE, fused=True)
            for network in (self._actor, self._critic)
        )
        self._cost_shares = torch.from_numpy(self.features.cost_shares().astype(np.float32))
        self._which = torch.eye(len(space.groups), dtype=torch.float32, device="cpu")
        if self.table is not None:
            with isolated(seed, 1):
                self._prepare(self.table)

    def policy(self, observations: NDArray[np.float32]) -> FloatArray:
        step = round(float(observations[0, 0]) * len(self._which))  # the feature `index`
        which = self._which[step].expand(len(observations), -1)
        with torch.no_grad():
            ratios = self._act(torch.cat([torch.from_numpy(observations), which], dim=-1))
        wishes: FloatArray = ratios.numpy().astype(np.float64)
        return wishes

    def draw(self, sigma: float, rng: np.random.Generator) -> Candidate:
        """Return the candidate that the critic values most, of walks around the policy and around the best trial."""
        centres = np.full((_WALKS, len(self.space.groups)), np.nan)
        if self.complete:
            best = max(self.complete, key=lambda done: done[0])[1]
            centres[::2] = self.features.actions(np.array([best]))
        candidates = [self.project(1 - actions) for actions in self.walk(sigma, rng, centres)]
        candidates = [candidate for candidate in candidates if candidate not in self.tried] or candidates
        levels = np.array(candidates)
        executed = torch.from_numpy(self.features.actions(levels).astype(np.float32))
        with torch.no_grad():
            values = self._value(self._states(self.features.episodes(levels)), executed)
        return candidates[int(values.argmax())]

    def learn(self) -> None:
        observations, actions = np.stack(self.observations), np.stack(self.actions)
        self._train(self._updates, observations, actions, standardised(np.array(self.scores)), np.array(self.cut))

    def _prepare(self, table: Table) -> None:
        """Train on random candidates with the losses of the table for scores: the same problem, if the table is right.

        Trials told later overwrite it: they alone are trained on.
        """
        ratios = np.random.random((_PREPARE_CANDIDATES, len(self.space.groups)))
        levels = np.array([*self.warm, *map(self.project, ratios)])
        rewards, cut = standardised(-table.predict(levels)), np.zeros(len(levels), np.bool_)
        observations, actions = self.features.episodes(levels), self.features.actions(levels)
        self._train(_PREPARE_UPDATES, observations, actions, rewards, cut)
        self.prepared = True

    def _train(
        self,
        updates: int,
        observations: NDArray[np.float32],
        actions: FloatArray,
        rewards: FloatArray,
        cut: NDArray[np.bool_],
    ) -> None:
        states = self._states(observations)
        executed, earned = (torch.from_numpy(array.astype(np.float32)) for array in (actions, rewards))
        bounds = torch.from_numpy(cut)
        with torch.enable_grad():
            for batch in np.random.randint(len(rewards), size=(updates, _BATCH)):
                self._update(states[batch], executed[batch], earned[batch], bounds[batch])

    def _update(self, states: Tensor, actions: Tensor, rewards: Tensor, cut: Tensor) -> None:
        """One step of both networks, on episodes [n, G, .]."""
        error = self._value(states, actions) - rewards
        error = torch.where(cut, error.relu(), error)  # a bound is met by every value below it
        _step(self._critic_optimizer, error.square().mean())
        wished = self._act(states)
        shift = ((actions - wished) * self._cost_shares).sum(dim=1, keepdim=True)
        _step(self._actor_optimizer, -self._value(states, (wished + shift).clamp(0, 1)).mean())

    def _states(self, observations: NDArray[np.float32]) -> Tensor:
        """Return what the networks see [n, G, F + G]: the features and, one-hot, which group it is."""
        features = torch.from_numpy(observations)
        return torch.cat([features, self._which.expand(len(features), -1, -1)], dim=-1)

    def _act(self, states: Tensor) -> Tensor:
        """Return the pruning ratios of the policy, [n, G]."""
        ratios: Tensor = self._actor(states)[..., 0].sigmoid()
        return ratios

    def _value(self, states: Tensor, actions: Tensor) -> Tensor:
        """Return the predicted rewards of episodes, [n]."""
        steps: Tensor = self._critic(torch.cat([states, actions[..., None]], dim=-1))
        return steps.sum(dim=(-2, -1))


def _network(num_inputs: int, hidden: int) -> nn.Sequential:
    """Return a network of two hidden layers whose outputs begin near 0."""

    def linear(inputs: int, outputs: int) -> nn.Linear:
        return nn.Linear(inputs, outputs, device="cpu", dtype=torch.float32)  # whatever the user set as default

    network = nn.Sequential(linear(num_inputs, hidden), nn.ReLU(), linear(hidden, hidden), nn.ReLU(), linear(hidden, 1))
    with torch.no_grad():
        for parameter in network[-1].parameters():
            parameter.uniform_(-3e-3, 3e-3)
    return network


def _step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
