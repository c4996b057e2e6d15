"""A disk that is full or read-only stops a command with one line; what was done before is there when it is mended."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults import phases
from tests.faults.harness import FULL, KINDS, Harness
from tests.faults.phases import PHASES

MEGABYTES = 64


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own."""
    path = tmp_path / "disk"
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={MEGABYTES}m", "tmpfs", path], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"no small file system could be mounted, which takes root: {mounted.stderr.strip()}")
    yield path
    subprocess.run(["umount", "--lazy", path], check=True)


def fill(disk: Path, left: int) -> Path:
    """Make a file that leaves so many bytes."""
    ballast = disk / "ballast"
    room = os.statvfs(disk)
    size = room.f_bavail * room.f_frsize - left
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(size, 1))
    return ballast


def fill_up(harness: Harness, name: str, disk: Path, times: int, seed: int) -> None:
    """Run a phase on a disk with too little room, a little more each time; then make room."""
    phase, rng = PHASES[name], random.Random(seed)
    whole = harness.unbroken(phase)
    fresh = harness.fresh(phase)
    folder = disk / "run"
    shutil.copytree(fresh, folder)
    left, full = 0, 0
    for _ in range(times):
        left += rng.choice([4096, 16384, 65536])
        ballast = fill(disk, left)
        process = harness.run(phase, folder)
        code = process.wait()
        if code == 0:
            break
        assert code == 2, process.said()
        assert "No space left on device" in process.said()
        harness.records.append({"phase": name, "kind": KINDS[FULL], "at": f"{left} bytes left", "lost": 0})
        full += 1
        harness.look(phase, folder, whole)
        ballast.unlink()
    assert full
    process = harness.run(phase, folder)
    assert process.wait() == 0, process.said()
    assert phase.outcome(folder) == whole.outcome


def test_full(harness: Harness, disk: Path) -> None:
    fill_up(harness, "search to report", disk, 1, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", PHASES)
def test_full_in_every_phase(harness: Harness, disk: Path, name: str) -> None:
    fill_up(harness, name, disk, 5, seed=1)


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_read_only_folder_can_be_looked_at(harness: Harness, disk: Path) -> None:
    phase = PHASES["trials added"]
    whole = harness.unbroken(phase)
    folder = disk / "run"
    shutil.copytree(harness.started("finished"), folder)
    before = content(folder)
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    shown = harness.call("command", "show", folder / phases.RUN, folder=folder.parent)
    assert shown.wait() == 0, shown.said()
    process = harness.server.start("tests.faults.phases:go_on", phase.name, str(folder), log=disk.with_name("log"))
    assert process.wait() == 2, process.said()
    assert "Read-only file system" in process.said()
    assert phases.trials(folder) == whole.trials[: len(phases.trials(folder))]
    assert content(folder) == before
    subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
    process = harness.run(phase, folder)
    assert process.wait() == 0, process.said()
    assert phase.outcome(folder) == whole.outcome
