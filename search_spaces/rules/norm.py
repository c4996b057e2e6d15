"""Normalisations and reductions: statistics over labelled positions are allowed, and marked inexact."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from autoprune.search_spaces.labels import Field, Labels, field_at, without
from autoprune.search_spaces.rules.elementwise import pointwise, unite_operands
from autoprune.search_spaces.rules.registry import argument, rule
from autoprune.search_spaces.rules.shape import drop_axis
from autoprune.search_spaces.tracer import Tracer, tensors

BATCH_NORMS = (
    "native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training", "cudnn_batch_norm",
    "miopen_batch_norm", "_batch_norm_with_update", "_batch_norm_no_update",
)  # fmt: skip
"""Their second argument is the weight per channel."""


@rule(*BATCH_NORMS)
def batch_norm(tracer: Tracer, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """Per channel: x [N, C, ...] unites with weight, bias and running statistics [C]. Statistics of the batch run over
    the other dimensions: kernels are standardised so, over their input channels.
    """
    labels = _unite_channels(tracer, args[0], args[1:5])
    if takes_statistics(tracer.ties.op, args):
        for other in without(labels, (1,)):
            tracer.ties.mark_inexact(other.atoms)
    tracer.assign(out[0], labels)
    f = field_at(labels, 1)
    for statistics in out[1:3]:
        if f is not None and statistics.shape == (args[0].shape[1],):
            tracer.assign(statistics, (Field((0,), f.atoms),))


def takes_statistics(op: str, args: tuple[Any, ...]) -> bool:
    """Does a batch norm use the statistics of what it is given? `training` is the only flag among its arguments."""
    return "with_update" in op or any(a is True for a in args)


def _unite_channels(tracer: Tracer, x: Tensor, per_channel: tuple[Any, ...]) -> Labels:
    labels = tracer.ties.reduce_to(tracer.labels(x), 1)
    f = field_at(labels, 1)
    atoms = f.atoms if f else np.zeros(x.shape[1], np.int64)
    for tensor in per_channel:
        if isinstance(tensor, Tensor):
            other = tracer.ties.axis(tracer.labels(tensor), 0)
            tracer.ties.unite(atoms, np.zeros(1, np.int64) if other is None else other, "normalises channels that stay")
    return labels


@rule("native_layer_norm", "_fused_rms_norm")
def layer_norm(tracer: Tracer, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """Statistics over the last dimensions: after a cut they run over the kept positions."""
    x, shape = args[0], args[1]
    operands = [(x, tracer.labels(x))]
    first = x.dim() - len(shape)
    for tensor in args[2:4]:
        if isinstance(tensor, Tensor):
            moved = tuple(f.moved([d + first for d in f.dims]) for f in tracer.labels(tensor))
            operands.append((tensor, moved))
    labels = unite_operands(tracer, operands, tuple(x.shape))
    for f in labels:
        if max(f.dims) >= first:
            tracer.ties.mark_inexact(f.atoms)
    result, *statistics = out if isinstance(out, tuple) else (out,)
    tracer.assign(result, labels)
    for tensor in statistics:
        tracer.assign(tensor, without(labels, range(first, x.dim())))


@rule("_weight_norm_interface")
def weight_norm(tracer: Tracer, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """A weight divided by its norm over all dimensions but `dim`."""
    dim = argument(args, kwargs, 2, "dim", 0)
    labels = unite_operands(tracer, [(t, tracer.labels(t)) for t in args[:2]], tuple(args[0].shape))
    for f in labels:
        if f.dims != (dim,):
            tracer.ties.mark_inexact(f.atoms)
    tracer.assign(out[0], labels)
    tracer.assign(out[1], tuple(f for f in labels if f.dims == (dim,)))


@rule("native_group_norm")
def group_norm(tracer: Tracer, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """Statistics per group of consecutive channels: column j of every group is one unit, so that groups stay equal.
    As many groups as channels are an instance norm: a channel has its own.
    """
    x, groups = args[0], args[6]
    labels = _unite_channels(tracer, x, args[1:3])
    f = field_at(labels, 1)
    if f is not None and groups < x.shape[1]:
        tracer.ties.unite_columns(f.atoms, groups)
        tracer.ties.mark_inexact(f.atoms)
    tracer.assign(out[0], labels)
    for statistics in out[1:3]:
        if f is not None and statistics.shape[1:] == x.shape[1:2]:
            tracer.assign(statistics, (Field((1,), f.atoms),))


@rule("_softmax", "_log_softmax", "_safe_softmax", "cumsum", "cumprod", "sort", "argsort", "topk", "kthvalue")
def along_one_dim(tracer: Tracer, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """Mixes the positions of one dimension, which stays whole."""
    x = args[0]
    place = 2 if tracer.ties.op.startswith(("aten.topk", "aten.kthvalue")) else 1  # those take how many first
    dim = argument(args, kwargs, place, "dim", -1) % max(x.dim(), 1)
    labels = drop_axis(tracer, tracer.labels(x), dim, "a softmax or an order over it")
    for tensor in out if isinstance(out, tuple) else (out,):
        tracer.assign(tensor, labels)


def reduced_dims(op: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[int]:
    """The dimensions of `args[0]` that a reduction takes as argument `dim`, ascending; all without it."""
    rank, dims = args[0].dim(), argument(args, kwargs, 2 if "vector_norm" in op else 1, "dim")
    dims = [dims] if isinstance(dims, int) else dims or range(rank)
    return sorted(d % max(rank, 1) for d in dims)


def _reduce(tracer: Tracer, x: Tensor, gone: list[int], out: Tensor, allowed: bool) -> Labels:
    """Labels after the dimensions `gone` were reduced. `allowed`: a labelled one may be reduced."""
    keepdim = out.dim() == x.dim()
    labels = tracer.labels(x)
    for dim in gone:
        f = field_at(labels, dim)
        if f is None:
            continue
        tracer.reads(x, f)
        outside = [d for d in f.dims if d not in gone]
        if outside or not allowed:
            labels = drop_axis(tracer, labels, dim, "reduced with others that stay")
        else:
            labels = without(labels, (dim,))
    left = []
    for f in labels:
        dims_left = tuple(d if keepdim else d - sum(g < d for g in gone) for d in f.dims)
        left.append(Field(dims_left, f.atoms))
    return tuple(left)


@rule("sum", "nansum")
def total(tracer: Tracer, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> None:
    """A sum over kept positions: what is silenced adds nothing."""
    gone = reduced_dims(tracer.ties.op, args, kwargs)
    tracer.assign(out, _reduce(tracer, args[0], gone, out, allowed=True))


@rule("mean", "amax", "amin", "max", "min", "var", "std", "var_mean", "linalg_vector_norm")
def statistic(tracer: Tracer, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """A statistic over labelled positions runs over the kept ones: inexact."""
    if isinstance(argument(args, kwargs, 1, "other"), Tensor):  # max(a, b) compares elementwise
        pointwise(tracer, args, kwargs, out)
        return
    x, gone = args[0], reduced_dims(tracer.ties.op, args, kwargs)
    for dim in gone:
        f = field_at(tracer.labels(x), dim)
        if f is not None:
            tracer.ties.mark_inexact(f.atoms)
            for positions in (t for t in tensors(out) if not t.is_floating_point()):  # max and min give them, too
                tracer.pin_if_used(positions, f.atoms.ravel())
    for tensor in tensors(out):
        tracer.assign(tensor, _reduce(tracer, x, gone, tensor, allowed=True))


@rule("argmax", "argmin", "prod", "any", "all", "median")
def other_reductions(tracer: Tracer, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """Reductions for which a silenced position is not neutral: reduced dimensions stay whole."""
    gone = reduced_dims(tracer.ties.op, args, kwargs)
    for tensor in tensors(out):
        tracer.assign(tensor, _reduce(tracer, args[0], gone, tensor, allowed=False))
