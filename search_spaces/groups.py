"""From labels to groups: which components are units, which units form one group, what stays and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from autoprune.search_spaces.labels import Field, Labels, Solution, Ties
from autoprune.search_spaces.tracer import TensorSpec, Trace, map_specs
from autoprune.search_spaces.types import Frozen, Group, IntArray


@dataclass(frozen=True, slots=True)
class Counts:
    """Kept positions of every distinct field as a linear function of kept units: ``fixed + per_unit @ units``.

    `per_unit` is sparse, [fields, groups], and without zeros: most fields belong to one group. `index` finds a field's
    row by its atoms.
    """

    fixed: IntArray
    per_unit: csr_array
    index: dict[bytes, int]

    def row(self, f: Field) -> int:
        """Row of a field that was seen in the trace."""
        return self.index[f.atoms.tobytes()]


@dataclass(frozen=True, slots=True)
class Linear:
    """A number of kept positions as a function of kept units: ``fixed + sum(factor * units[group])``."""

    fixed: int
    factors: tuple[tuple[int, int], ...]

    def __call__(self, units: Sequence[int]) -> int:
        return self.fixed + sum(factor * units[group] for group, factor in self.factors)

    def scaled(self, numerator: int, denominator: int) -> Linear | None:
        """The number times a fraction; None where that is not always a whole one."""
        parts = [self.fixed * numerator, *(factor * numerator for _, factor in self.factors)]
        if any(part % denominator for part in parts):
            return None
        return Linear(
            parts[0] // denominator,
            tuple((group, part // denominator) for (group, _), part in zip(self.factors, parts[1:], strict=True)),
        )


@dataclass(frozen=True)
class Grouping:
    """Groups in the order in which their first unit was made.

    Attributes:
        group_of: component -> group index, -1 where nothing can be cut.
        unit_of: component -> unit index inside its group.
        pinning_ops: ops that pinned what could be cut otherwise.
        produced_dims: (parameter, dimension) whose positions make units: rows of a linear or convolution weight.
    """

    groups: tuple[Group, ...]
    frozen: tuple[Frozen, ...]
    group_of: IntArray
    unit_of: IntArray
    solution: Solution
    produced_dims: frozenset[tuple[str, int]]
    pinning_ops: frozenset[str]

    def atoms(self, index: int) -> IntArray:
        """All atoms of one group."""
        return np.flatnonzero(self.group_of_atom == index)

    @cached_property
    def group_of_atom(self) -> IntArray:
        """Atom -> group index, -1 where nothing can be cut."""
        group: IntArray = self.group_of[self.solution.component]
        return group

    @cached_property
    def sizes(self) -> IntArray:
        """Units of every group."""
        return np.array([g.num_units for g in self.groups], np.int64)

    def count(self, atoms: IntArray) -> Linear | None:
        """How many of the `atoms` of a field are kept; None where that never changes."""
        group = self.group_of_atom[atoms.ravel()]
        group = group[group >= 0]
        if not len(group):
            return None
        positions = np.bincount(group, minlength=len(self.sizes))
        touched = np.flatnonzero(positions)
        if (positions[touched] % self.sizes[touched]).any():
            return None  # part of a field: its units need not occur equally often
        factors = positions[touched] // self.sizes[touched]
        return Linear(atoms.size - len(group), tuple(zip(touched.tolist(), factors.tolist(), strict=True)))

    def along_axis(self, atoms: IntArray) -> Linear | None:
        """Kept positions along the first axis of a grid [size, ...]; None where it never shrinks, or unevenly."""
        rows = atoms.reshape(len(atoms), -1)
        units = np.where(self.group_of_atom[rows] >= 0, self.solution.component[rows], -1)
        if (units != units[:, :1]).any():
            return None
        return self.count(rows[:, 0])

    @cached_property
    def components(self) -> list[IntArray]:
        """Components of every group, in unit order."""
        found = []
        for index in range(len(self.groups)):
            members = np.flatnonzero(self.group_of == index)
            found.append(members[np.argsort(self.unit_of[members])])
        return found

    def first_atoms(self, index: int) -> IntArray:
        """One atom of every unit of a group, in unit order."""
        atoms: IntArray = self._first_atom[self.components[index]]
        return atoms

    @cached_property
    def _first_atom(self) -> IntArray:
        return np.unique(self.solution.component, return_index=True)[1]


def make_levels(num_units: int, positions: int, align: int, max_levels: int) -> tuple[int, ...]:
    """Allowed unit counts: multiples of a step, and all units.

    The step makes channel counts multiples of `align` (a power of two), but leaves at least eight levels where there
    are that many units, and at most `max_levels`. `positions`: channels per unit.
    """
    step = max(1, align // positions)
    while step > 1 and num_units < 8 * step:
        step //= 2
    while num_units > max_levels * step:
        step *= 2
    return tuple(sorted({*range(step, num_units, step), num_units}))


def collect_fields(traces: Sequence[Trace], parameters: Mapping[str, Labels]) -> list[Field]:
    """Each distinct field (by its atoms) of parameters, of ops and of storages, once."""
    found: dict[bytes, Field] = {}
    seen: set[int] = set()  # most fields are the array of another one
    all_labels: list[Labels] = [*parameters.values()]
    specs: list[TensorSpec] = []
    for trace in traces:
        specs += trace.storages
        for op in trace.ops:
            map_specs((op.args, op.kwargs, op.outputs), specs.append)
            all_labels += [tuple(s for s in product if isinstance(s, Field)) for product in op.macs]
    for labels in (*all_labels, *(spec.labels for spec in specs)):
        for f in labels:
            if id(f.atoms) not in seen:
                seen.add(id(f.atoms))
                found.setdefault(f.atoms.tobytes(), f)
    return list(found.values())


def make_groups(
    ties: Ties,
    solution: Solution,
    parameters: Mapping[str, Labels],
    fields: Sequence[Field],
    *,
    align: int,
    max_levels: int,
) -> Grouping:
    """Units with the same signature form a group.

    The signature of a unit is how often it occurs in each labelled dimension that the trace saw, and on each side of a
    slice. It is compared as a sum of random 64-bit numbers, one per dimension (Zobrist hashing), so that all units are
    handled at once.
    """
    component = solution.component
    num = len(solution.pinned)
    row, atoms = _all_atoms([*(f.atoms for f in fields), *ties.sides])
    keys = np.random.default_rng(0).integers(1, 2**63, len(fields) + len(ties.sides), dtype=np.uint64)
    signature = np.zeros(num, np.uint64)
    np.add.at(signature, component[atoms], keys[row])

    # first atom of every component, and the parameter dimension that owns it
    _, first_atom = np.unique(component, return_index=True)
    owners = _Owners(parameters, ties.produced_atoms, component)
    reasons = _Reasons(ties, component)
    names: set[str] = set()
    prunable = solution.produced & ~solution.pinned
    group_of = np.full(num, -1, np.int64)
    unit_of = np.full(num, -1, np.int64)
    groups: list[Group] = []
    frozen: list[Frozen] = []
    for components in _by_signature(signature, np.flatnonzero(solution.produced), first_atom):
        producers = owners.producers(components[0])
        name = producers[0].rpartition(".")[0] or producers[0]
        if not prunable[components[0]]:
            frozen.append(Frozen(name, len(components), *reasons.of(components)))
        elif len(components) == 1:
            frozen.append(Frozen(name, 1, "one unit only, all its channels are tied", name, ""))
        else:
            positions = owners.positions(component, components[0], producers[0])
            levels = make_levels(len(components), positions, align, max_levels)
            group_of[components] = len(groups)
            unit_of[components] = np.arange(len(components))
            name = _unique(name, names)
            names.add(name)
            groups.append(
                Group(
                    name=name,
                    kind="channels",
                    num_units=len(components),
                    levels=tuple(level for level in levels if level > 1 or not solution.two[components].any()),
                    exact=not bool(solution.inexact[components].any()),
                    producers=producers,
                )
            )
    produced = np.zeros(ties.num_atoms, bool)
    produced[ties.produced_atoms] = True
    produced_dims = frozenset(
        (name, f.dims[0]) for name, labels in parameters.items() for f in labels if produced[f.atoms].any()
    )
    pinning_ops = frozenset(pin.op for pin in ties.pins if solution.produced[component[pin.atoms]].any())
    return Grouping(tuple(groups), _merge(frozen), group_of, unit_of, solution, produced_dims, pinning_ops)


def count_fields(grouping: Grouping, fields: Sequence[Field]) -> Counts:
    """Kept positions per field as a function of kept units; units of a group occur equally often, by signature."""
    sizes = np.array([g.num_units for g in grouping.groups], np.int64)
    row, atoms = _all_atoms([f.atoms for f in fields])
    group = grouping.group_of[grouping.solution.component[atoms]]
    varies = group >= 0
    fixed = np.bincount(row[~varies], minlength=len(fields))
    ones = np.ones(np.count_nonzero(varies), np.int64)
    per_unit = csr_array((ones, (row[varies], group[varies])), (len(fields), len(sizes)))  # what recurs is added up
    assert not (per_unit.data % sizes[per_unit.indices]).any()
    per_unit.data //= sizes[per_unit.indices]
    return Counts(fixed, per_unit, {f.atoms.tobytes(): row for row, f in enumerate(fields)})


def _all_atoms(arrays: Sequence[IntArray]) -> tuple[IntArray, IntArray]:
    """The atoms of all arrays, and the array of each."""
    row = np.repeat(np.arange(len(arrays)), [atoms.size for atoms in arrays])
    return row, np.concatenate([np.empty(0, np.int64), *(atoms.ravel() for atoms in arrays)])


class _Owners:
    """Finds the parameter dimension of an atom; parameter atoms are consecutive."""

    def __init__(self, parameters: Mapping[str, Labels], produced: IntArray, component: IntArray) -> None:
        spans = [(int(f.atoms[0]), name, f.atoms) for name, labels in parameters.items() for f in labels]
        spans.sort(key=lambda span: span[0])
        self.starts = np.array([start for start, _, _ in spans])
        self.names = [name for _, name, _ in spans]
        self.atoms: dict[str, list[IntArray]] = {}
        for _, name, atoms in spans:
            self.atoms.setdefault(name, []).append(atoms)
        made = np.zeros(len(component), bool)
        made[produced] = True
        produced = np.flatnonzero(made)
        self.produced = produced[np.argsort(component[produced], kind="stable")]
        self.components = component[self.produced]  # ascending, so that those of one component are found at once

    def producers(self, of: int) -> tuple[str, ...]:
        """Names of the parameters whose rows make the units of a component, in order of execution."""
        first, last = np.searchsorted(self.components, [of, of + 1])
        spans = np.searchsorted(self.starts, self.produced[first:last], side="right") - 1
        return tuple(dict.fromkeys(self.names[i] for i in spans))

    def positions(self, component: IntArray, of: int, name: str) -> int:
        """How many rows of the parameter `name` one unit has."""
        return max(int(np.count_nonzero(component[atoms] == of)) for atoms in self.atoms[name])


def _by_signature(signature: NDArray[np.uint64], components: IntArray, first_atom: IntArray) -> list[IntArray]:
    """Components split by signature; groups and units in the order of their first atom."""
    ordered = components[np.argsort(first_atom[components], kind="stable")]
    _, first, inverse, sizes = np.unique(signature[ordered], return_index=True, return_inverse=True, return_counts=True)
    runs = np.split(ordered[np.argsort(inverse, kind="stable")], np.cumsum(sizes)[:-1])
    return [runs[i] for i in np.argsort(first, kind="stable")]


class _Reasons:
    """Finds why components stay: the first pin that holds one of them."""

    def __init__(self, ties: Ties, component: IntArray) -> None:
        self.pins = ties.pins
        self.first = np.full(len(component), len(ties.pins), np.int64)
        for index in reversed(range(len(ties.pins))):
            self.first[component[ties.pins[index].atoms]] = index

    def of(self, components: IntArray) -> tuple[str, str, str]:
        """Reason, module and op."""
        index = self.first[components].min()
        if index == len(self.pins):
            return "tied to positions that stay", "", ""
        pin = self.pins[index]
        return pin.reason, pin.module, pin.op


def _unique(name: str, taken: Set[str]) -> str:
    """A second group of the same layer gets a number: two pieces of one convolution, say."""
    return next(n for n in (name, *(f"{name}#{i}" for i in range(2, len(taken) + 3))) if n not in taken)


def _merge(frozen: Sequence[Frozen]) -> tuple[Frozen, ...]:
    """One entry per name and reason."""
    merged: dict[tuple[str, str], Frozen] = {}
    for f in frozen:
        key = (f.name, f.reason)
        known = merged.get(key)
        merged[key] = Frozen(f.name, f.num_units + (known.num_units if known else 0), f.reason, f.module, f.op)
    return tuple(merged.values())
