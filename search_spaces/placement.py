"""Where the units of a space are: at which positions of which tensors, and what is left of these after a cut."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from torch import nn

from autoprune.search_spaces import surgery
from autoprune.search_spaces.groups import Grouping
from autoprune.search_spaces.labels import STAYS, Labels, Ties, field_at
from autoprune.search_spaces.tracer import ParameterLabels
from autoprune.search_spaces.types import Group, IntArray


class Placement:
    """Looks up units in the labels of parameters and buffers.

    Attributes:
        model: the dense model.
        grouping: components of the labels as units and groups.
        groups: one dimension of the space each, in order of execution.
    """

    def __init__(self, model: nn.Module, grouping: Grouping, parameters: Mapping[str, Labels]) -> None:
        self.model = model
        self.grouping = grouping
        self.groups: tuple[Group, ...] = grouping.groups
        self._parameters = parameters

    def units_at(self, atoms: IntArray) -> tuple[IntArray, IntArray]:
        """Group and unit of atoms, -1 where they stay; atoms that another run adds behind the known ones do."""
        grouping = self.grouping
        known = len(grouping.solution.component)
        component = grouping.solution.component[np.where(atoms < known, atoms, STAYS)]
        return grouping.group_of[component], grouping.unit_of[component]

    def unit_positions(self, name: str, dim: int, index: int) -> IntArray:
        """Unit of group `index` at every position of a parameter's dimension, -1 where it is of no unit."""
        f = field_at(self._parameters.get(name, ()), dim)
        if f is None:
            return np.empty(0, np.int64)
        group, unit = self.units_at(f.atoms)
        return np.where(group == index, unit, -1)

    def places_of(self, atoms: Sequence[IntArray]) -> list[tuple[str, int]]:
        """Dimensions of parameters and buffers that own some of these atoms, in order of execution."""
        wanted = np.unique(np.concatenate([np.empty(0, np.int64), *(a.ravel() for a in atoms)]))
        return [
            (name, f.dims[0])
            for name, labels in self._parameters.items()
            for f in labels
            if np.isin(f.atoms, wanted, assume_unique=True).any()
        ]

    def producing_places(self, index: int) -> list[tuple[str, int]]:
        """Dimensions of parameters whose rows make the units of a group."""
        produced = self.grouping.produced_dims
        return [(n, d) for n in self.groups[index].producers for name, d in sorted(produced) if n == name]

    def kept_indices(self, kept_units: Sequence[IntArray]) -> dict[str, tuple[IntArray | None, ...]]:
        """As `kept`, from kept unit indices per group, ascending."""
        found: dict[int, IntArray | None] = {}  # many tensors share one array of components, and so of indices
        for component, units in zip(self.grouping.components, kept_units, strict=True):
            found[id(component)] = np.asarray(units) if len(units) < len(component) else None
        mixed = [component for component in self._component_arrays if id(component) not in found]
        if mixed:
            keep = self.keep_mask(kept_units)
            for component in mixed:
                kept = np.flatnonzero(keep[component])
                found[id(component)] = kept if len(kept) < len(component) else None
        result: dict[str, tuple[IntArray | None, ...]] = {}
        for name, (rank, dims) in self._cuttable.items():
            cuts = [(dim, index) for dim, component in dims if (index := found[id(component)]) is not None]
            if cuts:
                indices: list[IntArray | None] = [None] * rank
                for dim, index in cuts:
                    indices[dim] = index
                result[name] = tuple(indices)
        return result

    def keep_mask(self, kept_units: Sequence[IntArray]) -> NDArray[np.bool_]:
        """Per component of the labels: does it stay?"""
        grouping = self.grouping
        keep = np.ones(len(grouping.group_of), bool)
        for index, units in enumerate(kept_units):
            components = grouping.components[index]
            keep[components] = False
            keep[components[units]] = True
        return keep

    def keep_atoms(self, kept_units: Sequence[IntArray]) -> NDArray[np.bool_]:
        """Per atom: does it stay? Atoms that another run may add behind the known ones do."""
        keep = self.keep_mask(kept_units)[self.grouping.solution.component]
        sizes = sum(sum(t.shape) for t in surgery.named_tensors(self.model).values())
        return np.concatenate([keep, np.ones(sizes, bool)])

    def parameter_labels(self) -> ParameterLabels:
        """The labels of parameters, for another run of the same model."""
        labels = ParameterLabels(Ties(num_atoms=len(self.grouping.solution.component)))
        labels.by_name.update(self._parameters)
        return labels

    def roles(self, index: int, module: str) -> frozenset[tuple[str, int]]:
        """What a group cuts inside a module: (name of the tensor there, dimension)."""
        prefix = f"{module}." if module else ""
        return frozenset((name[len(prefix) :], dim) for name, dim in self._cut_dims[index] if name.startswith(prefix))

    @cached_property
    def _cut_dims(self) -> list[list[tuple[str, int]]]:
        """(name, dimension) of every tensor that a group cuts, per group."""
        group_of = self.grouping.group_of
        found: list[list[tuple[str, int]]] = [[] for _ in self.groups]
        for name, (_, dims) in self._cuttable.items():
            for dim, component in dims:
                for index in np.unique(group_of[component]):
                    if index >= 0:
                        found[index].append((name, dim))
        return found

    @cached_property
    def _component_arrays(self) -> list[IntArray]:
        """The distinct arrays in `_cuttable`."""
        return list({id(component): component for _, dims in self._cuttable.values() for _, component in dims}.values())

    @cached_property
    def _cuttable(self) -> dict[str, tuple[int, list[tuple[int, IntArray]]]]:
        """By name: (rank, [(dim, component of every position)]) of tensors with a dimension that can shrink.

        Equal arrays of components are one array, that of `Grouping.components` where it holds a group's units in order.
        """
        grouping = self.grouping
        arrays = {component.tobytes(): component for component in grouping.components}
        result = {}
        for name, tensor in surgery.named_tensors(self.model).items():
            dims = []
            for f in self._parameters.get(name, ()):
                component = grouping.solution.component[f.atoms]
                if (grouping.group_of[component] >= 0).any():
                    dims.append((f.dims[0], arrays.setdefault(component.tobytes(), component)))
            if dims:
                result[name] = (tensor.dim(), dims)
        return result
