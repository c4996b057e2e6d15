"""Which subnets to measure: those that together say most about all others.

Shape letters: n candidates, P subnets in the pool, G groups, K features.
"""

from __future__ import annotations

import numpy as np

from autoprune.latency.bayes import Prior, basis
from autoprune.latency.features import Features
from autoprune.search_spaces import Candidate, SearchSpace

POOL = 400
NEAR = 16
NOISE = 0.015
"""Relative spread of a measured subnet around the model that the choice reckons with."""
KINDS, OWN, BEND = 1.0, 0.2, 0.1
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
    """Subnets over the whole range of sizes, each of its size the one that leaves least unknown; the smallest first.

    Greedy A-optimal design along a line: for sizes evenly spread between the smallest subnet and the dense network, in
    an order that halves gaps, of the `NEAR` subnets of a random pool whose guessed time is nearest that one is taken
    after which the relative variance of predictions, averaged over the pool, is smallest. Without the line only tiny
    subnets would be taken: the dense network is known. Nothing is measured for the choice.
    """
    uniform = (space.candidate(float(r)) for r in np.linspace(0.1, 0.95, 18))
    pool = [c for c in dict.fromkeys([space.smallest, *uniform, *mixed(space, POOL, seed)]) if c != space.dense]
    features = Features(space)
    prior = Prior(features.amounts)
    shares = features(space.units(pool))
    guess = np.maximum(shares @ prior.guess, 0.01)
    x = basis(shares, prior.guess) / guess[:, None]
    alone = (x * prior.alone(OWN, BEND))[:, :-1]  # but the jump beside dense, which any subnet shows
    roots = np.concatenate([x @ prior.common(KINDS), alone], axis=1)
    covariance = roots @ roots.T  # [P, P], relative
    free = list(range(len(pool)))
    chosen: list[int] = []
    for position in _halving(min(count, len(pool))):
        size = guess[0] + position * (1 - guess[0])
        near = sorted(free, key=lambda i: abs(guess[i] - size))[:NEAR] if chosen else [0]
        gains = (covariance[:, near] ** 2).sum(0) / (np.diag(covariance)[near] + NOISE**2)
        index = near[int(np.argmax(gains))]
        column = covariance[index] / np.sqrt(covariance[index, index] + NOISE**2)
        covariance = covariance - np.outer(column, column)
        free.remove(index)
        chosen.append(index)
    return [pool[i] for i in chosen]


def _halving(count: int) -> list[float]:
    """Positions in [0, 1): 0, 1/2, 1/4, 3/4, 1/8, ... (van der Corput), so that every beginning is spread."""
    return [float(sum(int(bit) / 2 ** (i + 1) for i, bit in enumerate(reversed(f"{n:b}")))) for n in range(count)]
