"""Circumstances under which times are measured, each put back afterwards.

A core of its own (`os.sched_setaffinity`) is not among them: beside high priority it made things worse, since the
scheduler may then not move the process to a free core (docs/measuring.md).
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

PRIORITY = -10
"""Nice value while measuring. With every core taken by other programs, wall-clock time is then what it is alone."""


@contextmanager
def quiet() -> Iterator[None]:
    """Measure with high priority, where this user may, and without the garbage collector.

    A pause of the collector is as long as a small network.
    """
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        with _priority():
            yield
    finally:
        if collecting:
            gc.enable()


@contextmanager
def _priority() -> Iterator[None]:
    """Raise the calling thread's priority; nothing where that is not allowed, or where it is high already."""
    before = None
    with suppress(OSError, AttributeError):  # no right to, or no such call on this system
        before = os.getpriority(os.PRIO_PROCESS, 0)
        os.setpriority(os.PRIO_PROCESS, 0, min(before, PRIORITY))
    try:
        yield
    finally:
        if before is not None:
            with suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, 0, before)
