"""Every phase of a run, interrupted again and again, ends as one that was left alone: nothing is lost.

The default tests interrupt one search from its preparation to its report; the slow ones every phase by itself, and the
real command.
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.autoprune.runs import DIGITS, NET, QUICK
from tests.faults import phases
from tests.faults.harness import FULL, KILL, KINDS, READ_ONLY, TEAR, Harness
from tests.faults.phases import PHASES

FAST = "search to report"


@pytest.mark.usefixtures("shim")
def test_killed_before_operations(harness: Harness) -> None:
    assert harness.interrupt(PHASES[FAST], [KILL] * 5 + [TEAR] * 3, seed=0) == 8


def test_killed_at_random_times(harness: Harness) -> None:
    assert harness.interrupt(PHASES[FAST], [0] * 4, seed=0) == 4


@pytest.mark.slow
@pytest.mark.usefixtures("shim")
@pytest.mark.parametrize("name", PHASES)
def test_phase_killed_before_operations(harness: Harness, name: str) -> None:
    assert harness.interrupt(PHASES[name], [KILL] * 8 + [TEAR] * 6, seed=1) == 14


@pytest.mark.slow
@pytest.mark.parametrize("name", PHASES)
def test_phase_killed_at_random_times(harness: Harness, name: str) -> None:
    assert harness.interrupt(PHASES[name], [0] * 5, seed=1) == 5


@pytest.mark.slow
@pytest.mark.usefixtures("shim")
@pytest.mark.parametrize("name", PHASES)
def test_phase_on_a_disk_that_fills_up(harness: Harness, name: str) -> None:
    assert harness.interrupt(PHASES[name], [FULL] * 3 + [READ_ONLY], seed=1) == 4


@pytest.mark.slow
@pytest.mark.usefixtures("shim")
@pytest.mark.parametrize("later", [1, 10, 40, 100, 150])
def test_nothing_is_measured_twice(harness: Harness, later: int) -> None:
    """A device is asked no more often where the process is killed once its latency model is stored."""
    phase = PHASES["latency model"]
    whole = harness.unbroken(phase)
    stored = next(n for n, what in enumerate(whole.operations, 1) if what == "rename r/profile/latency/phone-1.json")
    folder = harness.fresh(phase)
    assert harness.run(phase, folder, KILL, stored + later).wait() == -signal.SIGKILL
    process = harness.run(phase, folder)
    assert process.wait() == 0, process.said()
    assert phase.outcome(folder) == whole.outcome
    assert phases.asked(folder) == phases.asked(whole.folder)


@pytest.mark.slow
def test_command_killed_at_random_times(harness: Harness, tmp_path: Path) -> None:
    settings = [*NET, *DIGITS, *QUICK, "--budget", "macs=0.5x", "--trials", "40", "--finetune-epochs", "2"]
    command = [sys.executable, "-m", "autoprune"]
    whole, broken = tmp_path / "whole" / phases.RUN, tmp_path / "broken" / phases.RUN
    subprocess.run([*command, "search", *settings, "--run", whole], check=True, capture_output=True)
    rng, killed = random.Random(0), 0
    for _ in range(8):
        begun = phases.is_begun(broken.parent)
        what: list[str | Path] = ["resume", broken] if begun else ["search", *settings, "--run", broken]
        process = subprocess.Popen([*command, *what], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            process.wait(timeout=rng.uniform(2, 8))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            killed += 1
            harness.records.append({"phase": "the command", "kind": KINDS[0], "at": "", "lost": 0})
    assert killed >= 3
    subprocess.run([*command, "resume", broken], check=True, capture_output=True)
    assert phases.outcome(broken.parent) == phases.outcome(whole.parent)
