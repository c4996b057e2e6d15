"""Who is alive: each worker of a run folder holds a lock on a file of its own, which the kernel gives back at its end.

So what a killed process held is taken over at once. Of a worker on another machine, or of one that hangs, only its
heartbeats tell.
"""

from __future__ import annotations

import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from autoprune.lock import Held, hold, is_held

FOLDER = "workers"

FAR = "@"
"""The name of a worker that does not see the run folder, and has no file in it, begins so."""

LEASE_S = 60.0
"""What a worker holds whose beat stands still for so long is taken over."""

BEAT_S = 10.0
"""How often a worker says that it is alive."""


class Presence:
    """This process as a worker; `folder` is that of the run, None where there is none on this machine.

    Attributes:
        worker: its name: host, process and a random part.
    """

    def __init__(self, folder: Path | None) -> None:
        self.worker = f"{FAR if folder is None else ''}{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        self._folder = None if folder is None else folder / FOLDER
        self._held: Held | None = None
        self._seen: dict[str, tuple[int, float]] = {}  # token -> (beat, when that was seen first)
        if self._folder is not None:
            self._folder.mkdir(exist_ok=True)
            path = self._folder / self.worker
            while self._held is None or not path.exists():  # swept away by another before it was locked
                if self._held is not None:
                    self._held.release()
                self._held = hold(path, wait=True)

    def is_gone(self, worker: str) -> bool:
        """Whether `worker` has certainly ended; False where that cannot be told."""
        if self._folder is None or worker == self.worker or worker.startswith(FAR):
            return False
        if Path(worker).name != worker:  # no name of ours: a database from elsewhere may hold anything
            return False
        try:
            return not is_held(self._folder / worker)
        except OSError:  # it has left: on a full disk, without giving back what it held
            return True

    def is_stale(self, worker: str, token: str, beat: int) -> bool:
        """Whether what `worker` holds under `token` may be taken over: given back, or held by one that has ended.

        A beat that stands still is timed by the monotonic clock here: no two clocks are compared, none has to be right.
        """
        if not token or self.is_gone(worker):
            return True
        before, since = self._seen.get(token, (-1, 0.0))
        if before != beat:
            self._seen[token] = beat, time.monotonic()
            return False
        return time.monotonic() - since > LEASE_S

    def look_anew(self) -> None:
        """Time all beats from now on: nobody could beat while the storage did not answer."""
        self._seen.clear()

    def leave(self) -> None:
        """Say that this worker has ended."""
        if self._held is not None and self._folder is not None:
            (self._folder / self.worker).unlink(missing_ok=True)
            self._held.release()
            self._held = None

    def sweep(self) -> None:
        """Delete the files of workers that were killed: for when nothing is claimed by them any more."""
        if self._folder is not None:
            for path in self._folder.iterdir():
                if path.name == self.worker or path.is_symlink():
                    continue
                lock = hold(path)
                if lock is not None:
                    path.unlink(missing_ok=True)  # before others can lock it
                    lock.release()


def present(run: Path) -> list[str]:
    """Names of the workers of a run folder that live."""
    return sorted(path.name for path in (run / FOLDER).glob("*") if path.is_file() and is_held(path))


@contextmanager
def beating(beat: Callable[[], object]) -> Iterator[None]:
    """Call `beat` every `BEAT_S` in the background while the block runs."""
    ended = threading.Event()

    def run() -> None:
        while not ended.wait(BEAT_S):
            with suppress(Exception):  # the storage does not answer: the next beat may come through
                beat()

    thread = threading.Thread(target=run, name="autoprune heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(timeout=1.0)  # it may be waiting for a server
