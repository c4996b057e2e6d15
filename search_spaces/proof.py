"""Proof of shapes: every group is cut by one unit, then by a random number, and the model run before it is offered.

A network whose Python code holds a size (``view(n, 768)``, ``x[:, :16]``, an assertion on the width) raises, or some op
makes another shape than the labels say. The groups to blame are found by the module in which it failed, and stay
whole. That the numbers are right too is `verify`'s matter; but where code calculates with a number made from a width,
the groups that change it are found here, to be marked inexact.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils._python_dispatch import TorchDispatchMode

from autoprune.search_spaces import surgery
from autoprune.search_spaces.labels import field_at
from autoprune.search_spaces.numbers import numbers
from autoprune.search_spaces.rules.shape import slice_start
from autoprune.search_spaces.runs import Traced
from autoprune.search_spaces.tracer import ModulePaths, Op, TensorSpec, module_paths, plain_kernels, tensors
from autoprune.search_spaces.types import IntArray

if TYPE_CHECKING:
    from autoprune.search_spaces.space import SearchSpace


@dataclass(frozen=True, slots=True)
class Failure:
    """Where the cut model failed, which module had finished last, and the model's own words."""

    module: str
    finished: str
    message: str


def failing_groups(space: SearchSpace, traced: Traced) -> dict[int, Failure]:
    """Groups that the model does not run without; empty where all can be cut together."""
    units = np.array([g.num_units for g in space.groups], np.int64)
    failing: dict[int, Failure] = {}
    # One unit each leaves widths that few constants divide; but two groups of one size then still have one size.
    for kept in (units - 1, np.random.default_rng(0).integers(1, units)):
        while True:
            left = [i for i in range(len(units)) if i not in failing]
            failure = _try(space, traced, kept, left) if left else None
            if failure is None:
                break
            for suspects in _suspects(space, left, failure):
                alone = (
                    {suspects[0]: failure}  # nobody else there: too careful where the cause is elsewhere, never wrong
                    if len(suspects) == 1
                    else {i: f for i in suspects if (f := _try(space, traced, kept, [i]))}
                )
                failing |= alone
                if alone:
                    break
            else:  # they fail only together
                failing |= dict.fromkeys(suspects, failure)
    return failing


def _suspects(space: SearchSpace, left: Sequence[int], failure: Failure) -> Iterator[list[int]]:
    """Who may be to blame, the likeliest first: what came out of the last module, what the failing one holds, all."""
    for module in (failure.finished, failure.module):
        near = [i for i in left if _touches(space, i, module)]
        if module and near:
            yield near
    yield list(left)


def rescaling_groups(space: SearchSpace, traced: Traced) -> list[int]:
    """Groups marked exact whose cut changes a number that the code calculates with, say ``math.sqrt(x.shape[-1])``.

    Found by halving: a cut run of all, then of each half of those that change something.
    """
    one_less = np.array([g.num_units - 1 for g in space.groups], np.int64)
    found: list[int] = []
    open_sets = [[i for i, g in enumerate(space.groups) if g.exact]]
    while open_sets:
        cut = open_sets.pop()
        if not cut or not _cut_run(space, traced, one_less, cut, ModulePaths()).numbers_changed:
            continue
        if len(cut) == 1:
            found += cut
        else:
            open_sets += [cut[: len(cut) // 2], cut[len(cut) // 2 :]]
    return found


def _try(space: SearchSpace, traced: Traced, num_kept: IntArray, cut: Iterable[int]) -> Failure | None:
    """Does the model run with these groups cut?"""
    paths = ModulePaths()
    try:
        _cut_run(space, traced, num_kept, cut, paths)
    except Exception as error:  # the model's own words are kept and reported
        return Failure(paths.running[-1], paths.finished, str(error).strip().partition("\n")[0])
    return None


def _cut_run(space: SearchSpace, traced: Traced, num_kept: IntArray, cut: Iterable[int], paths: ModulePaths) -> _Shapes:
    """Keep only the first units of these groups and run."""
    chosen = set(cut)
    kept = [np.arange(num_kept[i] if i in chosen else g.num_units) for i, g in enumerate(space.groups)]
    model = surgery.cut(traced.model, space.kept_indices(kept), share=True).eval()
    shapes = _Shapes(traced.traces[0].ops, space.keep_atoms(kept))
    with plain_kernels(), torch.no_grad(), module_paths(model, paths), shapes:
        model(*traced.args, **traced.kwargs)
    return shapes


_COPIES = frozenset(("clone", "alias", "detach"))
_VIEWS = frozenset(("view", "_unsafe_view", "_reshape_alias"))


class _Shapes(TorchDispatchMode):
    """Raises where an op makes another shape than its labels say: code that divides a width in its own way.

    `numbers_changed`: some op was called with another number than in the dense run.

    Whether a reshape copies depends on strides, so on sizes of 1: copies are left out, and views are all alike.
    """

    def __init__(self, ops: Sequence[Op], keep: NDArray[np.bool_]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.ops = (op for op in ops if op.func.overloadpacket.__name__ not in _COPIES)
        self.keep = keep
        self.numbers_changed = False

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in _COPIES:
            return out
        op = next(self.ops, None)
        if op is None or not (op.func is func or {op.func.overloadpacket.__name__, name} <= _VIEWS):
            raise ValueError(f"the code takes another path at {func}")
        self.numbers_changed |= repr(numbers(func, args, kwargs or {})) != repr(op.numbers)  # a NaN equals itself
        for tensor, spec in zip(tensors(out), op.outputs, strict=True):
            sizes = zip(self._shape(spec), tensor.shape, tensor.stride(), strict=True)
            if any(expected != size and stride for expected, size, stride in sizes):  # what is expanded fits any width
                raise ValueError(f"{func} splits what is left in another way")
        if name == "slice":
            self._check_start(op, args, kwargs or {})
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

    def _shape(self, spec: TensorSpec) -> tuple[int, ...]:
        """What is left of a shape."""
        sizes = list(spec.shape)
        for f in spec.labels:
            keep = self.keep[f.atoms]
            for axis, dim in enumerate(f.dims):
                sizes[dim] = int(keep.any(tuple(i for i in range(keep.ndim) if i != axis)).sum())
            if math.prod(sizes[d] for d in f.dims) != keep.sum():
                raise ValueError("a grid of units is cut unevenly")
        return tuple(sizes)


def _touches(space: SearchSpace, index: int, module: str) -> bool:
    """Does the group cut a parameter of this module or of one inside it?"""
    prefix = f"{module}." if module else ""
    return any(name.startswith(prefix) for name in space.tensors_of(index))
