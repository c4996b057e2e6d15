"""Elementwise ops: operands unite position by position, under broadcasting."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from autoprune.search_spaces.labels import Field, Labels, field_at, simplify
from autoprune.search_spaces.rules.registry import rule
from autoprune.search_spaces.tracer import Tracer, tensors
from autoprune.search_spaces.types import IntArray


def pointwise(tracer: Tracer, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """Any op tagged pointwise. A labelled dimension that meets an unlabelled one of full size stays whole."""
    outputs = list(tensors(out))
    operands = [(t, _aligned(t, tracer.labels(t), outputs[0].dim())) for t in tensors((args, kwargs))]
    labels = unite_operands(tracer, operands, tuple(outputs[0].shape))
    for tensor in outputs:
        tracer.assign(tensor, labels)


def _aligned(tensor: Tensor, labels: Labels, rank: int) -> Labels:
    offset = rank - tensor.dim()
    return tuple(f.moved([d + offset for d in f.dims]) for f in labels) if offset else labels


def unite_operands(tracer: Tracer, operands: list[tuple[Tensor, Labels]], shape: tuple[int, ...]) -> Labels:
    """Unite operands that broadcast to `shape`, which labels speak of; returns the labels of the result."""
    if len(operands) == 1:
        return operands[0][1]
    whole = _whole_dims(operands, len(shape))
    operands = [(t, tracer.ties.pin_fields(labels, "meets a constant of full size", whole)) for t, labels in operands]
    result: list[Field] = []
    for dims in _clusters([labels for _, labels in operands]):
        arrays = []
        for tensor, labels in operands:
            offset = len(shape) - tensor.dim()
            full = [d for d in dims if d >= offset and not repeats(tensor, d - offset)]
            if full:
                arrays.append(_over(tracer, labels, dims, full, shape))
        for other in arrays[1:]:
            tracer.ties.unite(arrays[0], other, "meets a constant of full size")
        if all(a.any() for a in arrays):
            spread = (simplify(np.broadcast_to(a, [shape[d] for d in dims]), dims) for a in arrays)
            result += sorted((f for f in spread if f), key=lambda f: len(f.dims))[:1]  # none in an empty tensor
    return tuple(result)


def _whole_dims(operands: list[tuple[Tensor, Labels]], rank: int) -> set[int]:
    """Dimensions that stay whole: where an operand of full size has no labels, and where one shares the later axes of
    another's grid only. A norm weight or an angle per position of a head, say: then whole heads are the units.
    """
    fields = [f for _, labels in operands for f in labels]
    inner = {d for grid in fields for f in fields if set(f.dims) <= set(grid.dims[1:]) for d in f.dims}
    return inner.union(
        d
        for tensor, labels in operands
        for d in range(rank - tensor.dim(), rank)
        if not repeats(tensor, d - rank + tensor.dim()) and field_at(labels, d) is None
    )


def repeats(tensor: Tensor, dim: int) -> bool:
    """Does one value stand for the whole dimension: of size 1, or expanded?"""
    return tensor.shape[dim] == 1 or tensor.stride(dim) == 0


def _clusters(all_labels: list[Labels]) -> list[tuple[int, ...]]:
    """Dimensions that some operand's field covers together, merged until disjoint."""
    clusters: list[set[int]] = []
    for dims in {f.dims for labels in all_labels for f in labels}:
        joined = set(dims)
        for cluster in [c for c in clusters if c & joined]:
            joined |= cluster
            clusters.remove(cluster)
        clusters.append(joined)
    return sorted(tuple(sorted(c)) for c in clusters)


def _over(tracer: Tracer, labels: Labels, dims: tuple[int, ...], full: list[int], shape: tuple[int, ...]) -> IntArray:
    """Atoms of one operand over `dims` (size 1 where it broadcasts or its atoms do not change)."""
    inside = [f for f in labels if set(f.dims) & set(dims)]
    if len(inside) > 1:
        for f in inside:
            tracer.ties.pin(f.atoms.ravel(), "two pruned dimensions meet a grid of units")
        inside = []
    if not inside:
        return np.zeros([shape[d] if d in full else 1 for d in dims], np.int64)
    f = inside[0]
    return np.expand_dims(f.atoms, tuple(i for i, d in enumerate(dims) if d not in f.dims))


@rule(
    "clone", "detach", "alias", "_to_copy", "lift_fresh", "dropout", "native_dropout", "hardswish", "bernoulli",
    "contiguous", "zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like", "bitwise_not",
    "alpha_dropout", "feature_dropout", "zero", "fill", "_conj", "_neg_view", "resolve_conj", "resolve_neg",
)  # fmt: skip
def same(tracer: Tracer, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """The outputs have the shape and the positions of the first operand."""
    labels = tracer.labels(args[0])
    for tensor in tensors(out):
        if tensor.shape == args[0].shape:
            tracer.assign(tensor, labels)


@rule("copy_", "rsub", "floor_divide", "_prelu_kernel", "masked_fill", "complex", "polar")
def untagged(tracer: Tracer, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """Elementwise, but not tagged so."""
    pointwise(tracer, args, kwargs, out)
