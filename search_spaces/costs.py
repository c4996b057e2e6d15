"""Costs as functions: MACs, parameters, size and peak activation memory of a candidate are sums of products of counts.

Nothing is built or run: a cost is a few numpy operations over the kept units, for one candidate or thousands at once.
1 MAC = 1 multiply-add; MACs agree with `torch.utils.flop_counter` (which counts 2 per MAC) on the real subnet.
Memory is the largest sum of activation bytes alive at once while the traced forward pass ran (no gradients kept); the
inputs and the parameters are not in it. Size is the bytes of all parameters and buffers that a state dict holds, each
tied one once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from scipy.sparse import csr_array, vstack

from autoprune.search_spaces.groups import Counts
from autoprune.search_spaces.labels import Field, Labels
from autoprune.search_spaces.tracer import TensorSpec, Trace
from autoprune.search_spaces.types import IntArray

_CHUNK = 2048
"""Candidates evaluated at once: what is computed of them stays in the cache."""


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

    def __call__(self, positions: IntArray) -> IntArray:
        """`positions` [n, fields + 1] (the last column 1) -> values [n, products]."""
        values = np.broadcast_to(self.constants, (len(positions), len(self.constants)))
        for column in self.rows.T:
            values = values * positions[:, column]
        return values


class Sums:
    """Sums of products for many candidates at once; equal products are computed once, constant factors never.

    Args:
        products: as those of `Products`.
        weights: how often each sum counts each product, [sums, products].
    """

    def __init__(self, counts: Counts, products: Iterable[Sequence[int | Field]], weights: Any) -> None:
        listed = Products(counts, products)
        used, rows = np.unique(listed.rows, return_inverse=True)
        rows = rows.reshape(listed.rows.shape)
        # one row per distinct count that varies; all that do not are one row, a one, and part of the constant
        one = csr_array((1, counts.per_unit.shape[1]), dtype=np.int64)
        per_unit = csr_array(vstack([counts.per_unit, one]))[used]  # sparse: a full table grows with the depth squared
        fixed = np.append(counts.fixed, 1)[used]
        varies = np.diff(per_unit.indptr) > 0
        constants = listed.constants * np.where(varies, 1, fixed)[rows].prod(1)
        distinct, same = _distinct_rows(np.where(varies, fixed, 1), per_unit)
        factors = np.sort(same[rows], axis=1)
        factors, place = np.unique(factors, axis=0, return_inverse=True)
        merge = csr_array((constants, (np.arange(len(constants)), place.reshape(-1))), (len(constants), len(factors)))
        self._fixed, self._per_unit = np.where(varies, fixed, 1)[distinct, None], per_unit[distinct]
        self._factors, self._weights = factors.T, csr_array(weights) @ merge

    def __call__(self, units: IntArray) -> IntArray:
        """Kept units [n, groups] -> sums [sums, n]."""
        counts = self._per_unit @ units.T + self._fixed
        values = np.ones((self._factors.shape[1], len(units)), np.int64)
        for row in self._factors:
            values *= counts[row]
        sums: IntArray = self._weights @ values
        return sums


def _distinct_rows(fixed: IntArray, per_unit: csr_array) -> tuple[IntArray, IntArray]:
    """Rows of a sparse table with a column in front: the first of each distinct one, and which of these each row is."""
    known: dict[tuple[int, bytes, bytes], int] = {}
    first: list[int] = []
    same = []
    for row, (start, end) in enumerate(pairwise(per_unit.indptr.tolist())):
        key = (int(fixed[row]), per_unit.indices[start:end].tobytes(), per_unit.data[start:end].tobytes())
        if key not in known:
            known[key] = len(first)
            first.append(row)
        same.append(known[key])
    return np.array(first, np.int64), np.array(same, np.int64)


class CostFunctions:
    """MACs, params, memory and size of a traced model; `names` are the cost names.

    Args:
        parameters: shape and labels of each.
        stored: bytes per element, shape and labels of all parameters and buffers that make the size.
    """

    names = ("macs", "params", "memory", "size")

    def __init__(
        self,
        counts: Counts,
        trace: Trace,
        parameters: Iterable[tuple[Sequence[int], Labels]],
        stored: Iterable[tuple[int, Sequence[int], Labels]],
    ) -> None:
        self._counts = counts
        macs = [product for op in trace.ops for product in op.macs]
        params = [numel(shape, labels) for shape, labels in parameters]
        sizes = [[itemsize, *numel(shape, labels)] for itemsize, shape, labels in stored]
        storages = [(s.dtype.itemsize, *spec_numel(s)) for s in trace.storages]
        self._sums = {
            "macs": Sums(counts, macs, np.ones((1, len(macs)), np.int64)),
            "params": Sums(counts, params, np.ones((1, len(params)), np.int64)),
            "size": Sums(counts, sizes, np.ones((1, len(sizes)), np.int64)),
            "memory": Sums(counts, storages, memory_changes(trace.births, trace.deaths)),
        }

    def positions(self, units: IntArray) -> IntArray:
        """Kept positions of every field, with a column of ones behind them: [n, groups] -> [n, fields + 1]."""
        positions = (self._counts.per_unit @ units.T).T + self._counts.fixed
        return np.concatenate([positions, np.ones((len(units), 1), np.int64)], axis=1)

    def __call__(self, name: str, units: IntArray) -> IntArray:
        """One cost of `n` subnets, from their kept units [n, groups]."""
        return np.concatenate(
            [self._evaluate(name, units[i : i + _CHUNK]) for i in range(0, max(len(units), 1), _CHUNK)]
        )

    def _evaluate(self, name: str, units: IntArray) -> IntArray:
        sums = self._sums[name](units)
        if name == "memory":  # what is alive is the sum of all changes so far
            sums = sums.cumsum(0).max(0, keepdims=True, initial=0)
        total: IntArray = sums[0]
        return total


def numel(shape: Sequence[int], labels: Labels) -> list[int | Field]:
    """Number of elements as factors: the fields, and one int for the other dimensions."""
    covered = {d for f in labels for d in f.dims}
    return [math.prod(size for d, size in enumerate(shape) if d not in covered), *labels]


def spec_numel(spec: TensorSpec) -> list[int | Field]:
    """`numel` of a recorded tensor."""
    return numel(spec.shape, spec.labels)


def memory_changes(births: Sequence[int], deaths: Mapping[int, int]) -> csr_array:
    """What becomes alive (1) and what is gone (-1) from one local peak to the next, [peaks, storages].

    Memory falls only where something dies, so the moments before deaths, and the last one, are the local peaks. One
    entry per birth and death: a table of what is alive would grow with the square of the depth.

    Args:
        births, deaths: as in `Trace`.
    """
    died = np.array(list(deaths.values()), np.int64)
    falls = np.unique(died)
    peaks = np.searchsorted(falls, np.concatenate([np.array(births, np.int64), died]), side="right")
    storages = np.concatenate([np.arange(len(births)), np.array(list(deaths), np.int64)])
    signs = np.repeat([1, -1], [len(births), len(deaths)])
    return csr_array((signs, (peaks, storages)), (len(falls) + 1, len(births)))
