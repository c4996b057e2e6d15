"""One process at a time in a run folder: stopped, killed, or started in the same instant as another."""

from __future__ import annotations

import shutil
import signal
import time
from pathlib import Path

import pytest

from autoprune.config import SearchConfig
from tests.faults import phases
from tests.faults.harness import PATIENCE, Harness, Process
from tests.faults.phases import FINISHED, PHASES, RUN


@pytest.fixture
def folder(harness: Harness, tmp_path: Path) -> Path:
    """Holds a finished run; whoever adds trials to it waits at a gate, with the run in use."""
    folder = tmp_path / "gated"
    shutil.copytree(harness.started("gated"), folder)
    (folder / "gate").touch()
    return folder


def until_waiting(process: Process, folder: Path) -> None:
    end = time.monotonic() + PATIENCE
    while not (folder / f"waits-{process.pid}").exists():
        assert process.wait(0.01) is None, process.said()
        assert time.monotonic() < end


def open_gate(process: Process, folder: Path) -> None:
    """Let the process end, with the two trials that it adds."""
    (folder / "gate").unlink()
    assert process.wait() == 0, process.said()
    assert len(phases.trials(folder)) == FINISHED["trials"] + 2


def assert_refused(process: Process, holder: Process) -> None:
    assert process.wait() == 2, process.said()
    assert f"in use by process {holder.pid}" in process.said()


def test_stopped_process_keeps_the_folder_and_goes_on(harness: Harness, folder: Path) -> None:
    holder = harness.call("add_when_told", folder, folder=folder)
    until_waiting(holder, folder)
    holder.send(signal.SIGSTOP)
    assert_refused(harness.call("add_when_told", folder, folder=folder), holder)
    holder.send(signal.SIGCONT)
    open_gate(holder, folder)


@pytest.mark.slow
def test_killed_process_leaves_the_folder_free(harness: Harness, folder: Path) -> None:
    killed = harness.call("add_when_told", folder, folder=folder)
    until_waiting(killed, folder)
    assert killed.kill() == -signal.SIGKILL
    (folder / "gate").unlink()
    planned = SearchConfig.read(folder / RUN).trials
    process = harness.call("add_when_told", folder, folder=folder)
    assert process.wait() == 0, process.said()
    assert len(phases.trials(folder)) == planned + 2


def race(harness: Harness, folder: Path) -> None:
    """Two processes that open one run in the same instant: one adds its trials, the other is refused."""
    instant = time.time() + 0.2
    both = [harness.call("add_when_told", folder, instant, folder=folder) for _ in range(2)]
    end = time.monotonic() + PATIENCE
    while all(process.wait(0.01) is None for process in both):
        assert time.monotonic() < end, "both are in the folder, or neither ends"
    holder, refused = sorted(both, key=lambda process: process.wait(0) is not None)
    assert_refused(refused, holder)
    open_gate(holder, folder)


def test_two_at_the_same_instant(harness: Harness, folder: Path) -> None:
    race(harness, folder)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(20))
def test_two_at_the_same_instant_again(harness: Harness, folder: Path, number: int) -> None:
    race(harness, folder)


def make_one_run_twice(harness: Harness, folder: Path) -> None:
    """Two processes that make one run in the same instant: one makes it, the other is refused."""
    phase = PHASES["search to report"]
    folder.mkdir()
    both = [harness.run(phase, folder) for _ in range(2)]
    assert sorted(process.wait() or 0 for process in both) == [0, 2], both[0].said()
    assert phase.outcome(folder) == harness.unbroken(phase).outcome


@pytest.mark.slow
@pytest.mark.parametrize("number", range(20))
def test_one_run_made_twice(harness: Harness, tmp_path: Path, number: int) -> None:
    make_one_run_twice(harness, tmp_path / "twice")
