"""Who dominates whom: trials as points of objectives that are all minimised, and the best of them for several.

Shape letters: n trials, K objectives.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from autoprune.agents.base import Trial
from autoprune.search_spaces.types import FloatArray, IntArray


def objective_array(trials: Sequence[Trial], costs: Sequence[str]) -> FloatArray:
    """Objectives to minimise, shape [n, 1 + costs]: minus the score, then each cost of `costs`."""
    rows = [[-(trial.score or 0.0), *(trial.costs[name] for name in costs)] for trial in trials]
    return np.array(rows, dtype=np.float64).reshape(len(trials), 1 + len(costs))


def non_dominated(objectives: FloatArray) -> IntArray:
    """Indices, ascending, of the rows that no other row dominates; of equal rows the first.

    A row dominates another if it is nowhere larger and somewhere smaller.
    """
    # in lexicographic order a row is dominated only by rows before it, or is equal to one
    order = np.lexsort((np.arange(len(objectives)), *objectives.T[::-1]))
    kept = np.empty_like(objectives)
    found: list[int] = []
    for index in order.tolist():
        if not (kept[: len(found)] <= objectives[index]).all(axis=1).any():
            kept[len(found)] = objectives[index]
            found.append(index)
    return np.array(sorted(found), dtype=np.int64)


def crowding(objectives: FloatArray) -> FloatArray:
    """Distance of each row to its neighbours, summed over objectives scaled to [0, 1], [n]; infinite at the ends.

    Source: Deb et al. 2002, "NSGA-II", IEEE Trans. Evolutionary Computation 6, sec. III B.
    """
    distances = np.zeros(len(objectives))
    for values in objectives.T:
        order = np.argsort(values, kind="stable")
        span = values[order[-1]] - values[order[0]]
        distances[order[[0, -1]]] = np.inf
        if span > 0:
            distances[order[1:-1]] += (values[order[2:]] - values[order[:-2]]) / span
    return distances


def leaders(objectives: FloatArray, count: int) -> IntArray:
    """Indices of the `count` best rows, best first: those of the front, then of the front of the rest, and so on.

    Within a front the least crowded come first; of one objective they come in its order, of equal rows the older first.
    """
    if objectives.shape[1] == 1:
        return np.argsort(objectives[:, 0], kind="stable")[:count]
    chosen: list[int] = []
    rest = np.arange(len(objectives))
    while len(chosen) < count and rest.size:
        front = rest[non_dominated(objectives[rest])]
        chosen += front[np.argsort(-crowding(objectives[front]), kind="stable")].tolist()
        rest = np.setdiff1d(rest, front)
    return np.array(chosen[:count], dtype=np.int64)
