"""Ops that only move positions: views, permutations, slices, concatenation, padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from autoprune.search_spaces.labels import Field, Labels, field_at, reshape, without
from autoprune.search_spaces.rules.elementwise import unite_operands
from autoprune.search_spaces.rules.registry import argument, rule
from autoprune.search_spaces.tracer import Tracer, tensors


@rule("view", "_unsafe_view", "_reshape_alias", "reshape", "unsqueeze", "squeeze", "unflatten", "flatten")
def view(tracer: Tracer, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> None:
    """Same elements in the same order."""
    tracer.assign(out, reshape(tracer.ties, tracer.labels(args[0]), args[0].shape, out.shape))


def _permuted(labels: Labels, order: list[int]) -> Labels:
    """Output dimension i is input dimension order[i]."""
    place = {old: new for new, old in enumerate(order)}
    return tuple(f.moved([place[d] for d in f.dims]) for f in labels)


@rule("permute")
def permute(tracer: Tracer, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> None:
    """Dimensions in another order; a grid is turned with them, so a shuffle that joins it again is seen there."""
    rank = args[0].dim()
    tracer.assign(out, _turned(tracer, args[0], [d % rank for d in argument(args, kwargs, 1, "dims")]))


@rule("transpose", "t", "numpy_T", "swapaxes")
def transpose(tracer: Tracer, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> None:
    """Two dimensions swapped (`t`: the only two)."""
    rank = args[0].dim()
    order = list(range(rank))
    if rank > 1:
        a, b = (args[1] % rank, args[2] % rank) if len(args) > 2 else (0, 1)
        order[a], order[b] = order[b], order[a]
    tracer.assign(out, _turned(tracer, args[0], order))


def _turned(tracer: Tracer, x: Tensor, order: list[int]) -> Labels:
    labels = []
    for f in tracer.labels(x):
        places = [order.index(d) for d in f.dims]
        if places != sorted(places):
            # The grid changes its order: joined again it would be shuffled, so only whole columns may go.
            last = f.dims[-1]
            f = next(g for g in tracer.ties.reduce_to((f,), last) if last in g.dims)
        labels.append(f)
    return _permuted(tuple(labels), order)


@rule("view_as_complex")
def view_as_complex(tracer: Tracer, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> None:
    """The last dimension, a pair, becomes one complex number."""
    tracer.assign(out, drop_axis(tracer, tracer.labels(args[0]), out.dim(), "the two parts of a complex number"))


@rule("view_as_real")
def view_as_real(tracer: Tracer, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> None:
    """A new last dimension holds the two parts."""
    tracer.assign(out, tracer.labels(args[0]))


@rule("expand")
def expand(tracer: Tracer, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> None:
    """Dimensions of size 1 repeat; new ones come in front."""
    offset = out.dim() - args[0].dim()
    tracer.assign(out, tuple(f.moved([d + offset for d in f.dims]) for f in tracer.labels(args[0])))


@rule("repeat")
def repeat(tracer: Tracer, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> None:
    """Tiles; new dimensions come in front."""
    offset = out.dim() - args[0].dim()
    fields = []
    for f in tracer.labels(args[0]):
        moved = f.moved([d + offset for d in f.dims])
        fields.append(Field(moved.dims, np.tile(moved.atoms, [args[1][d] for d in moved.dims])))
    tracer.assign(out, tuple(fields))


def drop_axis(tracer: Tracer, labels: Labels, dim: int, reason: str) -> Labels:
    """Labels where `dim` may no longer change."""
    return tracer.ties.drop_axis(labels, dim, reason)


def _shifted(labels: Labels, removed: int) -> Labels:
    return tuple(Field(tuple(d - (d > removed) for d in f.dims), f.atoms) for f in labels)


@rule("select")
def select(tracer: Tracer, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> None:
    """One position of a dimension, by number: that dimension stays whole."""
    dim = args[1] % args[0].dim()
    tracer.assign(out, _shifted(drop_axis(tracer, tracer.labels(args[0]), dim, "indexed by number"), dim))


@rule("unbind")
def unbind(tracer: Tracer, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """All positions of a dimension, one tensor each."""
    dim = argument(args, kwargs, 1, "dim", 0) % args[0].dim()
    labels = _shifted(drop_axis(tracer, tracer.labels(args[0]), dim, "indexed by number"), dim)
    for tensor in out:
        tracer.assign(tensor, labels)


def _piece(tracer: Tracer, x: Tensor, labels: Labels, dim: int, start: int, length: int, tied: bool) -> Labels:
    """`length` positions from `start`. `tied`: one of equal pieces, of which unit j is one unit."""
    size = x.shape[dim]
    f = field_at(labels, dim)
    if f is None or length == size:
        return labels
    if len(f.dims) > 1:
        return drop_axis(tracer, labels, dim, "a grid of units is sliced")
    pieces = tracer.ties.unite_columns(f.atoms, size // length) if tied else None
    atoms = f.atoms[start : start + length] if pieces is None else pieces[start // length]
    rest = without(labels, (dim,))
    return (*rest, Field((dim,), atoms)) if atoms.any() else rest


def _is_equal_piece(size: int, start: int, length: int) -> bool:
    """Code that divides a width makes such pieces; others it holds as numbers, and each keeps its own units."""
    return length > 0 and size % length == 0 and start % length == 0


def slice_start(shape: Sequence[int], args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[int, int]:
    """Dimension and first position of a slice of `shape`, both counted from the front."""
    dim, start = argument(args, kwargs, 1, "dim", 0) % len(shape), argument(args, kwargs, 2, "start") or 0
    return dim, max(start + shape[dim], 0) if start < 0 else min(start, shape[dim])


@rule("slice")
def slice_(tracer: Tracer, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> None:
    """A range of one dimension."""
    x = args[0]
    dim, start = slice_start(x.shape, args, kwargs)
    labels = tracer.labels(x)
    if argument(args, kwargs, 4, "step", 1) != 1:
        labels = drop_axis(tracer, labels, dim, "sliced in steps")
    length, tied = out.shape[dim], _is_equal_piece(x.shape[dim], start, out.shape[dim])
    f = field_at(labels, dim)
    if f is not None and len(f.dims) == 1 and not tied:
        tracer.ties.sides += [f.atoms[:start], f.atoms[start + length :]]
    tracer.assign(out, _piece(tracer, x, labels, dim, start, length, tied))


@rule("split", "split_with_sizes", "chunk", "unsafe_split", "unsafe_chunk")
def split(tracer: Tracer, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """Consecutive pieces of one dimension."""
    x = args[0]
    dim = argument(args, kwargs, 2, "dim", 0) % x.dim()
    labels, size = tracer.labels(x), x.shape[dim]
    lengths = [tensor.shape[dim] for tensor in out]
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    tied = all(map(_is_equal_piece, [size] * len(lengths), starts, lengths))
    for tensor, start, length in zip(out, starts, lengths, strict=True):
        tracer.assign(tensor, _piece(tracer, x, labels, dim, start, length, tied))


@rule("glu")
def glu(tracer: Tracer, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> None:
    """First half of one dimension times the sigmoid of the second: the halves unite."""
    dim = argument(args, kwargs, 1, "dim", -1) % out.dim()
    tracer.assign(out, _piece(tracer, args[0], tracer.labels(args[0]), dim, 0, out.shape[dim], tied=True))


@rule("cat")
def cat(tracer: Tracer, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> None:
    """Pieces side by side: labels are joined along `dim`, and unite elsewhere."""
    parts = [t for t in args[0] if t.dim() == out.dim()]  # torch skips legacy empty 1-D tensors
    dim = argument(args, kwargs, 1, "dim", 0) % out.dim()
    joined, others = [], []
    for t in parts:
        labels = tracer.labels(t)
        f = field_at(labels, dim)
        if f is not None and len(f.dims) > 1:
            labels, f = drop_axis(tracer, labels, dim, "a grid of units is joined with another"), None
        joined.append(f.atoms if f else np.zeros(t.shape[dim], np.int64))
        others.append((t, without(labels, (dim,))))
    labels = unite_operands(tracer, others, tuple(out.shape))
    atoms = np.concatenate(joined)
    tracer.assign(out, (*labels, Field((dim,), atoms)) if atoms.any() else labels)


@rule("stack")
def stack(tracer: Tracer, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> None:
    """Tensors side by side in a new dimension: they unite."""
    dim = argument(args, kwargs, 1, "dim", 0) % out.dim()
    labels = unite_operands(tracer, [(t, tracer.labels(t)) for t in args[0]], tuple(args[0][0].shape))
    tracer.assign(out, tuple(Field(tuple(d + (d >= dim) for d in f.dims), f.atoms) for f in labels))


@rule("gather")
def gather(tracer: Tracer, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> None:
    """Positions of one dimension looked up by an index per element: that dimension stays whole, others unite."""
    x, dim, indices = args[0], args[1] % max(args[0].dim(), 1), args[2]
    labels = drop_axis(tracer, tracer.labels(x), dim, "looked up by index")
    fewer = [d for d in range(x.dim()) if d != dim and indices.shape[d] != x.shape[d]]
    labels = tracer.ties.pin_fields(labels, "looked up by fewer indices", fewer)
    of_indices = drop_axis(tracer, tracer.labels(indices), dim, "looked up by index")
    tracer.assign(out, unite_operands(tracer, [(x, labels), (indices, of_indices)], tuple(out.shape)))


@rule("roll", "flip")
def roll(tracer: Tracer, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> None:
    """Positions turn within `dims`, which stay whole."""
    x = args[0]
    dims = args[2] if len(args) > 2 else args[1]
    labels = tracer.labels(x)
    for dim in [d % x.dim() for d in dims] or range(x.dim()):
        labels = drop_axis(tracer, labels, dim, "positions change their order")
    tracer.assign(out, labels)


@rule("constant_pad_nd")
def pad(tracer: Tracer, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> None:
    """Positions added at both ends always stay."""
    x, widths = args[0], list(args[1])
    labels = tracer.labels(x)
    for i in range(len(widths) // 2):
        dim, before, after = x.dim() - 1 - i, widths[2 * i], widths[2 * i + 1]
        f = field_at(labels, dim)
        if f is None or (before == after == 0):
            continue
        if len(f.dims) > 1 or before < 0 or after < 0:
            labels = drop_axis(tracer, labels, dim, "padded or cropped by fixed widths")
        else:
            labels = (*without(labels, (dim,)), Field((dim,), np.pad(f.atoms, (before, after))))
    tracer.assign(out, labels)


@rule("as_strided")
def as_strided(tracer: Tracer, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> None:
    """Strides written out: pooling does so to keep a memory format; anything but the plain order stays whole."""
    plain = torch.empty(out.shape, device="meta").stride()
    same_order = all(a == b for a, b, size in zip(out.stride(), plain, out.shape, strict=True) if size > 1)
    labels = tracer.labels(args[0])
    if not same_order or out.shape != args[0].shape:
        labels = tracer.ties.pin_fields(labels, "its strides are written out")
    tracer.assign(out, labels)


@rule("zeros", "ones", "full", "new_zeros", "new_ones", "new_full", always=True)
def filled(tracer: Tracer, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> None:
    """A first state, a buffer to be written to, a bias of zeros: it fits any width, and ties where it is used."""
    tracer.assign(out, tracer.filled(out))


@rule("new_empty", "new_empty_strided", "_assert_async")
def constant(tracer: Tracer, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """Outputs that take only dtype and device from the input carry no labels."""
    for tensor in tensors(out):
        tracer.assign(tensor, ())
