"""Measure how long networks take, side by side: `measure` once, a `Stopwatch` again and again.

Unit: milliseconds for one forward pass of the whole batch. What was chosen and why: docs/measuring.md.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from autoprune.device import device_fingerprint, device_info
from autoprune.measured import Latency
from autoprune.precision import device_of
from autoprune.progress import Progress
from autoprune.running import evaluation_mode
from autoprune.runtimes import Runtime, Session, Times
from autoprune.search_spaces.errors import UserError, unknown
from autoprune.stopwatch import DENSE, WARMUP, Stopwatch, batch_size, race

__all__ = ["Latency", "Stopwatch", "device_fingerprint", "device_info", "measure"]


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
    chosen = _Eager(threads) if isinstance(runtime, str) else runtime
    with ExitStack() as stack:
        for model in models.values():
            stack.enter_context(evaluation_mode(model))
        session = stack.enter_context(chosen.open(models[compare_with or next(iter(models))], inputs))
        return race(
            {name: session.load(model) for name, model in models.items()},
            chosen,
            batch=batch_size(inputs),
            reference=compare_with,
            accuracy=math.inf,
            min_rounds=repeats,
            max_rounds=repeats,
            warmup=warmup,
            progress=progress,
        )


class _Eager(Runtime):
    """Stands in until `make_runtime` is there."""

    name: ClassVar[str] = "eager"
    precision, clock = "fp32", "cpu"
    settings: Mapping[str, str] = {}

    def __init__(self, threads: int) -> None:
        self.threads = threads

    @property
    def version(self) -> str:
        return torch.__version__

    def open(self, dense: nn.Module, inputs: Any) -> Session:
        return _EagerSession(inputs, time.thread_time if self.threads == 1 else time.process_time)


class _EagerSession(Session):
    def __init__(self, inputs: Any, processor: Callable[[], float]) -> None:
        self._args, self._kwargs = _arguments(inputs)
        self._processor = processor

    def load(self, model: nn.Module) -> Any:
        def run() -> Times:
            with torch.inference_mode():
                processor, start = self._processor(), time.perf_counter()
                model(*self._args, **self._kwargs)
                end = time.perf_counter()
                return Times((end - start) * 1e3, (self._processor() - processor) * 1e3)

        return run


def _arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(inputs, Tensor):
        return (inputs,), {}
    if isinstance(inputs, dict):
        return (), inputs
    if len(inputs) == 2 and isinstance(inputs[0], tuple) and isinstance(inputs[1], dict):
        return inputs[0], inputs[1]
    return tuple(inputs), {}
