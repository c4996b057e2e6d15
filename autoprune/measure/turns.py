"""One measures alone, or many compute: processes on this machine that search take turns.

A measurement waits until what others evaluate has ended, and lets nobody begin meanwhile; neither waits for ever. The
kernel gives the locks back however a process ends.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from autoprune import stopping

POLL_S = 0.01

PATIENCE_S = 120.0
"""Nobody waits longer: a process that was stopped in its turn keeps its locks for as long as it pleases."""


@contextmanager
def alone() -> Iterator[None]:
    """Keep other processes from computing while the block runs."""
    with _locked("turn", fcntl.LOCK_EX), _locked("room", fcntl.LOCK_EX):
        yield


@contextmanager
def among_others() -> Iterator[None]:
    """Compute, unless a process is, or waits to be, `alone`."""
    with _locked("turn", fcntl.LOCK_SH):
        room = _locked("room", fcntl.LOCK_SH)
        room.__enter__()
    try:
        yield
    finally:
        room.__exit__(None, None, None)


@contextmanager
def _locked(name: str, how: int) -> Iterator[None]:
    path = Path(tempfile.gettempdir()) / f"autoprune-{os.getuid()}-{name}.lock"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        end = time.monotonic() + PATIENCE_S
        while not _taken(descriptor, how) and time.monotonic() < end:
            stopping.check()
            time.sleep(POLL_S)
        yield
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)  # closing is not enough where a forked process holds it open
        os.close(descriptor)


def _taken(descriptor: int, how: int) -> bool:
    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
