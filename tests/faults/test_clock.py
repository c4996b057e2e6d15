"""Nothing but what is shown as a time depends on the wall clock: it may jump."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.harness import Harness
from tests.faults.phases import PHASES


def check(harness: Harness, name: str, folder: Path) -> None:
    folder.mkdir()
    process = harness.call("go_on_under_a_wild_clock", name, folder, folder=folder)
    assert process.wait() == 0, process.said()
    assert PHASES[name].outcome(folder) == harness.unbroken(PHASES[name]).outcome


@pytest.mark.slow
@pytest.mark.usefixtures("shim")
@pytest.mark.parametrize("name", [name for name, phase in PHASES.items() if phase.start is None])
def test_clock_jumps(harness: Harness, tmp_path: Path, name: str) -> None:
    check(harness, name, tmp_path / "jumps")
