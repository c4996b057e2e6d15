"""Further workers for a search, and what becomes of them: processes on this machine, or tasks of a Ray cluster.

A search needs no worker but itself: what a worker leaves undone is taken over. So one that fails is reported, at once,
and never ends the search.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from importlib.util import find_spec
from typing import Protocol

from autoprune import stopping
from autoprune.config import FROM_PYTHON, SearchConfig
from autoprune.progress import Progress
from autoprune.search_spaces.errors import UserError, unknown
from autoprune.study import Study
from autoprune.workers.local import processes
from autoprune.workers.ray import ray_tasks

EXECUTORS = ("local", "ray")

POLL_S = 0.2
"""How often to look after workers. Less than `stopping.ONE_REQUEST_S`: a worker that Ctrl-C has reached as well as this
process takes what it is sent from here for the same request."""

IDLE_S = 5.0
"""Time that workers get to end when every trial is stored: there is nothing left that they could lose."""

LEAVE_S = stopping.GRACE_S + 5.0
"""Time that workers get to finish their trial, or give it back, when the search is stopped."""


class Member(Protocol):
    """A worker that was started for a search."""

    def ended(self) -> str | None:
        """None while it works; then what went wrong, empty if nothing did."""

    def stop(self) -> None:
        """Ask it to leave: it finishes its trial, or gives it back."""

    def kill(self) -> None:
        """End it now."""


def check_crew(config: SearchConfig, workers: int, executor: str) -> None:
    """Refuse workers that could not work.

    Raises:
        UserError: saying why.
    """
    if not isinstance(workers, int) or workers < 1:
        raise UserError(f"`workers` must be a whole number of at least 1, but got {workers!r}.")
    if executor not in EXECUTORS:
        raise unknown("executor", executor, EXECUTORS)
    if workers == 1:
        return
    if executor == "ray" and find_spec("ray") is None:
        raise UserError("The executor 'ray' needs Ray. Install it: pip install autoprune[ray]")
    objects = {"model": config.model is None, "data": config.data is None, "score": config.score == FROM_PYTHON}
    for name, from_python in objects.items():
        if from_python:
            raise UserError(
                f"Further workers are processes of their own, and the {name} was given as a Python object, which they "
                f"cannot be given. Name it ({name}='package.module:function'), or start workers of your own with "
                f"autoprune.work(run, {name}=...)."
            )


@contextmanager
def crew(study: Study, workers: int, executor: str, progress: Progress) -> Iterator[None]:
    """Let `workers` - 1 others work on a study while the block runs; at its end they finish their trials and leave.

    Args:
        workers: this process included.
        executor: ``local`` or ``ray``.
    """
    if workers == 1:
        yield
        return
    hired: AbstractContextManager[Sequence[Member]]
    hired = ray_tasks(study, workers - 1, progress) if executor == "ray" else processes(study, workers)
    with hired as members, overseen(members, progress):
        yield


@contextmanager
def overseen(members: Sequence[Member], progress: Progress) -> Iterator[None]:
    """Look after workers while the block runs, and see them off at its end."""
    overseer = _Overseer(members, progress)
    try:
        with overseer.watching():
            yield
    except BaseException:
        overseer.stop()
        overseer.see_off(LEAVE_S)
        raise
    overseer.see_off(IDLE_S)


class _Overseer:
    """Reports workers that fail, and passes on what this process is asked; one thread at a time uses it."""

    def __init__(self, members: Sequence[Member], progress: Progress) -> None:
        self._working = dict(enumerate(members, 1))
        self._progress = progress
        self._stopped = False

    @contextmanager
    def watching(self) -> Iterator[None]:
        over = threading.Event()
        thread = threading.Thread(target=self._watch, args=(over,), name="autoprune crew", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _watch(self, over: threading.Event) -> None:
        while self._working and not over.wait(POLL_S):
            if stopping.wanted():
                self.stop()
            if self._report() and not self._working:
                self._progress.say("No other worker is left: the search goes on in this process alone.")

    def _report(self) -> bool:
        """Forget the workers that have ended; say which of them failed, and whether any did."""
        failed = False
        for index, member in list(self._working.items()):
            why = member.ended()
            if why is not None:
                del self._working[index]
            if why:
                self._progress.say(f"Worker {index} {why}")
                failed = True
        return failed

    def stop(self) -> None:
        """Ask all to leave, once: asked twice, they would abandon their trials."""
        if not self._stopped:
            self._stopped = True
            for member in self._working.values():
                member.stop()

    def see_off(self, seconds: float) -> None:
        """Wait until all have ended, and end those that have not in time."""
        deadline = time.monotonic() + seconds
        while self._working and time.monotonic() < deadline:
            self._report()
            time.sleep(0.02)
        for member in self._working.values():
            member.kill()
