"""Convolutions, matrix products and look-ups: contracted dimensions unite, weight rows produce units.

Shape letters: N batch, C channels, O output channels, g groups, M, K, P matrix sizes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from autoprune.search_spaces.labels import Field, Labels, field_at, without
from autoprune.search_spaces.rules.elementwise import repeats
from autoprune.search_spaces.rules.registry import rule
from autoprune.search_spaces.tracer import Tracer, tensors
from autoprune.search_spaces.types import IntArray


def _or_stays(atoms: IntArray | None, size: int) -> IntArray:
    return np.zeros(size, np.int64) if atoms is None else atoms


def _sized(tensor: Tensor, labels: Labels, dims: Sequence[int]) -> list[int | Field]:
    """Sizes over `dims` as factors: fields where labelled, one int for the rest."""
    fields = [f for f in labels if set(f.dims) & set(dims)]
    covered = {d for f in fields for d in f.dims}
    return [math.prod(tensor.shape[d] for d in dims if d not in covered), *fields]


@rule("convolution", "_convolution", always=True)
def convolution(tracer: Tracer, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> None:
    """y[n, o] = sum over c of w[o, c] * x[n, c]. Depthwise: input i and output i are one unit. Grouped: column j of
    every group is one unit, so that groups stay equal.
    """
    x, weight, bias = args[:3]
    transposed, groups = bool(args[6]), int(args[8])
    ties = tracer.ties
    spatial = range(2, x.dim())
    x_labels = tracer.labels(x)
    for dim in spatial:
        x_labels = _convolved_over(tracer, x_labels, dim, weight, args)
    w_labels = ties.pin_fields(tracer.labels(weight), "a kernel dimension", spatial)
    in_dim, out_dim = (0, 1) if transposed else (1, 0)
    x_atoms = _or_stays(ties.axis(x_labels, 1), x.shape[1])
    channels, width = x.shape[1] // groups, out.shape[1] // groups
    in_atoms = _or_stays(ties.axis(w_labels, in_dim), weight.shape[in_dim])
    out_atoms = _or_stays(ties.axis(w_labels, out_dim), weight.shape[out_dim])
    depthwise = groups > 1 and channels == 1
    if depthwise:
        if transposed:
            ties.pin(out_atoms, "the multiplier of a depthwise convolution")
        produced = np.repeat(in_atoms, width) if transposed else out_atoms
        ties.unite(x_atoms[:, None], produced.reshape(groups, width), "a depthwise convolution of channels that stay")
    elif groups == 1:
        ties.unite(x_atoms, in_atoms, "the input channels always stay")
        produced = out_atoms
    else:
        columns = ties.unite_columns(x_atoms, groups)
        ties.unite(columns, in_atoms.reshape(-1, channels), "the input channels always stay")
        if not transposed:
            ties.unite_columns(out_atoms, groups)
        produced = np.tile(out_atoms, groups) if transposed else out_atoms
    if not depthwise:
        ties.mark_produced(produced)
        tracer.reads(x, field_at(x_labels, 1))
        tracer.reads(weight, field_at(w_labels, in_dim))
    if bias is not None:
        ties.unite(produced, _or_stays(ties.axis(tracer.labels(bias), 0), len(produced)))
    batch = without(x_labels, (1,))
    y = Field((1,), produced)
    tracer.assign(out, (*batch, y) if produced.any() else batch)
    pixels = x if transposed else out
    places = _sized(pixels, batch, (0, *spatial))
    tracer.count_macs(*places, *_sized(weight, w_labels, range(weight.dim())))


def _convolved_over(tracer: Tracer, labels: Labels, dim: int, weight: Tensor, args: tuple[Any, ...]) -> Labels:
    """Channels that lie along a convolved dimension of unchanged size (efficient channel attention): the neighbours of
    a position are the kept ones, so cutting is inexact, unless the kernel sees one position only.
    """
    kernel = weight.shape[dim]
    stride, padding, dilation, transposed = (a if isinstance(a, bool) else a[(dim - 2) % len(a)] for a in args[3:7])
    f = field_at(labels, dim)
    if f is None or transposed or stride != 1 or 2 * padding != dilation * (kernel - 1) or len(f.dims) > 1:
        return tracer.ties.drop_axis(labels, dim, "a pruned dimension is convolved over")
    if kernel > 1:
        tracer.ties.mark_inexact(f.atoms)
    return labels


def _product(tracer: Tracer, a: Tensor, b: Tensor, out: Tensor) -> Labels:
    """A [..., M, K] @ b [..., K, P] with equal leading (batch) dimensions; returns the labels of the output."""
    ties = tracer.ties
    a_labels, b_labels = tracer.labels(a), tracer.labels(b)
    last = a.dim() - 1
    fields: list[Field] = []
    for dim in range(last - 1):  # batch dimensions come first: whole rows of a grid (heads) are the units
        if field_at(a_labels, dim) is None or field_at(b_labels, dim) is None:
            a_labels = ties.drop_axis(a_labels, dim, "meets a constant")
            b_labels = ties.drop_axis(b_labels, dim, "meets a constant")
            continue
        size = a.shape[dim]
        a_rows, b_rows = _or_stays(ties.axis(a_labels, dim), size), _or_stays(ties.axis(b_labels, dim), size)
        a_labels, b_labels = _reduced(a_labels, dim, a_rows), _reduced(b_labels, dim, b_rows)
        ties.unite(a_rows, b_rows)
        fields.append(Field((dim,), a_rows))
    f = field_at(a_labels, last)
    if f is not None and len(f.dims) > 1:  # rows of a grid share b, as heads share a table: they are the units
        a_labels = ties.drop_axis(a_labels, last, "")
    ties.unite(
        _or_stays(ties.axis(a_labels, last), a.shape[last]),
        _or_stays(ties.axis(b_labels, last - 1), b.shape[last - 1]),
        "a matrix product over positions that stay",
    )
    tracer.reads(a, field_at(a_labels, last))
    tracer.reads(b, field_at(b_labels, last - 1))
    contracted = _sized(a, a_labels, (last,))
    fields += without(a_labels, (last, *(d for f in fields for d in f.dims)))
    columns = ties.axis(b_labels, last)
    if columns is not None:
        ties.mark_produced(columns)
        fields.append(Field((last,), columns))
    tracer.count_macs(*_sized(out, tuple(fields), range(out.dim())), *contracted)
    return tuple(fields)


def _reduced(labels: Labels, dim: int, atoms: IntArray | None) -> Labels:
    return labels if atoms is None else (*without(labels, (dim,)), Field((dim,), atoms))


@rule("mm", "bmm", always=True)
def matrix_product(tracer: Tracer, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> None:
    """Matrix product; batch dimensions unite."""
    tracer.assign(out, _product(tracer, args[0], args[1], out))


@rule("addmm", "baddbmm", always=True)
def matrix_product_plus(tracer: Tracer, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> None:
    """Matrix product plus a term that broadcasts over it (the bias)."""
    labels = _product(tracer, args[1], args[2], out)
    added, offset = args[0], out.dim() - args[0].dim()
    for dim in range(out.dim()):
        own = dim - offset
        if own < 0 or added.shape[own] == 1:
            continue
        f = field_at(labels, dim)
        bias = tracer.ties.axis(tracer.labels(added), own)
        if f is not None or bias is not None:
            size = out.shape[dim]
            tracer.ties.unite(_or_stays(f.atoms if f else None, size), _or_stays(bias, size))
    tracer.assign(out, labels)


@rule("embedding")
def embedding(tracer: Tracer, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> None:
    """Rows of a table by index: the rows stay, the width is produced."""
    table = args[0]
    labels = tracer.ties.pin_fields(tracer.labels(table), "rows of an embedding", (0,))
    width = tracer.ties.axis(labels, 1)
    if width is not None:
        tracer.ties.mark_produced(width)
    tracer.assign(out, () if width is None else (Field((out.dim() - 1,), width),))


@rule("mv", "dot", "vdot")
def vector_product(tracer: Tracer, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> None:
    """A [M, K] or [K] times b [K]; `torch.utils.flop_counter` does not count it."""
    a, b = args[0], args[1]
    last = a.dim() - 1
    labels = tracer.ties.reduce_to(tracer.labels(a), last)
    tracer.ties.unite(
        _or_stays(tracer.ties.axis(labels, last), len(b)),
        _or_stays(tracer.ties.axis(tracer.labels(b), 0), len(b)),
        "a matrix product over positions that stay",
    )
    tracer.reads(a, field_at(labels, last))
    tracer.reads(b, field_at(tracer.labels(b), 0))
    tracer.assign(out, without(labels, (last,)))


_ATTENTION = (
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_fused_attention_overrideable",
    "_scaled_dot_product_cudnn_attention",
)


def _over_scores(mask: Tensor) -> Tensor:
    """A mask as [N or 1, H or 1, L, S]."""
    return mask[(None,) * (4 - mask.dim())]


@rule(*_ATTENTION, always=True)
def attention(tracer: Tracer, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """Q [N, H, L, D], k [N, G, S, D], v [N, G, S, E], mask [N, H, L, S]: a head of k with its H / G heads of q and its
    head of v is one unit; D unites in q and k. Without a given scale it is 1 / sqrt(D), so of what is kept: inexact.
    """
    ties = tracer.ties
    result: Tensor = out[0]
    fields: list[Field] = []
    given = [*args[:3], *(_over_scores(t) for t in tensors((args[3:], kwargs)))]
    labels = [ties.pin_fields(tracer.labels(t), "positions of attention", (2,)) for t in given[:3]]
    for tensor in tensors((args[3:], kwargs)):
        moved = tuple(f.moved([d + 4 - tensor.dim() for d in f.dims]) for f in tracer.labels(tensor))
        labels.append(ties.pin_fields(moved, "positions of attention", (2, 3)))
    for dim in (0, 1):
        size = result.shape[dim]
        atoms = [ties.axis(ls, dim) for ls in labels]
        labels = [_reduced(ls, dim, a) for ls, a in zip(labels, atoms, strict=True)]
        full = [
            np.repeat(_or_stays(a, t.shape[dim]), size // t.shape[dim])
            for a, t in zip(atoms, given, strict=True)
            if not repeats(t, dim)
        ]
        for other in full[1:]:
            ties.unite(full[0], other, "heads meet a constant")
        if full and any(a.any() for a in full):
            fields.append(Field((dim,), next(a for a in full if a.any())))
    query, key, value = labels[:3]
    width = ties.axis(query, 3)
    ties.unite(
        _or_stays(width, args[0].shape[3]), _or_stays(ties.axis(key, 3), args[1].shape[3]),
        "an attention product over positions that stay",
    )  # fmt: skip
    if width is not None and kwargs.get("scale") is None:
        ties.mark_inexact(width)
    tracer.reads(args[0], field_at(query, 3))
    tracer.reads(args[1], field_at(key, 3))
    columns = ties.axis(value, 3)
    for tensor in out:  # sums per head beside the result, and seeds
        if isinstance(tensor, torch.Tensor):
            tracer.assign(tensor, tuple(fields) if tensor.shape[:2] == result.shape[:2] else ())
    tracer.assign(result, (*fields, Field((3,), columns)) if columns is not None else tuple(fields))
    heads = _sized(result, tracer.labels(result), (1,))
    pairs = result.shape[0] * args[0].shape[2] * args[1].shape[2]
    tracer.count_macs(pairs, *heads, *_sized(args[0], query, (3,)))
    tracer.count_macs(pairs, *heads, *_sized(args[2], value, (3,)))
