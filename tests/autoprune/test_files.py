from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from autoprune.files import atomic_folder, atomic_write, read_json, remove_leftovers, write_json
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
    (tmp_path / ".a.12.tmp").write_text("torn")
    (tmp_path / ".f.12.tmp").mkdir()
    (tmp_path / ".f.12.tmp" / "x").write_text("torn")
    (tmp_path / "keep.tmp").write_text("")
    remove_leftovers(tmp_path)
    assert os.listdir(tmp_path) == ["keep.tmp"]
