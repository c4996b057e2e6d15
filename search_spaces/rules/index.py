"""Look-ups, and ops whose sizes or results hang on values: what is looked up stays whole, other dimensions pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from autoprune.search_spaces.labels import Labels, without
from autoprune.search_spaces.rules.registry import rule
from autoprune.search_spaces.rules.shape import drop_axis
from autoprune.search_spaces.tracer import Tracer, tensors


def _places(x: Tensor, indices: Sequence[Tensor | None]) -> tuple[list[int], dict[int, int], int]:
    """What ``x[indices]`` does to the dimensions of x: those looked up, where the others come to lie, the new rank.

    A mask looks up as many dimensions as it has, and leaves one. The dimensions of the indices take the place of those
    looked up where these lie side by side, else they come first (as in numpy).
    """
    looked_up: list[int] = []
    added = dim = 0
    for i in indices:
        if i is None:
            dim += 1
            continue
        is_mask = i.dtype in (torch.bool, torch.uint8)
        covered = i.dim() if is_mask else 1
        added = max(added, 1 if is_mask else i.dim())
        looked_up += range(dim, dim + covered)
        dim += covered
    rest = [d for d in range(x.dim()) if d not in looked_up]
    side_by_side = looked_up == list(range(looked_up[0], looked_up[-1] + 1))
    first = looked_up[0] if side_by_side else 0
    return looked_up, {d: place + added * (place >= first) for place, d in enumerate(rest)}, len(rest) + added


def _stay(tracer: Tracer, indices: Sequence[Tensor | None]) -> None:
    for tensor in tensors(indices):
        tracer.ties.pin_fields(tracer.labels(tensor), "used as an index")


def _looked_up(tracer: Tracer, x: Tensor, dims: Sequence[int]) -> Labels:
    labels = tracer.labels(x)
    for dim in dims:
        labels = drop_axis(tracer, labels, dim, "looked up by index")
    return labels


@rule("index", "_unsafe_index", "index_select")
def index(tracer: Tracer, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> None:
    """Positions looked up by tensors: those dimensions stay whole, others pass."""
    x, indices = args[0], args[1]
    if not isinstance(indices, list | tuple):  # index_select(x, dim, index)
        indices = [None] * (indices % x.dim()) + [args[2]]
    _stay(tracer, indices)
    dims, places, _ = _places(x, indices)
    labels = _looked_up(tracer, x, dims)
    tracer.assign(out, tuple(f.moved([places[d] for d in f.dims]) for f in labels))


@rule("index_put", "_index_put_impl", "_unsafe_index_put")
def index_put(tracer: Tracer, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> None:
    """``x[indices] = values``: dimensions looked up stay whole, others unite with those of the values."""
    x, indices, values = args[:3]
    _stay(tracer, indices)
    dims, places, rank = _places(x, indices)
    labels = _looked_up(tracer, x, dims)
    offset = rank - values.dim()
    given, done = tracer.labels(values), []
    for dim, place in places.items():
        own = place - offset
        if own < 0 or values.shape[own] == 1:
            continue
        done.append(own)
        old, new = tracer.ties.axis(labels, dim), tracer.ties.axis(given, own)
        if old is not None or new is not None:
            stay = np.zeros(x.shape[dim], np.int64)
            tracer.ties.unite(stay if old is None else old, stay if new is None else new)
    tracer.ties.pin_fields(without(given, done), "written by index")
    tracer.assign(out, labels)


@rule("nonzero", "nms", "unique_dim", "_unique2", "masked_select", "_local_scalar_dense", "equal", "bincount")
def of_values(tracer: Tracer, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """Sizes or numbers that hang on values: what they are taken from stays, the outputs are constants."""
    for tensor in tensors((args, kwargs)):
        tracer.ties.pin_fields(tracer.labels(tensor), "its values decide about sizes or the path")
    for tensor in tensors(out):
        tracer.assign(tensor, ())


@rule("roi_align", "roi_pool")
def regions(tracer: Tracer, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """Windows of x [N, C, H, W], pooled to one size: [windows, C, h, w]. Channels pass."""
    x, windows = args[:2]
    tracer.ties.pin_fields(tracer.labels(windows), "windows that are pooled over")
    labels = tracer.ties.pin_fields(tracer.labels(x), "pooled or resampled over", (0, 2, 3))
    for tensor in tensors(out):
        tracer.assign(tensor, labels)
