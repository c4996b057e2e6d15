"""Which units of a group go first: one score per unit, computed once per study.

A criterion takes the rows of a group's producers and returns a score per unit; the least important go first, so every
candidate is a prefix of one ranking per group (nested subnets).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np

from autoprune.search_spaces.errors import unknown
from autoprune.search_spaces.types import FloatArray

Criterion: TypeAlias = Callable[[Sequence[FloatArray], np.random.Generator], FloatArray]
"""Producers' weights of one group, each [units, elements], and a generator -> score per unit [units]."""


def l1(rows: Sequence[FloatArray], rng: np.random.Generator) -> FloatArray:
    """Sum of absolute weights (Li et al. 2017, arXiv:1608.08710, sec. 3.1), each producer scaled to mean 1.

    Differs: the paper ranks one layer; tied layers are averaged after scaling, so that a large one does not rule.
    """
    return _mean_scaled([np.abs(r).sum(1) for r in rows])


def l2(rows: Sequence[FloatArray], rng: np.random.Generator) -> FloatArray:
    """Euclidean norm of the weights (He et al. 2018, arXiv:1808.06866, eq. 2), scaled and averaged as in `l1`."""
    return _mean_scaled([np.sqrt(np.square(r).sum(1)) for r in rows])


def random(rows: Sequence[FloatArray], rng: np.random.Generator) -> FloatArray:
    """Random scores: the baseline every criterion is measured against."""
    return rng.random(len(rows[0]))


def _mean_scaled(scores: Sequence[FloatArray]) -> FloatArray:
    total: FloatArray = np.mean([s / max(float(s.mean()), 1e-30) for s in scores], axis=0)
    return total


CRITERIA: dict[str, Criterion] = {"l1": l1, "l2": l2, "random": random}


def get_criterion(name: str) -> Criterion:
    """The criterion of that name.

    Raises:
        UserError: there is none.
    """
    if name not in CRITERIA:
        raise unknown("importance criterion", name, CRITERIA)
    return CRITERIA[name]
