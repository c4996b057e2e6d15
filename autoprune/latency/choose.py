"""Which subnets to measure: those that together say most about all others.

Shape letters: n candidates, P subnets in the pool, G groups, K features.
"""

from __future__ import annotations

import numpy as np

from autoprune.latency.bayes import Prior
from autoprune.latency.features import Features
from autoprune.search_spaces import Candidate, SearchSpace

POOL = 400
NOISE = 0.015
"""Relative spread of a measured subnet around the model that the choice reckons with."""
KINDS, OWN = 1.0, 0.2
"""What the choice takes ops to deviate by: see `bayes`."""


def mixed(space: SearchSpace, count: int, seed: int) -> list[Candidate]:
    """Distinct random subnets whose groups differ: a mean keep ratio for each subnet, and widely spread ones around it.

    Ratios are drawn from a beta distribution with as much spread as a uniform one has. Fewer than `count` where the
    space is small.
    """
    rng = np.random.default_rng((seed, count))
    chosen: dict[Candidate, None] = {}
    for _ in range(20 * count):
        if len(chosen) >= count:
            break
        mean = rng.uniform(0.2, 0.95)
        ratios = rng.beta(2 * mean, 2 * (1 - mean), len(space.groups))
        chosen[space.candidate({g.name: float(r) for g, r in zip(space.groups, ratios, strict=True)})] = None
    chosen.pop(space.dense, None)
    return list(chosen)


def informative(space: SearchSpace, count: int, seed: int) -> list[Candidate]:
    """The smallest subnet, then those of a random pool that leave least unknown about the pool.

    Greedy A-optimal design: each choice is the one after which the relative variance of the prediction, averaged over
    the pool, is smallest. It needs no measurement. The pool: mixed and uniform subnets.
    """
    uniform = (space.candidate(float(r)) for r in np.linspace(0.1, 0.95, 18))
    pool = list(dict.fromkeys([space.smallest, *uniform, *mixed(space, POOL, seed)]))
    pool = [c for c in pool if c != space.dense]
    features = Features(space)
    prior = Prior(features.amounts)
    x = features(space.units(pool)) - 1
    roots = (x @ prior.root(KINDS, OWN)) / np.maximum(1 + x @ prior.guess, 0.02)[:, None]
    covariance = roots @ roots.T  # [P, P], relative
    chosen: list[int] = []
    free = np.ones(len(pool), np.bool_)
    for number in range(min(count, len(pool))):
        gains = (covariance**2).sum(0) / (np.diag(covariance) + NOISE**2)
        index = 0 if number == 0 else int(np.argmax(np.where(free, gains, -np.inf)))
        covariance = covariance - np.outer(covariance[index], covariance[index]) / (covariance[index, index] + NOISE**2)
        free[index] = False
        chosen.append(index)
    return [pool[i] for i in chosen]
