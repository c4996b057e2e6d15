"""What agents that draw from an Optuna sampler share: their trials in a study in memory, and draws from it."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.samplers import BaseSampler
from optuna.study import StudyDirection
from optuna.trial import TrialState

from autoprune.agents.base import Trial
from autoprune.agents.table import Table
from autoprune.agents.warm import WarmAgent
from autoprune.search_spaces.budget import Budget
from autoprune.search_spaces.projection import Space
from autoprune.search_spaces.types import FloatArray

_SPENT = "spent share of the budget"
"""A parameter beside those of the groups, by a name that no module has."""


class SamplerAgent(WarmAgent):
    """Tells an Optuna study the executed keep ratios of every trial, and draws wishes from a fresh sampler.

    Executed, not wished for: projection would otherwise show one subnet at many points. A cut trial is told as
    pruned, with its bound as an intermediate value; a failed one is not told. A new sampler is seeded by (seed,
    number) for every proposal, so a resumed study goes on as if unbroken. With `costs` the study has several
    objectives, and what is spent of the budget is one more parameter.
    """

    def __init__(
        self, space: Space, budget: Budget, *, seed: int, table: Table | None = None, costs: Sequence[str] = ()
    ) -> None:
        super().__init__(space, budget, seed=seed, table=table, costs=costs)
        smallest = (space.level_units[:, 0] / space.level_units[:, -1]).tolist()
        self._distributions: dict[str, BaseDistribution] = {
            group.name: FloatDistribution(least, 1.0) for group, least in zip(space.groups, smallest, strict=True)
        }
        if costs:
            self._distributions[_SPENT] = FloatDistribution(0.0, 1.0)
        self._relative = {name: each for name, each in sorted(self._distributions.items()) if not each.single()}
        directions = [StudyDirection.MAXIMIZE, *[StudyDirection.MINIMIZE] * len(costs)]
        with _quiet():
            self._study = optuna.create_study(directions=directions)  # in memory
        self.num_usable = 0

    def tell(self, trial: Trial) -> None:
        super().tell(trial)
        if trial.state == "failed":
            return
        complete = trial.state == "complete"
        scores = [] if trial.score is None else [trial.score]  # none: a cut trial without a bound
        bounds = {} if complete or self.costs else dict(enumerate(scores))  # of several objectives Optuna takes none
        self._study.add_trial(
            optuna.trial.create_trial(
                state=TrialState.COMPLETE if complete else TrialState.PRUNED,
                values=[*scores, *(trial.costs[name] for name in self.costs)] if complete else None,
                intermediate_values=bounds,
                params=dict(zip(self._distributions, self.executed(trial.candidate).tolist(), strict=True)),
                distributions=self._distributions,
                system_attrs=self.attributes(trial),
            )
        )
        self.num_usable += 1

    def attributes(self, trial: Trial) -> dict[str, int]:
        """Return what the sampler would have noted with a trial that it had proposed itself."""
        return {}

    @abstractmethod
    def sampler(self, seed: int) -> BaseSampler:
        """Return a new sampler."""

    def draw(self, rng: np.random.Generator) -> Iterator[FloatArray]:
        """Yield wishes of one new sampler without end, [D]."""
        with _quiet():
            sampler = self.sampler(int(rng.integers(2**32)))
        # Optuna would find it out anew for every proposal, by comparing the distributions of all trials
        sampler.infer_relative_search_space = lambda study, trial: self._relative  # type: ignore[method-assign]
        self._study.sampler = sampler
        while True:
            with _quiet(optuna.logging.ERROR), np.errstate(all="ignore"):  # scores may be of any size
                drawn = self._study.ask(self._distributions)
                self._study.tell(drawn, state=TrialState.FAIL)  # only its ratios are wanted; not modelled
            yield np.array([drawn.params[name] for name in self._distributions])


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
