"""What the latency of a subnet depends on: sizes of its ops, each as a share of the dense network's.

An op contributes its multiply-adds, the bytes it reads and the bytes it writes: the terms of a roofline. Each is a
product of widths, and as a share of its dense value it no longer depends on what is constant (kernel, image, batch).
So ops with the same widths have the same share; they are one feature, which remembers how much each kind of op adds.

Shape letters: n candidates, G groups, K features, A amounts (kind and role of an op).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

import numpy as np
from scipy.sparse import csr_array

from autoprune.search_spaces import SearchSpace
from autoprune.search_spaces.costs import spec_numel
from autoprune.search_spaces.labels import Field
from autoprune.search_spaces.tracer import Op, TensorSpec
from autoprune.search_spaces.types import FloatArray, IntArray

_NS_PER_MAC = {"depthwise": 0.2}
"""A first guess at what a multiply-add costs (20 per ns, 5 in a depthwise convolution, which re-reads nothing)."""
_NS_PER_BYTE = 0.1
UNTOLD = 0.1
"""Share of the time that follows the guess even where a runtime tells the times of layers."""

_Entry: TypeAlias = tuple[str, str, int, float]
"""(kind and role, module path, feature, guess of the time)."""


class Features:
    """Sizes of the ops of `space` as shares of the dense network's.

    Args:
        step: widths count as rounded up to multiples of this, as the vector units of a device fill up.
        layers: milliseconds by module path inside the dense network, where a runtime tells: better than a guess.

    Attributes:
        amounts: guess of the time of each kind of op in each role [A, K], in shares of all of it: sums to 1.
    """

    def __init__(self, space: SearchSpace, *, step: int = 1, layers: Mapping[str, float] | None = None) -> None:
        self._step = step
        counts = space.counts
        fixed, per_unit, place = _distinct_counts(counts.fixed, counts.per_unit)
        found: dict[tuple[int, ...], int] = {}
        entries: list[_Entry] = []
        for op in space.ops:
            if is_work(op):
                for kind, role, factors, guess in _terms(op):
                    key = tuple(sorted(int(place[counts.row(f)]) for f in factors if isinstance(f, Field)))
                    entries.append((f"{kind} {role}", op.module, found.setdefault(key, len(found)), guess))
        self._fixed, self._per_unit = fixed[:, None], per_unit
        width = max(map(len, found), default=0)
        one = len(fixed)  # a row of ones behind the counts fills products of few factors
        self._rows = np.array([[*key, *[one] * (width - len(key))] for key in found], np.int64).reshape(-1, width)
        entries = _scaled(entries, layers or {})
        names = list(dict.fromkeys(name for name, *_ in entries))
        self.amounts = np.zeros((len(names), len(found)))
        for name, _, feature, guess in entries:
            self.amounts[names.index(name), feature] += guess
        self._dense: FloatArray = self._products(space.units([space.dense]))  # [K, 1]

    def __call__(self, units: IntArray) -> FloatArray:
        """Kept units [n, G] -> shares [n, K]; 1 for all of the dense network."""
        return (self._products(units) / self._dense).T

    def _products(self, units: IntArray) -> FloatArray:
        counts = self._per_unit @ units.T + self._fixed
        if self._step > 1:
            counts = -(-counts // self._step) * self._step
        counts = np.concatenate([counts, np.ones((1, len(units)), np.int64)]).astype(np.float64)
        values = np.ones((len(self._rows), len(units)))
        for column in self._rows.T:
            values *= counts[column]
        return values


def _scaled(entries: list[_Entry], layers: Mapping[str, float]) -> list[_Entry]:
    """Guesses that sum to 1; those of a module sum to about its share of what `layers` says.

    About: a runtime that fused a layer into another may still take longer when it is wider.
    """
    guessed: dict[str, float] = defaultdict(float)
    for _, module, _, guess in entries:
        guessed[module] += guess
    all_guessed, all_told = sum(guessed.values()) or 1.0, sum(layers.get(module, 0.0) for module in guessed)
    factor = dict.fromkeys(guessed, 1 / all_guessed)
    if all_told > 0:
        for module, guess in guessed.items():
            told = layers.get(module, 0.0) / all_told
            factor[module] = UNTOLD / all_guessed + ((1 - UNTOLD) * told / guess if guess else 0.0)
    return [(name, module, feature, guess * factor[module]) for name, module, feature, guess in entries]


def _terms(op: Op) -> Iterator[tuple[str, str, Sequence[int | Field], float]]:
    """(kind, role, factors of the size, nanoseconds) of what one op does."""
    kind = kind_of(op)
    for product in op.macs:
        yield kind, "macs", product, _size(product) * _NS_PER_MAC.get(kind, 0.05)
    reads = [spec for spec in op.args if isinstance(spec, TensorSpec)]
    for role, specs in (("reads", reads), ("writes", op.outputs[:1])):
        for spec in specs:
            factors = spec_numel(spec)
            yield kind, role, factors, _size(factors) * spec.dtype.itemsize * _NS_PER_BYTE


def _size(factors: Sequence[int | Field]) -> float:
    return float(math.prod(f if isinstance(f, int) else f.atoms.size for f in factors))


def kind_of(op: Op) -> str:
    """Ops of one kind are taken to be about equally fast per multiply-add and byte."""
    name = op.func.overloadpacket.__name__
    if name == "convolution":
        weight, groups = op.args[1], op.args[8]
        if groups > 1:
            return "depthwise" if weight.shape[1] == 1 else "grouped convolution"
        return "convolution" if math.prod(weight.shape[2:]) > 1 else "pointwise convolution"
    return {"mm": "linear", "addmm": "linear", "bmm": "product", "baddbmm": "product"}.get(name, "other")


def _distinct_counts(fixed: IntArray, per_unit: csr_array) -> tuple[IntArray, csr_array, IntArray]:
    """Distinct rows of a table of counts, and which of them each row is."""
    known: dict[tuple[int, bytes, bytes], int] = {}
    place: list[int] = []
    first: list[int] = []
    for row, (constant, start, end) in enumerate(zip(fixed, per_unit.indptr, per_unit.indptr[1:], strict=False)):
        key = (int(constant), per_unit.indices[start:end].tobytes(), per_unit.data[start:end].tobytes())
        if key not in known:
            known[key] = len(first)
            first.append(row)
        place.append(known[key])
    return fixed[first], per_unit[first], np.array(place, np.int64)


def is_work(op: Op) -> bool:
    """Does the op compute anything? Views and allocations do not."""
    name = op.func.overloadpacket.__name__
    return bool(op.outputs) and not op.func.is_view and name not in ("empty", "_unsafe_view", "detach", "alias")
