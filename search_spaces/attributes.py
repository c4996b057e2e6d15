"""Python numbers that repeat a size: where they are, and what they become after a cut.

A layer keeps sizes beside its tensors (``out_channels``, ``num_heads``), and its code works with them. Two kinds:

- *declared* ones are known by name, as the field's layers use them, and repeat a size of the layer's own weight;
- *derived* ones are any other int, or entry of a tuple or list, whose value is a size that a cut changes, in an op that
  the module ran. The value alone may deceive, so every reading is proven by running (`proof`), and another one is taken
  where it fails.

Nothing here knows a module class.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from torch import nn

from autoprune.search_spaces.groups import Grouping, Linear
from autoprune.search_spaces.labels import Labels, field_at
from autoprune.search_spaces.tracer import Op, TensorSpec, map_specs
from autoprune.search_spaces.types import IntArray

_OUT = ("out_channels", "out_features", "num_features", "num_channels", "num_groups", "embedding_dim", "nf")
_IN = ("in_channels", "in_features", "nx")
_NEVER = frozenset(
    ("kernel_size", "stride", "padding", "dilation", "output_padding", "padding_idx", "num_embeddings", "num_groups")
)
"""Numbers that never repeat a count of channels, whatever their value."""


@dataclass(frozen=True, slots=True)
class Place:
    """A number: attribute `name` of the module `path`, at `index` where it stands in a tuple or list."""

    path: str
    name: str
    index: int | None
    value: int


@dataclass(frozen=True, slots=True)
class Site:
    """A number that follows the kept units."""

    place: Place
    size: Linear


Choice: TypeAlias = dict[tuple[type, str, int | None], int | None]
"""By class, name and index of a number: which of its readings holds, None for no one."""


@dataclass(slots=True)
class Attributes:
    """All numbers of a traced model that may repeat a size.

    Attributes:
        kinds: module path -> its class, to treat modules with the same code alike.
        users: module path -> the module whose code uses its numbers.
        declared: place, atoms counted, and the factor from positions to the number (numerator, denominator).
        derived: place -> readings, the likeliest first; each the atoms along one axis of a tensor, [size, ...].
        chosen: where another reading than the first holds.
    """

    kinds: dict[str, type]
    users: dict[str, str] = field(default_factory=dict)
    declared: list[tuple[Place, IntArray, tuple[int, int]]] = field(default_factory=list)
    derived: dict[Place, list[IntArray]] = field(default_factory=dict)
    chosen: Choice = field(default_factory=dict)

    def key(self, place: Place) -> tuple[type, str, int | None]:
        """Modules of one class read a number alike."""
        return (self.kinds[place.path], place.name, place.index)

    def readings(self, place: Place, grouping: Grouping) -> list[Linear]:
        """What a derived number may follow, each once."""
        found: dict[Linear, None] = {}
        for atoms in self.derived[place]:
            size = grouping.along_axis(atoms)
            if size is not None:
                found.setdefault(size)
        return list(found)

    def sites(self, grouping: Grouping) -> list[Site]:
        """The numbers that change with the units, as chosen."""
        found = []
        for place, atoms, (num, den) in self.declared:
            size = grouping.count(atoms)
            if size is not None and (scaled := size.scaled(num, den)) is not None:
                found.append(Site(place, scaled))
        for place in self.derived:
            choice = self.chosen.get(self.key(place), 0)
            readings = self.readings(place, grouping)
            if choice is not None and choice < len(readings):
                found.append(Site(place, readings[choice]))
        return found

    def alternatives(self, path: str, grouping: Grouping) -> tuple[list[Choice], list[Choice]]:
        """Other choices for the numbers of one module: one number read differently; all of one name left alone."""
        others: list[Choice] = []
        alone: dict[str, Choice] = {}
        for place in self.derived:
            if path in (place.path, self.users[place.path]):
                key = self.key(place)
                count = len(self.readings(place, grouping))
                others += [{key: choice} for choice in range(count) if choice != self.chosen.get(key, 0)]
                if count and self.chosen.get(key, 0) is not None:
                    alone.setdefault(place.name, {})[key] = None
        return others, list(alone.values())


def find_attributes(model: nn.Module, parameters: Mapping[str, Labels], ops: Iterable[Op]) -> Attributes:
    """Collect the numbers of all modules, and the sizes that each module's own ops saw."""
    modules = dict(model.named_modules())
    found = Attributes({path: type(module) for path, module in modules.items()})
    names = {id(t): name for name, t in (*model.named_buffers(), *model.named_parameters())}
    wanted: dict[str, list[Place]] = {}
    for path, module in modules.items():
        declared = list(_declared(path, module, names, parameters))
        found.declared += declared
        known = {(place.name, place.index) for place, _, _ in declared}
        weight = module._parameters.get("weight")
        if weight is not None and weight.dim() > 1:
            known.add(("groups", None))  # channels of a group may be as many as groups: only the weight's shape tells
        places = [p for p in _numbers(path, module) if (p.name, p.index) not in known]
        if places:
            wanted[path] = places
    ops = list(ops)
    active = {"", *(op.module for op in ops)}
    values: dict[str, set[int]] = {}
    for path, places in wanted.items():
        # A module without ops of its own holds things, or others call its methods: the code is that of one around it.
        found.users[path] = user = _ancestor(path, active)
        values.setdefault(user, set()).update(place.value for place in places)
    sizes = _sizes(ops, values)
    for path, places in wanted.items():
        for place in places:
            into, out = sizes.get((found.users[path], place.value), ([], []))
            readings = (*into, *out) if place.name in _IN else (*out, *into)
            if readings:
                found.derived[place] = list(readings)
    return found


