"""Measure how long networks take, side by side.

Wall-clock times of the same network differ by a third and more between two minutes on a shared machine. So all
networks are run in turn, round after round, in alternating order, and each round's time is also divided by that of a
reference (the dense network) in the same round: slow minutes hit both and fall out of the median ratio.

Unit: milliseconds for one forward pass of the whole batch, eager mode, in the precision that the weights have.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from autoprune.device import device_fingerprint, device_info
from autoprune.precision import device_of
from autoprune.progress import NO_PROGRESS, Progress, Task
from autoprune.running import evaluation_mode
from autoprune.search_spaces.errors import UserError, unknown

__all__ = ["Latency", "device_fingerprint", "device_info", "measure"]

SETTLED_ROUNDS = 3
SETTLED_SHARE = 0.95
MAX_WARMUP = 4
"""Warm-up ends when `SETTLED_ROUNDS` rounds in a row made no network faster than `SETTLED_SHARE` of its fastest
round before, or after `MAX_WARMUP` times the rounds asked for."""

_DTYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.float64: "fp64"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Times of one network in milliseconds for a batch.

    Attributes:
        median_ms, p10_ms: of the repeats.
        iqr_ms: distance from the first to the third quartile: the spread.
        cpu_ms: median processor time: of the calling thread where `threads` is 1, else of all threads of the process;
            far steadier than wall-clock time. None on a GPU.
        ratio: median over rounds of this network's time / the reference's in the same round; None without one.
        reference: name of the network that `ratio` compares with.
        repeats, warmup: rounds counted, rounds before.
        settled: whether the warm-up ended because times no longer fell.
        threads, batch, precision, runtime, device: what was measured, and how.
        clock: "wall", or "cuda events".
        samples_ms: every repeat, in order.
    """

    median_ms: float
    p10_ms: float
    iqr_ms: float
    cpu_ms: float | None
    ratio: float | None
    reference: str | None
    repeats: int
    warmup: int
    settled: bool
    threads: int
    batch: int
    precision: str
    device: str
    clock: str = "wall"
    runtime: str = "eager"
    samples_ms: tuple[float, ...] = ()

    def __str__(self) -> str:
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        how = f"batch {self.batch}, {threads}, {self.runtime} {self.precision}"
        return f"{self.short} (IQR), {self.repeats} repeats, {how}"

    @property
    def short(self) -> str:
        """Median and spread: ``8.2 ms ± 0.3``, to the first digit of the spread and two digits of the median."""
        decimals = 1
        while decimals < 4 and (self.iqr_ms < 10**-decimals or self.median_ms < 10 ** (1 - decimals)):
            decimals += 1
        return f"{self.median_ms:.{decimals}f} ms ± {self.iqr_ms:.{decimals}f}"

    def to_dict(self) -> dict[str, Any]:
        """Return the values for JSON."""
        return {**asdict(self), "samples_ms": list(self.samples_ms)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Latency:
        """Undo `to_dict`."""
        return cls(**{**values, "samples_ms": tuple(values["samples_ms"])})


def measure(
    models: Mapping[str, nn.Module],
    inputs: Any,
    *,
    repeats: int = 30,
    warmup: int = 5,
    threads: int = 1,
    reference: str | None = None,
    progress: Progress | None = None,
) -> dict[str, Latency]:
    """Time `models` on the same inputs, interleaved, in evaluation mode.

    Modes and the process's number of threads are put back. Close other programs first: the spread shows them.

    Args:
        models: name -> network, all on one device (CPU or CUDA).
        inputs: a tensor, a tuple of positional or a dict of keyword arguments, or a pair (tuple, dict) of both.
        repeats: rounds that count, >= 1.
        warmup: least number of rounds before; more are run until times settle, see `MAX_WARMUP`.
        threads: of torch within one operation, on a CPU.
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
    compare_with = reference or ("dense" if "dense" in models else None)
    devices = {device_of(model) for model in models.values()}
    if len(devices) > 1 or next(iter(devices)).type not in ("cpu", "cuda"):
        raise UserError(f"Networks are measured on one CPU or CUDA device, but got {sorted(map(str, devices))}.")
    device = devices.pop()
    args, kwargs = _arguments(inputs)
    args, kwargs = _moved(args, device), _moved(kwargs, device)
    timer = _cuda_time if device.type == "cuda" else _cpu_thread_time if threads == 1 else _cpu_process_time
    most = MAX_WARMUP * warmup
    runs = [_runner(model, args, kwargs, timer) for model in models.values()]
    with ExitStack() as stack:
        for model in models.values():
            stack.enter_context(evaluation_mode(model))
        stack.enter_context(_threads(threads))
        stack.enter_context(_no_collection())
        stack.enter_context(torch.inference_mode())
        task = stack.enter_context((progress or NO_PROGRESS).task("Measuring latency", most + repeats, "rounds"))
        rounds_before, settled = _warm_up(runs, warmup, task)
        task.advance(most - rounds_before)
        times = np.array([_round(runs, number, task) for number in range(repeats)])  # [repeats, models, (wall, cpu)]
    wall, processor = times[..., 0], times[..., 1]
    base = None if compare_with is None else wall[:, list(models).index(compare_with)]
    result = {}
    for index, (name, model) in enumerate(models.items()):
        samples = wall[:, index]
        q1, median, q3 = np.percentile(samples, [25, 50, 75])
        result[name] = Latency(
            median_ms=float(median),
            p10_ms=float(np.percentile(samples, 10)),
            iqr_ms=float(q3 - q1),
            cpu_ms=None if device.type == "cuda" else float(np.median(processor[:, index])),
            ratio=None if base is None else float(np.median(samples / base)),
            reference=compare_with,
            repeats=repeats,
            warmup=rounds_before,
            settled=settled,
            threads=threads,
            batch=_batch_size((args, kwargs)),
            precision=_precision(model),
            device=torch.cuda.get_device_name(device) if device.type == "cuda" else device_info()["cpu"],
            clock="cuda events" if device.type == "cuda" else "wall",
            samples_ms=tuple(round(float(sample), 4) for sample in samples),
        )
    return result


_Run = Callable[[], tuple[float, float]]
"""Run a network once: (wall, processor) milliseconds."""


def _warm_up(runs: Sequence[_Run], least: int, task: Task) -> tuple[int, bool]:
    """Run until times settle; return the number of rounds and whether they did."""
    fastest = np.full(len(runs), np.inf)
    quiet = 0
    for number in range(MAX_WARMUP * least):
        walls = np.array(_round(runs, number, task))[:, 0]
        quiet = 0 if (walls < SETTLED_SHARE * fastest).any() else quiet + 1
        fastest = np.minimum(fastest, walls)
        if number + 1 >= least and quiet >= SETTLED_ROUNDS:
            return number + 1, True
    return MAX_WARMUP * least, False


def _round(runs: Sequence[_Run], number: int, task: Task) -> list[tuple[float, float]]:
    """Run every network once; in odd rounds from the last to the first, so that a drift within rounds cancels."""
    times = [(0.0, 0.0)] * len(runs)
    order = range(len(runs)) if number % 2 == 0 else reversed(range(len(runs)))
    for index in order:
        times[index] = runs[index]()
    task.advance(1)
    return times


def _runner(
    model: nn.Module, args: Any, kwargs: Any, timer: Callable[[Callable[[], Any]], tuple[float, float]]
) -> _Run:
    return lambda: timer(lambda: model(*args, **kwargs))


def _cpu_thread_time(call: Callable[[], Any]) -> tuple[float, float]:
    processor, start = time.thread_time(), time.perf_counter()
    call()
    end = time.perf_counter()
    return (end - start) * 1e3, (time.thread_time() - processor) * 1e3


def _cpu_process_time(call: Callable[[], Any]) -> tuple[float, float]:
    processor, start = time.process_time(), time.perf_counter()
    call()
    end = time.perf_counter()
    return (end - start) * 1e3, (time.process_time() - processor) * 1e3


def _cuda_time(call: Callable[[], Any]) -> tuple[float, float]:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    start.record()
    call()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)), 0.0


def _arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(inputs, Tensor):
        return (inputs,), {}
    if isinstance(inputs, dict):
        return (), inputs
    if len(inputs) == 2 and isinstance(inputs[0], tuple) and isinstance(inputs[1], dict):
        return inputs[0], inputs[1]
    return tuple(inputs), {}


def _moved(value: Any, device: torch.device) -> Any:
    """Return `value` with the tensors in it, however nested, on `device`."""
    if isinstance(value, dict):
        return {name: _moved(part, device) for name, part in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(_moved(part, device) for part in value)
    return value.to(device) if isinstance(value, Tensor) else value


def _batch_size(value: Any) -> int:
    """First dimension of the first tensor in `value`; 0 where there is none."""
    if isinstance(value, Tensor):
        return value.shape[0] if value.dim() else 0
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, tuple | list) else ()
    return next(filter(None, map(_batch_size, parts)), 0)


def _precision(model: nn.Module) -> str:
    for parameter in model.parameters():
        return _DTYPES.get(parameter.dtype, str(parameter.dtype).removeprefix("torch."))
    return "fp32"


@contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Keep the garbage collector, whose pauses are as long as a small network, out of the measurement."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
