"""Circumstances under which times are measured, each put back afterwards, but for freed memory.

A core of its own (`os.sched_setaffinity`) is not among them: beside high priority it made things worse, since the
scheduler may then not move the process to a free core (docs/measuring.md, "What makes the machine quieter").
"""

from __future__ import annotations

import ctypes
import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache

PRIORITY = -10
"""Nice value while measuring. With every core taken by other programs, wall-clock time is then what it is alone."""


@contextmanager
def quiet() -> Iterator[None]:
    """Measure with high priority, where this user may, and without the garbage collector.

    A pause of the collector is as long as a small network. Freed memory stays with the process, see
    `keep_freed_memory`.
    """
    keep_freed_memory()
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        with _priority():
            yield
    finally:
        if collecting:
            gc.enable()


@cache
def keep_freed_memory() -> bool:
    """Let the C library keep what is freed for the next allocation, from now on; say whether it does (glibc only).

    Otherwise large activations are mapped anew in every run, or not, depending on what was allocated before: a page
    fault for every 4 KiB. The same ratio of eager mobilenet_v2, measured twice, then differed by 14 %, and by 4 % with
    memory kept (docs/latency-model.md, "What did not work").
    """
    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h
    try:
        mallopt = ctypes.CDLL(None).mallopt
        return bool(mallopt(mmap_threshold, 32 << 20) and mallopt(trim_threshold, 2**31 - 1))
    except (OSError, AttributeError, TypeError):
        return False


@contextmanager
def _priority() -> Iterator[None]:
    """Raise the priority of all threads; nothing where that is not allowed, or where it is high already.

    Linux keeps a priority for each thread, and a new thread has that of the one that started it: threads that a
    runtime starts meanwhile go back to what the calling thread had.
    """
    before: dict[int, int] = {}
    with suppress(OSError, AttributeError):  # no right to, or no such call on this system
        callers = os.getpriority(os.PRIO_PROCESS, 0)
        for thread in _threads():
            with suppress(ProcessLookupError):  # it has ended
                before[thread] = os.getpriority(os.PRIO_PROCESS, thread)
                os.setpriority(os.PRIO_PROCESS, thread, min(before[thread], PRIORITY))
    try:
        yield
    finally:
        for thread in _threads() if before else ():
            with suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, thread, before.get(thread, callers))


def _threads() -> list[int]:
    """Ids of the threads of this process; 0, the process, where the system shows none."""
    try:
        return [int(name) for name in os.listdir("/proc/self/task")]
    except FileNotFoundError:
        return [0]