def _ancestor(path: str, among: set[str]) -> str:
    while path not in among:
        path = path.rpartition(".")[0]
    return path


def changes(model: nn.Module, sites: Sequence[Site], units: IntArray) -> list[tuple[str, str, Any]]:
    """(module path, attribute, value) for every number that differs from the dense model's, at kept `units` [G]."""
    values: dict[tuple[str, str], Any] = {}
    kept = units.tolist()
    for site in sites:
        place, value = site.place, site.size(kept)
        if value == place.value:
            continue
        key = (place.path, place.name)
        if place.index is None:
            values[key] = value
        else:
            old = values.get(key, vars(model.get_submodule(place.path))[place.name])
            values[key] = type(old)((*old[: place.index], value, *old[place.index + 1 :]))
    return [(path, name, value) for (path, name), value in values.items()]


def _numbers(path: str, module: nn.Module) -> Iterator[Place]:
    for name, value in vars(module).items():
        if name in _NEVER:
            continue
        if type(value) is int:
            entries: Iterable[tuple[int | None, int]] = ((None, value),)
        elif isinstance(value, tuple | list) and len(value) <= 8 and all(type(entry) is int for entry in value):
            entries = enumerate(value)
        else:
            continue
        yield from (Place(path, name, index, entry) for index, entry in entries if entry > 1)


def _declared(
    path: str, module: nn.Module, names: Mapping[int, str], parameters: Mapping[str, Labels]
) -> Iterator[tuple[Place, IntArray, tuple[int, int]]]:
    """Known names, read from the dimensions of the module's own weight (a norm without one: running mean)."""
    own = {**module._buffers, **module._parameters}
    tensor = own.get("weight")
    tensor = own.get("running_mean") if tensor is None else tensor
    if tensor is None or not tensor.dim():
        return
    attributes, rank = vars(module), tensor.dim()
    groups, transposed = attributes.get("groups", 1), bool(attributes.get("transposed", False))
    if type(groups) is not int or groups < 1:
        groups = 1
    into, out = (0, 1) if transposed or "nf" in attributes else (1, 0)
    sizes: list[tuple[str, int, tuple[int, int]]]
    if rank == 1:
        # As many groups as channels: an instance norm.
        sizes = [(name, 0, (1, 1)) for name in (*_OUT, "normalized_shape", "num_groups")]
    elif attributes.get("embedding_dim") == tensor.shape[1]:
        sizes = [("embedding_dim", 1, (1, 1))]
    else:
        channels = tensor.shape[into] * (1 if transposed else groups)
        # Depthwise: one input channel a group, so the number of groups is that of the channels.
        depthwise = 1 < groups == channels
        spread = 1 if depthwise else groups
        sizes = [(name, out, (spread if transposed else 1, 1)) for name in _OUT]
        if depthwise:
            multiplier = 1 if transposed else tensor.shape[0] // groups
            sizes += [(name, 0, (1, multiplier)) for name in (*_IN, "groups")]
            if transposed:
                sizes[: len(_OUT)] = [(name, 0, (tensor.shape[1], 1)) for name in _OUT]
        else:
            sizes += [(name, into, (1 if transposed else groups, 1)) for name in _IN]
    labels = parameters.get(names.get(id(tensor), ""), ())
    for name, dim, factor in sizes:
        value, index = attributes.get(name), None
        if name == "normalized_shape" and isinstance(value, tuple | list) and len(value) == 1:
            value, index = value[0], 0
        f = field_at(labels, dim)
        if type(value) is int and f is not None and value * factor[1] == tensor.shape[dim] * factor[0]:
            yield Place(path, name, index, value), f.atoms, factor


def _sizes(
    ops: Iterable[Op], wanted: Mapping[str, set[int]]
) -> dict[tuple[str, int], tuple[list[IntArray], list[IntArray]]]:
    """(module, size) -> atoms along every labelled axis of that size, of inputs and of outputs of the module's ops."""
    found: dict[tuple[str, int], tuple[list[IntArray], list[IntArray]]] = {}
    seen: set[tuple[str, int, int]] = set()  # by identity, which is quick
    known: set[tuple[str, int, bytes]] = set()
    for op in ops:
        values = wanted.get(op.module)
        if values is None:
            continue
        into: list[TensorSpec] = []
        map_specs((op.args, op.kwargs), into.append)
        for specs, is_output in ((into, False), (op.outputs, True)):
            for spec in specs:
                for f in spec.labels:
                    for axis, size in enumerate(f.atoms.shape):
                        if size not in values or (op.module, id(f.atoms), axis) in seen:
                            continue
                        seen.add((op.module, id(f.atoms), axis))
                        atoms = np.moveaxis(f.atoms, axis, 0).reshape(size, -1)
                        content = (op.module, size, atoms.tobytes())
                        if content not in known:
                            known.add(content)
                            found.setdefault((op.module, size), ([], []))[is_output].append(atoms)
    return found
