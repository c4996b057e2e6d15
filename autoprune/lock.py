"""Locks between processes: an exclusive `flock`, which the kernel releases however the process ends.

`FolderLock` keeps a run folder to one process; `locked` makes others wait for a moment.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from autoprune.search_spaces.errors import UserError

_held: set[int] = set()


class Held:
    """An open file under an exclusive lock, until `release`."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor
        _held.add(descriptor)

    def release(self) -> None:
        """Give the lock back; the file stays, since deleting it would let two processes lock different files."""
        if self._descriptor is not None:
            _held.discard(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = None


def hold(path: Path, *, wait: bool = False) -> Held | None:
    """Lock the file `path`, made where it is missing, with the process id in it.

    Args:
        wait: until another process releases it; without, None where one holds it.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
    except BaseException as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError):
            return None
        raise
    return Held(descriptor)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Wait until no other process writes `path`, and keep others waiting meanwhile.

    The file ``NAME.lock`` beside it stays: removing it would let two processes lock two files.
    """
    with path.with_name(f"{path.name}.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def is_held(path: Path) -> bool:
    """Whether a process holds the lock of the file `path`, which is left as it is."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


class FolderLock:
    """Holds ``folder/lock`` from construction until `release`; usable as a context manager.

    Raises:
        UserError: another process holds it; the message names its process id.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / "lock"
        self._lock = hold(path)
        if self._lock is None:
            owner = path.read_text(errors="replace")[:32].strip() or "unknown"
            raise UserError(
                f"{folder} is in use by process {owner}. Wait until it ends, or stop it with `kill {owner}`."
            )

    def release(self) -> None:
        """Give the folder back."""
        if self._lock is not None:
            self._lock.release()

    def __enter__(self) -> FolderLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def used_by(folder: Path) -> str | None:
    """Number of the process that holds `folder`, "unknown" where it does not say; None where none does."""
    try:
        descriptor = os.open(folder / "lock", os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return None


def _close_in_child() -> None:
    # A forked data-loading worker inherits the descriptor and would hold the lock after its parent was killed.
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_close_in_child)
