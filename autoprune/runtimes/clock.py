"""How one call is timed: wall clock beside processor time, or the events of a graphics processor."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeAlias

import torch

from autoprune.runtimes.base import Times

Timer: TypeAlias = Callable[[Callable[[], Any]], Times]


def thread_timer(call: Callable[[], Any]) -> Times:
    """Processor time of the calling thread: right where it does all the work."""
    processor, start = time.thread_time(), time.perf_counter()
    call()
    end = time.perf_counter()
    return Times((end - start) * 1e3, (time.thread_time() - processor) * 1e3)


def process_timer(call: Callable[[], Any]) -> Times:
    """Processor time of all threads of the process."""
    processor, start = time.process_time(), time.perf_counter()
    call()
    end = time.perf_counter()
    return Times((end - start) * 1e3, (time.process_time() - processor) * 1e3)


def cuda_timer(call: Callable[[], Any]) -> Times:
    """Time between two events on the current stream, the first recorded when the device is idle."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    start.record()
    call()
    end.record()
    end.synchronize()
    return Times(float(start.elapsed_time(end)), None)


def cpu_timer(threads: int) -> Timer:
    """The timer for work that `threads` threads of this process do, the calling one among them."""
    return thread_timer if threads == 1 else process_timer
