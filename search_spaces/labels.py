"""Labels: which positions of a tensor stay or go together.

Every parameter dimension gets fresh *atoms* (ints). Rules carry them from tensor to tensor and say which atoms must
be united; after the run the connected components are the units of the search space. Atom 0 stands for a position
that always stays.

A `Field` labels one dimension, or several at once as a grid: splitting C channels into (heads, width) keeps every
channel's own atom on a heads x width grid, so that joining them again loses nothing. Only an op that needs one axis
(a batched product over heads, a shuffle) reduces the grid, see `Ties.axis`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from autoprune.search_spaces.types import IntArray

STAYS = 0
"""The atom of positions that always stay."""


@dataclass(frozen=True, slots=True, eq=False)
class Field:
    """Atoms over the dimensions `dims` (ascending) of one tensor; `atoms` has one axis per dimension."""

    dims: tuple[int, ...]
    atoms: IntArray

    def moved(self, new_dims: Sequence[int]) -> Field:
        """The same atoms over `new_dims`, given in the order of `dims`; axes are sorted."""
        order = sorted(range(len(new_dims)), key=new_dims.__getitem__)
        if order == list(range(len(order))):
            return Field(tuple(new_dims), self.atoms)
        return Field(tuple(new_dims[i] for i in order), self.atoms.transpose(order))


Labels = tuple[Field, ...]
"""The fields of one tensor; no dimension is in two of them, a dimension in none always stays whole."""


def field_at(labels: Labels, dim: int) -> Field | None:
    """The field that covers `dim`, if any."""
    return next((f for f in labels if dim in f.dims), None)


def without(labels: Labels, dims: Iterable[int]) -> Labels:
    """The fields that cover none of `dims`."""
    drop = set(dims)
    return tuple(f for f in labels if not drop.intersection(f.dims))


def simplify(atoms: IntArray, dims: Sequence[int]) -> Field | None:
    """A field over those of `dims` along which `atoms` changes; None where every position stays."""
    if not atoms.any():
        return None
    kept = list(dims)
    for axis in reversed(range(atoms.ndim)):
        first = atoms.take([0], axis=axis)
        if len(kept) > 1 and (atoms.shape[axis] == 1 or (atoms == first).all()):
            atoms = first.squeeze(axis)
            del kept[axis]
    return Field(tuple(kept), np.ascontiguousarray(atoms))


@dataclass(frozen=True, slots=True)
class Pin:
    """Atoms that must stay, and why."""

    atoms: IntArray
    reason: str
    module: str
    op: str


@dataclass
class Ties:
    """Collects what must be united, pinned or marked while the model runs; solved once, in `solve`.

    Attributes:
        num_atoms: atoms so far.
        pins: what must stay, and why.
        module, op: what is running, for reasons.
        sides: what lies before a slice, and what behind it: units of the two are never in one group, so that the
            place of a slice follows from how many units are kept, not from which.
    """

    num_atoms: int = 1
    pins: list[Pin] = field(default_factory=list)
    module: str = ""
    op: str = ""
    sides: list[IntArray] = field(default_factory=list)
    _pairs: list[tuple[IntArray, IntArray]] = field(default_factory=list)
    _two: list[IntArray] = field(default_factory=list)
    _inexact: list[IntArray] = field(default_factory=list)
    _produced: list[IntArray] = field(default_factory=list)

    def fresh(self, size: int) -> IntArray:
        """`size` new atoms."""
        atoms = np.arange(self.num_atoms, self.num_atoms + size, dtype=np.int64)
        self.num_atoms += size
        return atoms

    def unite(self, a: IntArray, b: IntArray, reason: str = "meets positions that always stay") -> None:
        """Unite position by position (arrays broadcast); who meets a position that stays, stays."""
        if a is b:
            return
        a, b = np.broadcast_arrays(a, b)
        a, b = a.ravel(), b.ravel()
        differ = a != b
        if not differ.any():
            return
        a, b = a[differ], b[differ]
        meets = (a == STAYS) | (b == STAYS)
        if meets.any():
            self.pin(np.where(a == STAYS, b, a)[meets], reason)
            a, b = a[~meets], b[~meets]
        self._pairs.append((a, b))

    def unite_columns(self, atoms: IntArray, groups: int) -> IntArray:
        """Unite column j of `groups` equal runs of `atoms`, so that the runs stay equal; returns [groups, columns]."""
        columns = atoms.reshape(groups, -1)
        self.unite(columns, columns[:1])
        return columns

    def pin(self, atoms: IntArray, reason: str) -> None:
        """These atoms always stay."""
        if atoms.size:
            self.pins.append(Pin(np.unique(atoms), reason, self.module, self.op))

    def pin_fields(self, labels: Labels, reason: str, dims: Iterable[int] | None = None) -> Labels:
        """The dimensions `dims` stay whole (None: every field is pinned); returns the fields that are left."""
        if dims is None:
            for f in labels:
                self.pin(f.atoms.ravel(), reason)
            return ()
        for dim in dims:
            labels = self.drop_axis(labels, dim, reason)
        return labels

    def drop_axis(self, labels: Labels, dim: int, reason: str) -> Labels:
        """Labels where `dim` may no longer change: a grid loses that axis (what shares the rest is united)."""
        f = field_at(labels, dim)
        if f is None:
            return labels
        rest = without(labels, (dim,))
        if len(f.dims) == 1:
            self.pin(f.atoms, reason)
            return rest
        atoms = np.moveaxis(f.atoms, f.dims.index(dim), 0)
        self.unite(atoms, atoms[:1])
        left = simplify(atoms[0], [d for d in f.dims if d != dim])
        return (*rest, left) if left else rest

    def keep_two(self, atoms: IntArray) -> None:
        """Of the units of these atoms, at least two stay."""
        self._two.append(atoms)

    def mark_inexact(self, atoms: IntArray) -> None:
        """A statistic runs over these positions: cutting some changes what the rest becomes."""
        self._inexact.append(atoms.ravel())

    def mark_produced(self, atoms: IntArray) -> None:
        """These positions are made by the rows of a weight: cutting the rows removes them at the source."""
        self._produced.append(atoms[atoms != STAYS])

    def mark(self) -> int:
        """How many unions there are: `back_to` takes back what came later."""
        return len(self._pairs)

    def back_to(self, mark: int) -> None:
        """Take back every union made since `mark`."""
        del self._pairs[mark:]

    @property
    def produced_atoms(self) -> IntArray:
        """All atoms marked as produced."""
        return np.concatenate([np.empty(0, np.int64), *self._produced])

    def axis(self, labels: Labels, dim: int) -> IntArray | None:
        """Atoms of one axis, shape [size]; a grid is reduced to it: what shares a place on the axis is united."""
        f = field_at(labels, dim)
        if f is None or len(f.dims) == 1:
            return None if f is None else f.atoms
        rows = np.moveaxis(f.atoms, f.dims.index(dim), 0).reshape(f.atoms.shape[f.dims.index(dim)], -1)
        self.unite(rows, rows[:, :1])
        return np.ascontiguousarray(rows[:, 0])

    def reduce_to(self, labels: Labels, dim: int) -> Labels:
        """The labels with the grid over `dim` reduced to that one axis."""
        f = field_at(labels, dim)
        if f is None or len(f.dims) == 1:
            return labels
        atoms = self.axis(labels, dim)
        assert atoms is not None
        return (*without(labels, (dim,)), Field((dim,), atoms))

    def solve(self) -> Solution:
        """Connected components over all atoms."""
        if self._pairs:
            rows = np.concatenate([a for a, _ in self._pairs])
            cols = np.concatenate([b for _, b in self._pairs])
        else:
            rows = cols = np.empty(0, np.int64)
        graph = coo_array((np.ones(len(rows), np.int8), (rows, cols)), shape=(self.num_atoms,) * 2)
        num, component = connected_components(graph, directed=False)

        def touched(arrays: Sequence[IntArray]) -> NDArray[np.bool_]:
            flags = np.zeros(num, bool)
            for atoms in arrays:
                flags[component[atoms]] = True
            return flags

        pinned = touched([pin.atoms for pin in self.pins])
        pinned[component[STAYS]] = True
        return Solution(component, pinned, touched(self._inexact), touched(self._produced), touched(self._two))


@dataclass(frozen=True, slots=True)
class Solution:
    """Components of the atoms: `component` [atoms] -> component; the flags are per component."""

    component: IntArray
    pinned: NDArray[np.bool_]
    inexact: NDArray[np.bool_]
    produced: NDArray[np.bool_]
    two: NDArray[np.bool_]


def reshape(ties: Ties, labels: Labels, shape: Sequence[int], new_shape: Sequence[int]) -> Labels:
    """Labels behind a view: dimensions are matched in blocks of equal size, each block keeps its atoms in order."""
    fields: list[Field] = []
    for old_dims, new_dims in _joined(_blocks(shape, new_shape), labels):
        inside = sorted((f for f in labels if set(f.dims) & set(old_dims)), key=lambda f: f.atoms.size)
        if not inside:
            continue
        for f in inside[:-1]:
            ties.pin(f.atoms.ravel(), "two pruned dimensions are joined by a view")
        f = inside[-1]
        full = np.expand_dims(f.atoms, tuple(i for i, d in enumerate(old_dims) if d not in f.dims))
        full = np.broadcast_to(full, [shape[d] for d in old_dims])
        new = simplify(full.reshape([new_shape[d] for d in new_dims]), new_dims)
        fields += [new] if new else []
    return tuple(fields)


_Block = tuple[list[int], list[int]]


def _joined(blocks: list[_Block], labels: Labels) -> list[_Block]:
    """Blocks that share a grid as one: in C order, several blocks side by side reshape like each alone."""
    for f in labels:
        shared = [block for block in blocks if set(block[0]) & set(f.dims)]
        if len(shared) > 1:
            joined = ([d for old, _ in shared for d in old], [d for _, new in shared for d in new])
            blocks = [block for block in blocks if block not in shared] + [joined]
    return blocks


def _blocks(shape: Sequence[int], new_shape: Sequence[int]) -> list[_Block]:
    """Shortest runs of old and new dimensions with equal products; dimensions of size 1 are left out."""
    old = [d for d, s in enumerate(shape) if s != 1]
    new = [d for d, s in enumerate(new_shape) if s != 1]
    blocks = []
    i = j = 0
    while i < len(old) and j < len(new):
        a, b = [old[i]], [new[j]]
        i, j = i + 1, j + 1
        while (size := math.prod(shape[d] for d in a)) != (new_size := math.prod(new_shape[d] for d in b)):
            if size < new_size:
                a.append(old[i])
                i += 1
            else:
                b.append(new[j])
                j += 1
        blocks.append((a, b))
    return blocks
