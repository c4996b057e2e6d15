"""What agents that draw from an Optuna sampler share: their trials in a study in memory, and draws from it."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.samplers import BaseSampler
from optuna.trial import TrialState

from autoprune.agents.base import Trial
from autoprune.agents.moves import ratios
from autoprune.agents.table import Table
from autoprune.agents.warm import WarmAgent
from autoprune.search_spaces.budget import Budget
from autoprune.search_spaces.errors import UserError
from autoprune.search_spaces.projection import Space
from autoprune.search_spaces.types import FloatArray


class SamplerAgent(WarmAgent):
    """Tells an Optuna study the executed keep ratios of every trial, and draws wishes from a fresh sampler.

    Executed, not wished for: projection would otherwise show one subnet at many points. A cut trial is told as
    pruned, with its bound as an intermediate value; a failed one is not told. A new sampler is seeded by (seed,
    number) for every proposal, so a resumed study goes on as if unbroken.
    """

    def __init__(self, space: Space, budget: Budget, *, seed: int, table: Table | None = None) -> None:
        super().__init__(space, budget, seed=seed, table=table)
        smallest = (space.level_units[:, 0] / space.level_units[:, -1]).tolist()
        self._distributions: dict[str, BaseDistribution] = {
            group.name: FloatDistribution(least, 1.0) for group, least in zip(space.groups, smallest, strict=True)
        }
        with _quiet():
            self._study = optuna.create_study(direction="maximize")  # in memory
        self.num_usable = 0

    def tell(self, trial: Trial) -> None:
        super().tell(trial)
        if trial.state == "failed":
            return
        cut = trial.state == "cut"
        self._study.add_trial(
            optuna.trial.create_trial(
                state=TrialState.PRUNED if cut else TrialState.COMPLETE,
                value=None if cut else trial.score,
                intermediate_values={0: trial.score} if cut and trial.score is not None else None,
                params=dict(zip(self._distributions, ratios(self.space, trial.candidate).tolist(), strict=True)),
                distributions=self._distributions,
            )
        )
        self.num_usable += 1

    @abstractmethod
    def sampler(self, seed: int) -> BaseSampler:
        """Return a new sampler."""

    def draw(self, rng: np.random.Generator) -> Iterator[FloatArray]:
        """Yield proposals of one new sampler without end: keep ratios, [G]."""
        with _quiet():
            self._study.sampler = self.sampler(int(rng.integers(2**32)))
        while True:
            with _quiet(optuna.logging.ERROR), np.errstate(all="ignore"):  # scores may be of any size
                drawn = self._study.ask(self._distributions)
                self._study.tell(drawn, state=TrialState.FAIL)  # only its ratios are wanted; not modelled
            yield np.array([drawn.params[name] for name in self._distributions])


def check_count(agent: str, name: str, value: int) -> None:
    """Refuse what is not an integer of 1 or more.

    Raises:
        UserError: it is not.
    """
    if not isinstance(value, int) or value < 1:
        raise UserError(f"`{name}` of agent {agent!r} must be an integer of 1 or more, but got {value!r}.")


@contextmanager
def _quiet(level: int = optuna.logging.WARNING) -> Iterator[None]:
    """Keep Optuna from announcing what the user never sees, and leave the user's verbosity as it was."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(max(verbosity, level))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(verbosity)
