"""Checks every op of a cut model against the labels: does it make the shape that they say?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils._python_dispatch import TorchDispatchMode

from autoprune.search_spaces import meta
from autoprune.search_spaces.labels import Field, field_at
from autoprune.search_spaces.numbers import numbers
from autoprune.search_spaces.rules.shape import slice_start
from autoprune.search_spaces.tracer import Op, TensorSpec, Trace, is_decision, map_tensors, tensors
from autoprune.search_spaces.types import IntArray

_COPIES = frozenset(("clone", "alias", "detach"))
_FILLS = frozenset(f"{new}{name}" for new in ("", "new_") for name in ("zeros", "ones", "full", "empty"))
"""Of any size that the code gives: if it is wrong, an op that the tensor meets makes another shape."""
_VIEWS = frozenset(("view", "_unsafe_view", "_reshape_alias"))


class OtherShape(ValueError):
    """An op makes another shape than these atoms say."""

    def __init__(self, message: str, atoms: Sequence[IntArray]) -> None:
        super().__init__(message)
        self.atoms = atoms


class ShapeCheck(TorchDispatchMode):
    """Raises where an op makes another shape than its labels say: code that divides a width in its own way.

    Whether a reshape copies depends on strides, so on sizes of 1: copies are left out, and views are all alike.
    With real tensors a cut changes values, and these may change the path (how many boxes pass a threshold): what was
    decided from floats in the dense run is decided the same here.

    Args:
        trace: the dense run.
        keep: per atom, does it stay?

    Attributes:
        passed: how many ops made the shape that was expected.
        numbers_changed: some op was called with another number than in the dense run.
    """

    def __init__(self, trace: Trace, keep: NDArray[np.bool_]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        copies = {i for i, op in enumerate(trace.ops) if op.func.overloadpacket.__name__ in _COPIES}
        self.ops = ((i, op) for i, op in enumerate(trace.ops) if i not in copies)
        self.trace = trace
        self.keep = keep
        self.passed = 0
        self.numbers_changed = False
        self._sizes: dict[int, tuple[int, ...]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = meta.call(func, args, kwargs or {})
        name = func.overloadpacket.__name__
        if name in _COPIES:
            return out
        index, op = next(self.ops, (0, None))
        if op is None or not (op.func is func or {op.func.overloadpacket.__name__, name} <= _VIEWS):
            raise ValueError(f"the code takes another path at {func}")
        self.numbers_changed |= repr(numbers(func, args, kwargs or {})) != repr(op.numbers)  # a NaN equals itself
        decision = self.trace.decisions.get(index)
        if decision is not None and all(self._whole(spec) for spec in op.outputs):
            out = _decided(out, decision)
        for tensor, spec in () if name in _FILLS else zip(tensors(out), op.outputs, strict=True):
            sizes = enumerate(zip(self._shape(spec), tensor.shape, tensor.stride(), strict=True))
            # what is expanded (stride 0) fits any width
            wrong = {d for d, (expected, size, stride) in sizes if expected != size and stride}
            if wrong:
                atoms = [f.atoms for f in spec.labels if wrong.intersection(f.dims)]
                raise OtherShape(f"{func} splits what is left in another way", atoms)
        if name == "slice":
            self._check_start(op, args, kwargs or {})
        self.passed += 1
        return out

    def _check_start(self, op: Op, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A slice of the right length may still begin elsewhere: all that was cut before it must have moved it."""
        dense: TensorSpec = op.args[0]
        dim, start = slice_start(dense.shape, op.args, op.kwargs)
        f = field_at(dense.labels, dim)
        if f is not None and len(f.dims) == 1:
            start = int(self.keep[f.atoms[:start]].sum())
        if slice_start(args[0].shape, args, kwargs)[1] != start:
            raise ValueError(f"{op.func} begins at a position that the code holds as a number")

    def _whole(self, spec: TensorSpec) -> bool:
        """Is nothing cut?"""
        return all(self.keep[f.atoms].all() for f in spec.labels)

    def _shape(self, spec: TensorSpec) -> tuple[int, ...]:
        """What is left of a shape."""
        if not spec.labels:
            return spec.shape
        sizes = list(spec.shape)
        for f in spec.labels:
            for dim, size in zip(f.dims, self._left(f), strict=True):
                sizes[dim] = size
        return tuple(sizes)

    def _left(self, f: Field) -> tuple[int, ...]:
        """What is left along the axes of a field; many tensors share its atoms, which live as long as `ops`."""
        known = self._sizes.get(id(f.atoms))
        if known is None:
            keep = self.keep[f.atoms]
            others = [tuple(i for i in range(keep.ndim) if i != axis) for axis in range(keep.ndim)]
            known = tuple(int(keep.any(axes).sum()) for axes in others)
            if math.prod(known) != keep.sum():
                raise ValueError("a grid of units is cut unevenly")
            self._sizes[id(f.atoms)] = known
        return known


def _decided(out: Any, decision: list[Any]) -> Any:
    """The outputs of an op, with those that are no floats as they were in the dense run."""
    leaves = list(out) if isinstance(out, tuple | list) else [out]
    before = map_tensors(decision, torch.clone)
    new = [old if is_decision(old) else leaf for leaf, old in zip(leaves, before, strict=True)]
    return type(out)(new) if isinstance(out, tuple | list) else new[0]
