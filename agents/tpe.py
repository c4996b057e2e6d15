"""Tree-structured Parzen estimators over the keep ratios, by Optuna."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np
from optuna.samplers import BaseSampler, TPESampler

from autoprune.agents.base import check_count, trial_rng
from autoprune.agents.samplers import SamplerAgent
from autoprune.agents.table import Table
from autoprune.search_spaces.budget import Budget
from autoprune.search_spaces.projection import Space
from autoprune.search_spaces.types import Candidate, FloatArray

_REDRAWS = 5
"""Draws from the model, and then at random, before a candidate that was tried already is proposed once more."""


class TPEAgent(SamplerAgent):
    """Models the keep ratios of good and of other trials by two densities, and proposes where their ratio is highest.

    The first proposal is the uniform candidate, those up to `n_startup` are random; each is projected onto the
    budget. A trial is told with the keep ratios that were executed, not with those wished for: projection would
    otherwise show one subnet at many points. A cut trial counts as worse than every complete one: its score is only
    bounded from above, by a bound that stopped it just below the best, and taken for a value it would look second
    best. A failed one tells nothing about scores; its candidate is not proposed again.

    A new sampler is seeded by (seed, number) for every proposal, so a resumed study goes on as if unbroken.

    Args:
        table: losses by group and level; its best candidate is then the second proposal.
        costs: to be minimised beside the score; good are then the trials that few dominate.
        n_startup: trials with a score or bound before the model is used, the uniform one among them, at least 1.
        n_ei_candidates: draws from the density of good trials, of which the best is taken.

    Source: Bergstra et al. 2011, "Algorithms for Hyper-Parameter Optimization", NIPS 24, sec. 4; multivariate as in
    Falkner et al. 2018, "BOHB", arXiv:1807.01774, sec. 3.2; both as in `optuna.samplers.TPESampler`. Differs: wishes
    are projected and the executed ratios learnt; warm start; candidates already tried are drawn again.
    """

    def __init__(
        self,
        space: Space,
        budget: Budget,
        *,
        seed: int,
        table: Table | None = None,
        costs: Sequence[str] = (),
        n_startup: int = 10,
        n_ei_candidates: int = 24,
    ) -> None:
        check_count("tpe", "n_startup", n_startup)
        check_count("tpe", "n_ei_candidates", n_ei_candidates)
        super().__init__(space, budget, seed=seed, table=table, costs=costs)
        self._n_startup = n_startup
        self._n_ei_candidates = n_ei_candidates

    def propose(self, number: int) -> Candidate:
        for wishes in self._wishes(trial_rng(self.seed, number)):
            candidate = self.project(wishes)
            if candidate not in self.tried:
                break
        return candidate

    def _wishes(self, rng: np.random.Generator) -> Iterator[FloatArray]:
        """Yield wishes in the order in which they are to be tried."""
        if self.num_usable >= self._n_startup:
            yield from islice(self.draw(rng), _REDRAWS)
        for _ in range(_REDRAWS):
            yield rng.random(self.num_wishes)

    def sampler(self, seed: int) -> BaseSampler:
        # n_startup_trials=1: when the model is used is decided here. constant_liar is for unfinished trials of other
        # workers, of which this study has none.
        return TPESampler(
            seed=seed,
            n_startup_trials=1,
            n_ei_candidates=self._n_ei_candidates,
            multivariate=True,
            constant_liar=False,
        )
