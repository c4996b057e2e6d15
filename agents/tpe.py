"""Tree-structured Parzen estimators over the keep ratios, by Optuna."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.trial import TrialState

from autoprune.agents.base import Agent, Trial, trial_rng
from autoprune.search_spaces.budget import Budget
from autoprune.search_spaces.errors import UserError
from autoprune.search_spaces.projection import Space
from autoprune.search_spaces.types import Candidate, FloatArray

_REDRAWS = 5
"""Draws from the model, and then at random, before a candidate that was tried already is proposed once more."""


class TPEAgent(Agent):
    """Models the keep ratios of good and of other trials by two densities, and proposes where their ratio is highest.

    The first proposal is the uniform candidate, those up to `n_startup` are random; each is projected onto the
    budget. A trial is told with the keep ratios that were executed, not with those wished for: projection would
    otherwise show one subnet at many points. A cut trial counts as worse than every complete one: its score is only
    bounded from above, by a bound that stopped it just below the best, and taken for a value it would look second
    best. A failed one tells nothing about scores; its candidate is not proposed again.

    A new sampler is seeded by (seed, number) for every proposal, so a resumed study goes on as if unbroken.

    Args:
        n_startup: trials with a score or bound before the model is used, the uniform one among them, at least 1.
        n_ei_candidates: draws from the density of good trials, of which the best is taken.

    Source: Bergstra et al. 2011, "Algorithms for Hyper-Parameter Optimization", NIPS 24, sec. 4; multivariate as in
    Falkner et al. 2018, "BOHB", arXiv:1807.01774, sec. 3.2; both as in `optuna.samplers.TPESampler`. Differs: wishes
    are projected and the executed ratios learnt; warm start; candidates already tried are drawn again.
    """

    def __init__(
        self, space: Space, budget: Budget, *, seed: int, n_startup: int = 10, n_ei_candidates: int = 24
    ) -> None:
        for name, value in (("n_startup", n_startup), ("n_ei_candidates", n_ei_candidates)):
            if not isinstance(value, int) or value < 1:
                raise UserError(f"`{name}` of agent 'tpe' must be an integer of 1 or more, but got {value!r}.")
        super().__init__(space, budget, seed=seed)
        self._n_startup = n_startup
        self._n_ei_candidates = n_ei_candidates
        self._ratios = space.level_units / space.level_units[:, -1:]  # [G, L]
        self._distributions: dict[str, BaseDistribution] = {
            group.name: FloatDistribution(smallest, 1.0)
            for group, smallest in zip(space.groups, self._ratios[:, 0].tolist(), strict=True)
        }
        with _quiet():
            self._study = optuna.create_study(direction="maximize")  # in memory
        self._num_usable = 0
        self._tried: set[Candidate] = set()

    def ask(self, number: int) -> Candidate:
        if not self.trials:
            return self.uniform()
        rng = trial_rng(self.seed, number)
        for wishes in self._wishes(rng):
            candidate = self.project(wishes)
            if candidate not in self._tried:
                break
        return candidate

    def tell(self, trial: Trial) -> None:
        super().tell(trial)
        self._tried.add(trial.candidate)
        if trial.state == "failed":
            return
        ratios = self._ratios[np.arange(len(trial.candidate)), trial.candidate].tolist()
        cut = trial.state == "cut"
        self._study.add_trial(
            optuna.trial.create_trial(
                state=TrialState.PRUNED if cut else TrialState.COMPLETE,
                value=None if cut else trial.score,
                intermediate_values={0: trial.score} if cut and trial.score is not None else None,
                params=dict(zip(self._distributions, ratios, strict=True)),
                distributions=self._distributions,
            )
        )
        self._num_usable += 1

    def _wishes(self, rng: np.random.Generator) -> Iterator[FloatArray]:
        """Yield wishes in the order in which they are to be tried."""
        if self._num_usable >= self._n_startup:
            # n_startup_trials=1: when the model is used is decided here. constant_liar is for unfinished trials of
            # other workers, of which this study has none.
            self._study.sampler = optuna.samplers.TPESampler(
                seed=int(rng.integers(2**32)),
                n_startup_trials=1,
                n_ei_candidates=self._n_ei_candidates,
                multivariate=True,
                constant_liar=False,
            )
            for _ in range(_REDRAWS):
                yield self._draw()
        for _ in range(_REDRAWS):
            yield rng.random(len(self.space.groups))

    def _draw(self) -> FloatArray:
        """Return one proposal of the sampler: keep ratios, [G]."""
        drawn = self._study.ask(self._distributions)
        self._study.tell(drawn, state=TrialState.FAIL)  # only its ratios are wanted; failed trials are not modelled
        return np.array([drawn.params[name] for name in self._distributions])


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Optuna from announcing a study that the user never sees, and leave the user's verbosity as it was."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(max(verbosity, optuna.logging.WARNING))
    try:
        yield
    finally:
        optuna.logging.set_verbosity(verbosity)
