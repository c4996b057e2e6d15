"""Measure networks side by side, once, for a fixed number of rounds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import nn

from autoprune.measure.measured import Latency
from autoprune.measure.race import WARMUP, race
from autoprune.measure.stopwatch import DENSE, batch_size, precision_of
from autoprune.precision import device_of
from autoprune.progress import Progress
from autoprune.runtimes import Runtime, make_runtime
from autoprune.search_spaces.errors import UserError, unknown


def measure(
    models: Mapping[str, nn.Module],
    inputs: Any,
    *,
    runtime: str | Runtime = "eager",
    repeats: int = 30,
    warmup: int = WARMUP,
    threads: int = 1,
    reference: str | None = None,
    progress: Progress | None = None,
) -> dict[str, Latency]:
    """Time `models` on the same inputs, interleaved, in evaluation mode, for a fixed number of rounds.

    Modes and the process's number of threads are put back. Close other programs first: the interval shows them.

    Args:
        models: name -> network, all on one device (CPU or CUDA).
        inputs: a tensor, a tuple of positional or a dict of keyword arguments, or a pair (tuple, dict) of both.
        runtime: what runs them, or its spec, see `make_runtime`; one that is given has its own threads.
        repeats: rounds that count, >= 1.
        warmup: least number of rounds before; more are run until times settle.
        threads: that work on one run.
        reference: network that ratios compare with; None for "dense" where there is one.
        progress: where to report to, between rounds.

    Raises:
        UserError: no network, an unknown reference, several devices, or a number out of range.
    """
    for name, value, least in (("repeats", repeats, 1), ("warmup", warmup, 0), ("threads", threads, 1)):
        if not isinstance(value, int) or value < least:
            raise UserError(f"`{name}` must be a whole number of at least {least}, but got {value!r}.")
    if not models:
        raise UserError("Nothing to measure: give at least one network.")
    if reference is not None and reference not in models:
        raise unknown("reference network", reference, models)
    devices = {device_of(model) for model in models.values()}
    if len(devices) > 1 or next(iter(devices)).type not in ("cpu", "cuda"):
        raise UserError(f"Networks are measured on one CPU or CUDA device, but got {sorted(map(str, devices))}.")
    compare_with = reference or (DENSE if DENSE in models else None)
    if isinstance(runtime, str):
        runtime = make_runtime(runtime, threads=threads, device=str(devices.pop()))
    first = models[compare_with or next(iter(models))]
    with runtime.open(first, inputs) as session:
        return race(
            {name: session.load(model) for name, model in models.items()},
            runtime,
            batch=batch_size(inputs),
            precision=precision_of(runtime, first),
            reference=compare_with,
            accuracy=math.inf,
            min_rounds=repeats,
            max_rounds=repeats,
            warmup=warmup,
            progress=progress,
        )
