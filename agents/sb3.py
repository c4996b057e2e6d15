"""The off-policy algorithms of Stable-Baselines3, asked and told like every other agent.

Only those: they learn from a replay buffer, whoever acted. PPO and other on-policy algorithms may learn only from
actions that they drew themselves, and the ratios of a trial are not those drawn, but projected. For them, and for any
other library, there is the environment, where actions are wishes: `autoprune.agents.env.PruningEnv`.

Shape letters: G groups (steps of an episode), F features.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from autoprune.agents.base import check_count
from autoprune.agents.env import PruningEnv
from autoprune.agents.episodes import EpisodicAgent, isolated, standardised
from autoprune.agents.table import Table
from autoprune.search_spaces.budget import Budget
from autoprune.search_spaces.errors import UserError
from autoprune.search_spaces.projection import Space
from autoprune.search_spaces.types import FloatArray

if TYPE_CHECKING:
    from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

_MOST_TRIALS = 10_000
"""What the replay buffer holds. Its memory is taken as it fills."""


class SB3Agent(EpisodicAgent):
    """Lets an algorithm of Stable-Baselines3 learn from the executed episodes, and walks around its policy.

    The episodes are those of `PruningEnv`: every step's reward is 0 but the last one's, discount 1. Rewards are
    standardised over all trials told, so those in the replay buffer are set anew with every trial. A cut trial counts
    as no better than the worst complete one: its bound lies just below the best score, and taken for a score it would
    look second best.

    Args:
        table: losses by group and level; its best candidate is then the second proposal.
        n_startup: trials with a score or bound before the policy is used, at least 1.
        noise: deviation of the first actions around the deterministic policy.
        decay: factor of the noise per trial, in (0, 1].
        updates: gradient steps per trial, at least 1.
        hidden: units of the two hidden layers of every network, at least 1.

    Source: Raffin et al. 2021, "Stable-Baselines3", JMLR 22.

    Raises:
        UserError: Stable-Baselines3 is not installed.
    """

    algorithm: ClassVar[str]
    """Its name in `stable_baselines3`."""

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
        name = f"sb3:{self.algorithm.lower()}"
        check_count(name, "updates", updates)
        check_count(name, "hidden", hidden)
        super().__init__(
            space, budget, seed=seed, table=table, n_startup=n_startup, noise=noise, decay=decay, name=name
        )
        self._updates = updates
        self._num_stored = 0
        with isolated(seed, 0):
            self._model = _model(self.algorithm, PruningEnv(space, budget, _score_nothing), hidden)

    def policy(self, observations: NDArray[np.float32]) -> FloatArray:
        actions, _ = self._model.predict(observations, deterministic=True)
        ratios: FloatArray = actions[:, 0].astype(np.float64)
        return ratios

    def learn(self) -> None:
        buffer, num_groups = self._model.replay_buffer, len(self.space.groups)
        assert buffer is not None
        for episode in range(self._num_stored, len(self.scores)):
            seen = [*self.observations[episode], self.features.observe(self.actions[episode][None])[0]]
            for step, action in enumerate(self.actions[episode]):
                scaled = self._model.policy.scale_action(np.array([[action]], np.float32))
                done = np.array([step == num_groups - 1])
                buffer.add(seen[step], seen[step + 1], scaled, np.zeros(1), done, [{}])
        self._num_stored = len(self.scores)
        ends = np.arange(1, self._num_stored + 1) * num_groups - 1
        buffer.rewards[ends % buffer.buffer_size, 0] = self._rewards()
        self._model.train(self._updates, batch_size=self._model.batch_size)

    def _rewards(self) -> FloatArray:
        """Return the scores [n], standardised, those of cut trials no better than the worst complete one."""
        scores, cut = np.array(self.scores), np.array(self.cut)
        return standardised(np.where(cut, np.minimum(scores, scores[~cut].min(initial=np.inf)), scores))


class SACAgent(SB3Agent):
    """Soft actor-critic: Haarnoja et al. 2018, arXiv:1812.05905. Everything else as in `SB3Agent`."""

    algorithm = "SAC"


class TD3Agent(SB3Agent):
    """Twin delayed DDPG: Fujimoto et al. 2018, arXiv:1802.09477. Everything else as in `SB3Agent`."""

    algorithm = "TD3"


class SB3DDPGAgent(SB3Agent):
    """DDPG, one-step targets: Lillicrap et al. 2016, arXiv:1509.02971. Everything else as in `SB3Agent`."""

    algorithm = "DDPG"


def _model(algorithm: str, env: PruningEnv, hidden: int) -> OffPolicyAlgorithm:
    """Return an untrained model, which draws its first weights from the global generator of torch.

    Raises:
        UserError: Stable-Baselines3 is not installed.
    """
    try:
        library = importlib.import_module("stable_baselines3")
        from stable_baselines3.common.logger import Logger
    except ImportError:
        raise UserError(
            f"The agent 'sb3:{algorithm.lower()}' needs Stable-Baselines3: pip install 'autoprune[sb3]'. "
            "The agent 'ddpg' needs nothing more than autoprune."
        ) from None
    model: OffPolicyAlgorithm = getattr(library, algorithm)(
        "MlpPolicy",
        env,
        gamma=1.0,
        buffer_size=_MOST_TRIALS * len(env.space.groups),
        policy_kwargs={"net_arch": [hidden, hidden]},
        device="cpu",
    )
    model.set_logger(Logger(folder=None, output_formats=[]))
    return model


def _score_nothing(candidate: object) -> float:
    """The agent uses the environment for its spaces only."""
    raise AssertionError("the environment of an agent is not stepped")
