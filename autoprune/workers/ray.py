"""Workers of a search as tasks of a Ray cluster: the one that this machine belongs to, or else one on this machine."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from autoprune.progress import Progress
from autoprune.search_spaces.errors import UserError
from autoprune.study import Study
from autoprune.workbench import usable_device


class RayTask:
    """One worker."""

    def __init__(self, ray: Any, task: Any) -> None:
        self._ray, self._task = ray, task
        self._stopped = False

    def ended(self) -> str | None:
        """None while it works, or waits for a place; then what went wrong, empty if nothing did."""
        try:
            done, _ = self._ray.wait([self._task], timeout=0)
            if not done:
                return None
            self._ray.get(self._task)
        except Exception as error:
            if self._stopped:
                return ""
            cause = getattr(error, "cause", None) or error  # Ray's own text is a traceback
            lines = str(cause).strip().splitlines()
            return f"failed: {type(cause).__name__}: {lines[-1] if lines else ''}"
        return ""

    def stop(self) -> None:
        """Ask it to leave: it gives its trial back."""
        self._stopped = True
        self._ray.cancel(self._task)

    def kill(self) -> None:
        """End it now."""
        self._ray.cancel(self._task, force=True)


@contextmanager
def ray_tasks(study: Study, count: int, progress: Progress) -> Iterator[list[RayTask]]:
    """Start `count` tasks with one CPU each, and a GPU where the search uses one.

    Raises:
        UserError: the cluster has several machines, and the trials are in a file of this one.
    """
    ray: Any = import_module("ray")
    ours = not ray.is_initialized()
    if ours:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        _check_cluster(ray, study, count, progress)
        need = {"num_cpus": 1, "num_gpus": int(usable_device(study.config.device) == "cuda")}
        # a task whose process dies is started again: its trial is taken over, so nothing is evaluated twice
        take_part = ray.remote(max_retries=3, **need)(_take_part)
        # as an argument, which Ray does not show, unlike the environment of a task: it may hold a password
        where = (
            {"run": str(study.path)} if study.address.path else {"storage": study.address.secret, "study": study.name}
        )
        yield [RayTask(ray, take_part.options(name=f"autoprune {study.name}").remote(where)) for _ in range(count)]
    finally:
        if ours:
            ray.shutdown()


def _check_cluster(ray: Any, study: Study, count: int, progress: Progress) -> None:
    machines = sum(node["Alive"] for node in ray.nodes())
    if machines > 1 and study.address.path is not None:
        raise UserError(
            f"This Ray cluster has {machines} machines, and the trials are in {study.address.path}, which the others "
            "cannot use. Begin a search that keeps them on a server (--storage postgresql://...), or go on with "
            f"workers on this machine: autoprune resume {study.path} --workers {count + 1}"
        )
    free = int(ray.available_resources().get("CPU", 0))
    if free < count:
        progress.say(
            f"Ray has {free} free CPUs for {count} workers: the others begin when there are more. The search goes on "
            "without them."
        )


def _take_part(where: dict[str, str]) -> int:
    from autoprune.workers.work import work

    return work(**where, trust=True)  # type: ignore[arg-type]  # by whoever started the search
