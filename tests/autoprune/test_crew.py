"""Workers that a search starts: what they are given, and what is made of their ends."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from autoprune import stopping
from autoprune.progress import NO_PROGRESS
from autoprune.search_spaces.errors import UserError
from autoprune.storage.address import VARIABLE
from autoprune.study import Study
from autoprune.workers import crew as crew_module
from autoprune.workers import local as crew_local
from autoprune.workers.crew import overseen
from autoprune.workers.local import Process, processes
from autoprune.workers.ray import ray_tasks
from tests.autoprune.runs import DIGITS, NET, QUICK
from tests.autoprune.test_controller import config


class Said:
    """A progress that keeps what it is told."""

    task = NO_PROGRESS.task

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


class Fake:
    """A worker that ends when it is told to: `why` is what it says then."""

    def __init__(self, why: str | None = None, *, stubborn: bool = False) -> None:
        self.why, self.stubborn = why, stubborn
        self.stops, self.killed = 0, False

    def ended(self) -> str | None:
        return self.why

    def stop(self) -> None:
        self.stops += 1
        if not self.stubborn:
            self.why = ""

    def kill(self) -> None:
        self.killed = True


def until(claim: Callable[[], object]) -> None:
    """Wait for what another thread or process does; the limit is for a broken program only."""
    limit = time.monotonic() + 60
    while not claim():
        assert time.monotonic() < limit
        time.sleep(0.001)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew_module, "POLL_S", 0.001)
    monkeypatch.setattr(crew_module, "IDLE_S", 0.05)
    monkeypatch.setattr(crew_module, "LEAVE_S", 0.05)


def test_failed_workers_are_reported_while_the_search_goes_on() -> None:
    said, workers = Said(), [Fake(), Fake()]
    with overseen(workers, said):
        workers[1].why = "was killed."
        until(lambda: said.lines)
        assert said.lines == ["Worker 2 was killed."]
        workers[0].why = "ended."
        until(lambda: len(said.lines) == 3)
    assert said.lines[1:] == ["Worker 1 ended.", "No other worker is left: the search goes on in this process alone."]


def test_workers_that_came_to_the_end_are_not_worth_a_word() -> None:
    said = Said()
    with overseen([Fake(""), Fake("")], said):
        pass
    assert said.lines == []


def test_workers_are_asked_to_leave_once_and_as_soon_as_this_process_is(monkeypatch: pytest.MonkeyPatch) -> None:
    workers = [Fake(stubborn=True), Fake(stubborn=True)]
    with pytest.raises(stopping.Stopped), overseen(workers, Said()):  # noqa: PT012  # all of it happens while it runs
        monkeypatch.setattr(stopping, "wanted", lambda: True)
        until(lambda: all(worker.stops for worker in workers))
        raise stopping.Stopped(signal.SIGTERM)
    assert [(worker.stops, worker.killed) for worker in workers] == [(1, True)] * 2


def test_a_search_that_fails_takes_its_workers_along() -> None:
    workers = [Fake(), Fake()]
    with pytest.raises(UserError), overseen(workers, Said()):
        raise UserError("no")
    assert [(worker.stops, worker.killed) for worker in workers] == [(1, False)] * 2


def test_workers_without_trials_left_are_ended() -> None:
    worker = Fake(stubborn=True)
    with overseen([worker], Said()):
        pass
    assert worker.killed


def ended(script: str, log: Path, do: Callable[[Process], object] = lambda process: None) -> str:
    process = Process([sys.executable, "-c", script], dict(os.environ), log)
    do(process)
    until(lambda: process.ended() is not None)
    return process.ended() or ""


def test_the_last_line_of_a_process_that_fails_is_its_reason(tmp_path: Path) -> None:
    log = tmp_path / "worker-1.log"
    assert ended("print('fine')", log) == ""
    why = ended("import sys; print('begun'); sys.exit('error: no such weights')", log)
    assert why == f"ended with exit code 1: error: no such weights. See {log}"
    assert ended("raise SystemExit(4)", log) == f"ended with exit code 4. See {log}"  # not what others wrote before
    assert "fine" in log.read_text()  # which stays


def test_processes_that_are_killed_or_asked_to_leave(tmp_path: Path) -> None:
    sleep = "import time; time.sleep(600)"
    assert "was killed (SIGKILL)" in ended(sleep, tmp_path / "log", Process.kill)
    assert ended(sleep, tmp_path / "log", Process.stop) == ""


@pytest.mark.parametrize(("given", "here", "there"), [(None, 2, "2"), ("3", 6, "3")])
def test_processes_share_the_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str | None, here: int, there: str
) -> None:
    started = []
    monkeypatch.setattr(crew_local, "Process", lambda *arguments: started.append(arguments))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    before = torch.get_num_threads()
    torch.set_num_threads(6)
    try:
        with Study.create(tmp_path / "r", config()) as study, processes(study, 3):
            assert torch.get_num_threads() == here
        assert torch.get_num_threads() == 6
    finally:
        torch.set_num_threads(before)
    assert [environment["OMP_NUM_THREADS"] for _, environment, _ in started] == [there] * 2
    assert {environment[VARIABLE] for _, environment, _ in started} == {study.address.secret}
    assert [log.name for _, _, log in started] == ["worker-1.log", "worker-2.log"]


class FakeRay(SimpleNamespace):
    """Ray with `machines`, one free CPU, and tasks that fail at once."""

    def __init__(self, machines: int = 1, running: bool = False) -> None:
        super().__init__()
        self.machines, self.running = machines, running
        self.arguments: list[tuple[Any, ...]] = []

    def is_initialized(self) -> bool:
        return self.running

    def init(self, **settings: Any) -> None:
        self.running = True

    def shutdown(self) -> None:
        self.running = False

    def nodes(self) -> list[dict[str, bool]]:
        return [{"Alive": True}] * self.machines + [{"Alive": False}]

    def available_resources(self) -> dict[str, float]:
        return {"CPU": 1.0}

    def remote(self, **needs: Any) -> Any:
        def remote(*arguments: Any) -> str:
            self.arguments.append(arguments)
            return f"task {len(self.arguments)}"

        return lambda function: SimpleNamespace(options=lambda **shown: SimpleNamespace(remote=remote))

    def wait(self, tasks: list[str], timeout: float) -> tuple[list[str], list[str]]:
        return tasks, []

    def get(self, task: str) -> None:
        error = RuntimeError("a long traceback")
        error.cause = ModuleNotFoundError("No module named 'autoprune'")  # type: ignore[attr-defined]
        raise error

    def cancel(self, task: str, force: bool = False) -> None: ...


@pytest.mark.parametrize("running", [False, True])
def test_ray_tasks_that_fail_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, running: bool) -> None:
    ray, said = FakeRay(running=running), Said()
    monkeypatch.setitem(sys.modules, "ray", ray)
    with Study.create(tmp_path / "r", config()) as study, ray_tasks(study, 2, said) as tasks:
        assert ray.running
        with overseen(tasks, said):
            until(lambda: len(said.lines) == 4)
    assert "1 free CPUs for 2 workers" in said.lines[0]
    assert said.lines[1:3] == [f"Worker {n} failed: ModuleNotFoundError: No module named 'autoprune'" for n in (1, 2)]
    assert ray.arguments == [({"run": str(tmp_path / "r")},)] * 2
    assert ray.running is running  # ended only where it was begun here


def test_a_file_is_no_storage_for_a_ray_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = FakeRay(machines=2)
    monkeypatch.setitem(sys.modules, "ray", ray)
    with (
        Study.create(tmp_path / "r", config()) as study,
        pytest.raises(UserError, match=r"2 machines.*resume .*r --workers 3"),
        ray_tasks(study, 2, Said()),
    ):
        raise AssertionError
    assert not ray.running


@pytest.mark.slow
def test_a_search_with_ray(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    from typer.testing import CliRunner

    from autoprune.cli import app

    run = tmp_path / "r"
    options = [*NET, *DIGITS, *QUICK, "--budget", "macs=0.5x", "--agent", "random", "--run", str(run)]
    result = CliRunner().invoke(app, ["search", *options, "--trials", "300", "--workers", "2", "--executor", "ray"])
    assert result.exit_code == 0, result.output
    assert "Worker 1 failed" not in result.output
    assert sorted(trial.number for trial in Study.read(run).trials) == list(range(300))
