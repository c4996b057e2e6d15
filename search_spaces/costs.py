"""Costs as functions: MACs, parameters and peak activation memory of a candidate are sums of products of counts.

Nothing is built or run: a cost is a few numpy operations over the kept units, for one candidate or thousands at once.
1 MAC = 1 multiply-add; MACs agree with `torch.utils.flop_counter` (which counts 2 per MAC) on the real subnet.
Memory is the largest sum of activation bytes alive at once while the traced forward pass ran (no gradients kept); the
inputs and the parameters are not in it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from autoprune.search_spaces.groups import Counts
from autoprune.search_spaces.labels import Field, Labels
from autoprune.search_spaces.tracer import TensorSpec, Trace
from autoprune.search_spaces.types import IntArray

_CHUNK = 8192
"""Candidates evaluated at once; bounds the working memory."""


class Products:
    """A list of products ``constant * counts[a] * counts[b] * ...``, evaluated for many candidates at once.

    Args:
        products: the factors of each product: ints, and fields (= their kept positions).
    """

    def __init__(self, counts: Counts, products: Iterable[Sequence[int | Field]]) -> None:
        constants, rows = [], []
        for factors in products:
            constants.append(math.prod(f for f in factors if isinstance(f, int)))
            rows.append(sorted(counts.row(f) for f in factors if isinstance(f, Field)))
        width = max(map(len, rows), default=0)
        one = len(counts.fixed)  # a row of ones behind the counts fills products of few factors
        self.constants = np.array(constants, np.int64)
        self.rows = np.array([r + [one] * (width - len(r)) for r in rows], np.int64).reshape(len(rows), width)

    def merged(self) -> Products:
        """Products of the same counts added up: for sums, where each alone is not needed."""
        unique, inverse = np.unique(self.rows, axis=0, return_inverse=True)
        merged = object.__new__(Products)
        merged.rows = unique
        merged.constants = np.zeros(len(unique), np.int64)
        np.add.at(merged.constants, inverse.reshape(-1), self.constants)
        return merged

    def __call__(self, positions: IntArray) -> IntArray:
        """`positions` [n, fields + 1] (the last column 1) -> values [n, products]."""
        values = np.broadcast_to(self.constants, (len(positions), len(self.constants)))
        for column in self.rows.T:
            values = values * positions[:, column]
        return values


class CostFunctions:
    """MACs, params and memory of a traced model; `names` are the cost names."""

    names = ("macs", "params", "memory")

    def __init__(self, counts: Counts, trace: Trace, parameters: Mapping[str, tuple[tuple[int, ...], Labels]]) -> None:
        self._counts = counts
        self._macs = Products(counts, (product for op in trace.ops for product in op.macs)).merged()
        self._params = Products(counts, (numel(shape, labels) for shape, labels in parameters.values())).merged()
        self._storages = Products(counts, ((s.dtype.itemsize, *numel(s.shape, s.labels)) for s in trace.storages))
        self._alive = _alive_matrix(trace)

    def positions(self, units: IntArray) -> IntArray:
        """Kept positions of every field, with a column of ones behind them: [n, groups] -> [n, fields + 1]."""
        # float64 products of small integers are exact and use BLAS, integer ones do not
        varying = units.astype(np.float64) @ self._counts.per_unit.T.astype(np.float64)
        positions = varying.astype(np.int64) + self._counts.fixed
        return np.concatenate([positions, np.ones((len(units), 1), np.int64)], axis=1)

    def __call__(self, name: str, units: IntArray) -> IntArray:
        """One cost of `n` subnets, from their kept units [n, groups]."""
        return np.concatenate(
            [self._evaluate(name, units[i : i + _CHUNK]) for i in range(0, max(len(units), 1), _CHUNK)]
        )

    def _evaluate(self, name: str, units: IntArray) -> IntArray:
        positions = self.positions(units)
        total: IntArray
        if name == "memory":
            sums = self._storages(positions).astype(np.float64) @ self._alive.T
            total = sums.max(1, initial=0).astype(np.int64)
        else:
            total = (self._macs if name == "macs" else self._params)(positions).sum(1)
        return total


def numel(shape: Sequence[int], labels: Labels) -> list[int | Field]:
    """Number of elements as factors: the fields, and one int for the other dimensions."""
    covered = {d for f in labels for d in f.dims}
    return [math.prod(size for d, size in enumerate(shape) if d not in covered), *labels]


def spec_numel(spec: TensorSpec) -> list[int | Field]:
    """`numel` of a recorded tensor."""
    return numel(spec.shape, spec.labels)


def _alive_matrix(trace: Trace) -> NDArray[np.float64]:
    """[moments, storages], 1 where alive; moments whose storages are all alive at a neighbouring one are left out."""
    sets = [frozenset(alive) for alive in trace.alive]
    largest = [
        s for i, s in enumerate(sets)
        if not (i + 1 < len(sets) and s <= sets[i + 1]) and not (i and s < sets[i - 1])
    ]  # fmt: skip
    matrix = np.zeros((len(largest), len(trace.storages)))
    for row, alive in enumerate(largest):
        matrix[row, list(alive)] = 1
    return matrix
