"""Ops that trade channels for pixels, or cut images into windows.

Shape letters: N batch, C channels, H height, W width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor

from autoprune.search_spaces.labels import Field, without
from autoprune.search_spaces.rules.registry import rule
from autoprune.search_spaces.tracer import Tracer
from autoprune.search_spaces.types import IntArray


def _first_of_runs(tracer: Tracer, atoms: IntArray, length: int) -> IntArray:
    """Runs of `length` are a unit each."""
    runs = atoms.reshape(-1, length)
    tracer.ties.unite(runs, runs[:, :1])
    return runs[:, 0]


def _channels_changed(tracer: Tracer, x: Tensor, out: Tensor, dim: int, change: Callable[[IntArray], IntArray]) -> None:
    """Other labels over the channels `dim`; the dimensions behind them stay whole."""
    labels = tracer.ties.pin_fields(
        tracer.labels(x), "pixels become channels, or change their order", range(dim + 1, x.dim())
    )
    atoms = tracer.ties.axis(labels, dim)
    if atoms is not None:
        labels = (*without(labels, (dim,)), Field((dim,), np.ascontiguousarray(change(atoms))))
    tracer.assign(out, labels)


@rule("pixel_shuffle")
def pixel_shuffle(tracer: Tracer, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> None:
    """The channels that become the pixels of one place are a unit."""

    def joined(atoms: IntArray) -> IntArray:
        return _first_of_runs(tracer, atoms, args[1] ** 2)

    _channels_changed(tracer, args[0], out, args[0].dim() - 3, joined)


@rule("pixel_unshuffle")
def pixel_unshuffle(tracer: Tracer, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> None:
    """Every channel becomes a run of channels."""
    _channels_changed(tracer, args[0], out, args[0].dim() - 3, lambda atoms: np.repeat(atoms, args[1] ** 2))


@rule("channel_shuffle", "native_channel_shuffle")
def channel_shuffle(tracer: Tracer, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> None:
    """Groups take turns: column j of every group is one unit, so that groups stay equal."""

    def turned(atoms: IntArray) -> IntArray:
        return tracer.ties.unite_columns(atoms, args[1]).T.ravel()

    _channels_changed(tracer, args[0], out, 1, turned)


@rule("unfold")
def windows(tracer: Tracer, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> None:
    """Windows along one dimension, which stays whole; their positions are a new last dimension."""
    x = args[0]
    tracer.assign(out, tracer.ties.drop_axis(tracer.labels(x), args[1] % x.dim(), "windows over it"))


@rule("im2col")
def patches(tracer: Tracer, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> None:
    """X [N, C, H, W] -> [N, C * kernel, places]: every channel becomes a run of rows."""
    _channels_changed(tracer, args[0], out, args[0].dim() - 3, lambda atoms: np.repeat(atoms, math.prod(args[1])))


@rule("col2im")
def from_patches(tracer: Tracer, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> None:
    """X [N, C * kernel, places] -> [N, C, H, W]: the rows of one channel are a unit."""

    def joined(atoms: IntArray) -> IntArray:
        return _first_of_runs(tracer, atoms, math.prod(args[2]))

    _channels_changed(tracer, args[0], out, args[0].dim() - 2, joined)
