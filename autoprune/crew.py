"""Further workers for a search: processes on this machine, or tasks of a Ray cluster."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from typing import IO

import torch

from autoprune.config import FROM_PYTHON, SearchConfig
from autoprune.progress import Progress
from autoprune.search_spaces.errors import UserError, unknown
from autoprune.storage.address import VARIABLE
from autoprune.study import Study

EXECUTORS = ("local", "ray")

LOGS = "logs"
"""Folder in that of the run: what workers reported."""

LEAVE_S = 40.0
"""Time that workers get to finish or abandon their trial, before they are killed."""


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
    with _ray_tasks(study, workers - 1) if executor == "ray" else _processes(study, workers, progress):
        yield


@contextmanager
def _processes(study: Study, workers: int, progress: Progress) -> Iterator[None]:
    before = torch.get_num_threads()
    threads = max(1, before // workers)  # or all would compute on all cores
    environment = {"OMP_NUM_THREADS": str(threads), **os.environ, VARIABLE: study.address.secret}
    command = [sys.executable, "-m", "autoprune", "worker", str(study.path)]
    (study.path / LOGS).mkdir(exist_ok=True)
    torch.set_num_threads(threads)
    with ExitStack() as stack:
        stack.callback(torch.set_num_threads, before)
        logs: list[IO[bytes]] = []
        started: list[subprocess.Popen[bytes]] = []
        try:
            for index in range(1, workers):
                logs.append(stack.enter_context((study.path / LOGS / f"worker-{index}.log").open("wb")))
                started.append(subprocess.Popen(command, env=environment, stdout=logs[-1], stderr=subprocess.STDOUT))
            yield
        except BaseException:
            for process in started:
                process.terminate()  # they finish their trial, or give it back
            raise
        finally:
            _dismiss(started, study, progress)


def _dismiss(started: list[subprocess.Popen[bytes]], study: Study, progress: Progress) -> None:
    """Wait until workers have ended; say which did not end well, with their last line."""
    deadline = time.monotonic() + LEAVE_S
    for index, process in enumerate(started, 1):
        try:
            process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.returncode not in (0, 130, 143):
            path = study.path / LOGS / f"worker-{index}.log"
            lines = path.read_text(errors="replace").strip().splitlines()
            progress.say(
                f"Worker {index} ended with exit code {process.returncode}: {lines[-1] if lines else ''} ({path})"
            )


@contextmanager
def _ray_tasks(study: Study, count: int) -> Iterator[None]:
    """Run workers as tasks of the Ray cluster that this machine belongs to, or else of one on this machine."""
    import ray

    if not ray.is_initialized():
        ray.init(log_to_driver=False, include_dashboard=False)
    # a task that dies is started again: its trial is taken over, so nothing is evaluated twice
    take_part = ray.remote(max_retries=3)(_take_part)
    tasks = [take_part.remote(study.address.secret, study.name) for _ in range(count)]
    try:
        yield
        ray.get(tasks, timeout=LEAVE_S)
    finally:
        for task in tasks:
            ray.cancel(task)


def _take_part(storage: str, name: str) -> int:
    from autoprune.worker import work

    return work(storage=storage, study=name, trust=True)  # by whoever started the search
