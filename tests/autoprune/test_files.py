from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from autoprune.files import atomic_folder, atomic_write, leftovers, read_json, remove_leftovers, set_aside, write_json
from autoprune.search_spaces.errors import UserError


def test_write_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    atomic_write(tmp_path / "a", "old")
    atomic_write(tmp_path / "a", "größer")
    assert (tmp_path / "a").read_bytes() == "größer".encode()
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]


def test_full_disk_keeps_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    limited = (
        "import resource, signal; from pathlib import Path; from autoprune.files import atomic_write\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        f"atomic_write(Path({str(tmp_path / 'a')!r}), b'x' * 5000)\n"
    )
    ended = subprocess.run([sys.executable, "-c", limited], capture_output=True, text=True, check=False)
    assert "OSError" in ended.stderr
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text() == "old"


def test_folder_appears_whole(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "deep" / "f") as folder:
        (folder / "inside").write_text("1")
        assert not (tmp_path / "deep" / "f").exists()
    assert (tmp_path / "deep" / "f" / "inside").read_text() == "1"
    with atomic_folder(tmp_path / "deep" / "f") as folder:
        (folder / "other").write_text("2")
    assert [entry.name for entry in (tmp_path / "deep" / "f").iterdir()] == ["other"]


def test_failed_folder_is_absent(tmp_path: Path) -> None:
    def fail() -> None:
        with atomic_folder(tmp_path / "f") as folder:
            (folder / "inside").write_text("1")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_folder_that_must_be_new_never_replaces(tmp_path: Path) -> None:
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "mine").write_text("1")
    with pytest.raises(OSError, match="not empty"), atomic_folder(tmp_path / "f", replace=False):
        pass
    assert [entry.name for entry in tmp_path.rglob("*")] == ["f", "mine"]


def test_json_round_trip_and_damage(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"x": [0.1, None]})
    assert read_json(tmp_path / "a.json") == {"x": [0.1, None]}
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", float("nan"))
    assert read_json(tmp_path / "a.json") == {"x": [0.1, None]}
    (tmp_path / "a.json").write_text('{"x": ')
    with pytest.raises(UserError, match="not a JSON file"):
        read_json(tmp_path / "a.json")
    with pytest.raises(UserError, match="no file"):
        read_json(tmp_path / "b.json")


def test_leftovers_of_killed_processes_are_swept(tmp_path: Path) -> None:
    """Anywhere in a folder; what another process that lives is writing stays, and what is none of ours."""
    dead, host = 4194309, re.sub(r"[^\w-]", "_", socket.gethostname())  # above the highest number of a process
    deep = tmp_path / "profile" / "latency"
    deep.mkdir(parents=True)
    for name in (f".a.{dead}.tmp", f".a.{host}-{dead}.tmp", f".a.{host}-{os.getpid()}.tmp", ".a.elsewhere-1.tmp"):
        (deep / name).write_text("torn")
    os.utime(deep / ".a.elsewhere-1.tmp", (0, 0))  # of another machine, and days old
    (tmp_path / f".f.{dead}.tmp").mkdir()
    (tmp_path / f".f.{dead}.tmp" / "x").write_text("torn")
    kept = {"keep.tmp", f".b.{host}-{os.getppid()}.tmp", ".b.elsewhere-1.tmp", ".hidden"}
    for name in kept:
        (deep / name).write_text("")
    outside = tmp_path.with_name(f"{tmp_path.name}-outside")
    outside.mkdir()
    (outside / f".a.{dead}.tmp").write_text("not in the folder")
    (tmp_path / "link").symlink_to(outside)
    assert len(leftovers(tmp_path)) == 5
    remove_leftovers(tmp_path)
    assert set(os.listdir(deep)) == kept
    assert sorted(os.listdir(tmp_path)) == ["link", "profile"]
    assert os.listdir(outside) == [f".a.{dead}.tmp"]


def test_a_folder_whose_making_was_killed_is_made_again(tmp_path: Path) -> None:
    killed = (
        "import os; from pathlib import Path; from autoprune.files import atomic_folder\n"
        f"with atomic_folder(Path({str(tmp_path / 'f[1]')!r})): os._exit(1)\n"
    )
    subprocess.run([sys.executable, "-c", killed], check=False)
    assert len(os.listdir(tmp_path)) == 1
    with atomic_folder(tmp_path / "f[1]"):
        pass
    assert os.listdir(tmp_path) == ["f[1]"]


def test_aside_nothing_is_overwritten(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / "a").write_text(str(number))
        set_aside(tmp_path / "a")
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {
        "a.damaged": "0", "a.damaged-2": "1", "a.damaged-3": "2"
    }  # fmt: skip
