"""Run checks in processes of their own: one that crashes, hangs or is killed is one failed record, nothing more."""

from __future__ import annotations

import multiprocessing
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from tests.zoo import records
from tests.zoo.case import Case
from tests.zoo.models import cases
from tests.zoo.records import Record

SECONDS, GIGABYTES = 300.0, 6.0


def run(chosen: Sequence[Case], folder: Path, jobs: int, seconds: float, gigabytes: float) -> Iterator[Record]:
    """Check networks, `jobs` at a time; yields every record when it is there, in order of completion.

    The processes are forked from one that has done a trace already: what that imports takes longer than many checks.
    """
    context = multiprocessing.get_context("forkserver")
    modules = {"warm", *(f"{case.library}_models" for case in chosen)}
    context.set_forkserver_preload([f"tests.zoo.{name}" for name in sorted(modules)])
    waiting = list(reversed(chosen))
    running: dict[BaseProcess, tuple[Case, float]] = {}
    while waiting or running:
        while waiting and len(running) < jobs:
            case = waiting.pop()
            records.path_of(folder, case.library, case.name).unlink(missing_ok=True)
            process: BaseProcess = context.Process(
                target=_child, args=(case.library, case.name, str(folder), case.gigabytes or gigabytes), daemon=True
            )
            process.start()
            running[process] = (case, time.monotonic())
        wait([process.sentinel for process in running], timeout=1)
        for process, (case, started) in list(running.items()):
            limit = case.seconds or seconds
            late = time.monotonic() - started > limit
            if late:
                process.kill()
                process.join()
            if not process.is_alive():
                del running[process]
                problem = f"stopped after {limit:g} s" if late else _problem(process.exitcode)
                yield _finished(case, folder, problem, time.monotonic() - started)


def _problem(exitcode: int | None) -> str:
    if not exitcode:
        return ""
    return f"killed by signal {-exitcode}" if exitcode < 0 else f"left with exit code {exitcode}"


def _finished(case: Case, folder: Path, problem: str, seconds: float) -> Record:
    """What the process wrote, with the way it ended where that was not the right one."""
    record = records.load(folder, case.library, case.name)
    if record is None:
        record, problem = Record(library=case.library, name=case.name), problem or "left without a record"
    record.total_s = round(seconds, 1)
    if problem:
        record.failures.append(f"process: {problem}")
    records.save(record, folder)
    return record


def _child(library: str, name: str, folder: str, gigabytes: float) -> None:
    limit = int(gigabytes * 2**30)
    # private memory only: what the libraries map from their files is shared, and large
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    from tests.zoo.check import check  # loads torch; the process that hands out the work does not need it

    note: Callable[[Record], None] = lambda record: records.save(record, Path(folder))  # noqa: E731
    note(check(cases(library)[name], note))
