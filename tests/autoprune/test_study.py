from __future__ import annotations

import errno
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import optuna
import pytest

from autoprune.agents.base import Trial
from autoprune.config import FILE as CONFIG
from autoprune.config import SearchConfig
from autoprune.search_spaces.errors import UserError
from autoprune.storage import Address, Claim, Database
from autoprune.study import FILE, Study

CONFIGURATION = SearchConfig(budget=("latency=8ms", "macs=0.5x"), trials=5)
RATIOS = {"conv1": 0.5, "conv2": 1.0}
TRIALS = [
    Trial(
        number=0,
        candidate=(1, 3),
        state="complete",
        score=0.1 + 0.2,
        costs={"macs": 1e9 / 3, "params": 7.0, "latency": 0.7},
        share=0.8,
        seconds=1.5,
    ),
    Trial(number=1, candidate=(0, 3), state="failed", score=None, costs={"macs": 1.0}, message="ValueError: [x]"),
    Trial(number=2, candidate=(2, 2), state="cut", score=0.25, costs={"macs": 2.0}, message="bound"),
]


def claimed(study: Study) -> Claim:
    claim = study.next().claim
    assert claim is not None
    return claim


def append(study: Study, trial: Trial) -> None:
    study.store(claimed(study), trial, RATIOS)


def fill(path: Path) -> None:
    with Study.create(path, CONFIGURATION) as study:
        for trial in TRIALS:
            append(study, trial)


def test_trials_come_back_bit_for_bit(tmp_path: Path) -> None:
    fill(tmp_path / "{run} %20?")
    with Study.open(tmp_path / "{run} %20?") as study:
        assert study.trials == TRIALS
        assert study.config == CONFIGURATION
        assert study.path == tmp_path / "{run} %20?"


def test_optuna_sees_a_finished_study(tmp_path: Path) -> None:
    fill(tmp_path / "r")
    study = optuna.load_study(study_name="r", storage=f"sqlite:///{tmp_path / 'r' / FILE}")
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "FAIL", "PRUNED"]
    assert study.metric_names == ["score", "macs", "latency"]
    assert [direction.name for direction in study.directions] == ["MAXIMIZE", "MINIMIZE", "MINIMIZE"]
    first = study.trials[0]
    assert first.values == [0.1 + 0.2, 1e9 / 3, 0.7]
    assert first.params == RATIOS
    assert first.duration is not None
    assert first.duration.total_seconds() == pytest.approx(1.5, abs=0.1)


def test_a_trial_is_one_commit(tmp_path: Path) -> None:
    """A reader at any moment sees all of a trial or none: nothing of it is visible before the commit."""
    import sqlalchemy

    with Study.create(tmp_path / "r", CONFIGURATION) as study:
        commits: list[int] = []
        engine = study._database.engine
        sqlalchemy.event.listen(engine, "commit", lambda connection: commits.append(1))
        written: list[str] = []
        sqlalchemy.event.listen(
            engine,
            "before_cursor_execute",
            lambda c, cursor, statement, *rest: written.append(statement) if statement.startswith("INSERT") else None,
        )
        claim = claimed(study)
        study.store(claim, TRIALS[0], RATIOS)
        assert len(written) > 5
        assert len(commits) == 1


def test_run_folder_exists_already(tmp_path: Path) -> None:
    fill(tmp_path / "r")
    with pytest.raises(UserError, match="autoprune resume"):
        Study.create(tmp_path / "r", CONFIGURATION)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").write_text("")
    with pytest.raises(UserError, match="not a run folder"):
        Study.create(tmp_path / "mine", CONFIGURATION)
    (tmp_path / "empty").mkdir()
    Study.create(tmp_path / "empty", CONFIGURATION).close()


def test_creation_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(address: Address, *rest: object) -> None:
        assert address.path is not None
        address.path.write_text("x")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Database, "create", full)
    with pytest.raises(OSError, match="No space"):
        Study.create(tmp_path / "r", CONFIGURATION)
    assert list(tmp_path.iterdir()) == []


def test_second_process_is_refused_and_looking_is_allowed(tmp_path: Path) -> None:
    fill(tmp_path / "r")
    held = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys; from pathlib import Path; from autoprune.study import Study\n"
            "study = Study.open(Path(sys.argv[1]))\n"
            "print('open', flush=True); sys.stdin.read()",
            str(tmp_path / "r"),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert held.stdout is not None
        assert held.stdout.readline() == b"open\n"
        with pytest.raises(UserError, match=f"in use by process {held.pid}"):
            Study.open(tmp_path / "r")
        assert Study.read(tmp_path / "r").trials == TRIALS
        held.kill()
        held.wait()
        Study.open(tmp_path / "r").close()
    finally:
        held.kill()
        held.wait()


def test_lock_is_not_inherited_by_forked_workers(tmp_path: Path) -> None:
    fill(tmp_path / "r")
    study = Study.open(tmp_path / "r")
    worker = os.fork()
    if worker == 0:
        time.sleep(60)
        os._exit(0)
    try:
        time.sleep(0.05)
        study.close()
        with Study.open(tmp_path / "r") as again:
            assert again.trials == study.trials
    finally:
        os.kill(worker, signal.SIGKILL)
        os.waitpid(worker, 0)


def test_failed_opening_releases_the_lock(tmp_path: Path) -> None:
    fill(tmp_path / "r")
    content = (tmp_path / "r" / FILE).read_bytes()
    (tmp_path / "r" / FILE).unlink()
    with pytest.raises(UserError, match="missing"):
        Study.open(tmp_path / "r")
    (tmp_path / "r" / FILE).write_bytes(content)
    Study.open(tmp_path / "r").close()


@pytest.mark.parametrize("damage", ["text", "header", "zeros", "empty", "other"])
def test_damaged_database(tmp_path: Path, damage: str) -> None:
    fill(tmp_path / "r")
    path = tmp_path / "r" / FILE
    content = path.read_bytes()
    half = len(content) // 2
    path.write_bytes(
        {
            "text": b"hello" * 1000,
            "header": b"\0" * 100 + content[100:],
            "zeros": content[:half] + bytes(len(content) - half),
            "empty": b"",
            "other": b"",
        }[damage]
    )
    if damage == "other":
        optuna.create_study(storage=f"sqlite:///{path}").add_trial(optuna.trial.create_trial(value=1.0))
    with pytest.raises(UserError, match="damaged or not a study"):
        Study.read(tmp_path / "r")


def test_other_format(tmp_path: Path) -> None:
    fill(tmp_path / "r")
    config = tmp_path / "r" / CONFIG
    config.write_text(config.read_text().replace("format = 1", "format = 0"))
    with pytest.raises(UserError, match="another version"):
        Study.open(tmp_path / "r")


def test_leftovers_are_swept_on_opening(tmp_path: Path) -> None:
    fill(tmp_path / "r")
    (tmp_path / "r" / f".{CONFIG}.4194309.tmp").write_text("[run]\nfor")
    with Study.open(tmp_path / "r") as study:
        assert study.trials == TRIALS
    assert not list((tmp_path / "r").glob(".*"))


def test_full_disk_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite's own page limit stands in for a full disk: it fails with the same error."""
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # Optuna waits between five attempts
    fill(tmp_path / "r")
    with Study.open(tmp_path / "r") as study:
        study._database._storage.scoped_session().connection().exec_driver_sql("PRAGMA max_page_count = 1")
        big = Trial(number=3, candidate=(1,) * 50_000, state="failed", score=None, message="x" * 50_000)
        with pytest.raises(OSError, match="No space left") as caught:
            append(study, big)
        assert caught.value.errno == errno.ENOSPC
        assert study.trials == TRIALS
    assert Study.read(tmp_path / "r").trials == TRIALS


def test_plan_is_durable(tmp_path: Path) -> None:
    fill(tmp_path / "r")
    with Study.open(tmp_path / "r") as study:
        study.change(trials=90)
    assert Study.read(tmp_path / "r").config.trials == 90


def test_full_disk_while_the_study_is_made_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = sqlite3.connect

    def small(*args: Any, **kwargs: Any) -> sqlite3.Connection:
        connection: sqlite3.Connection = original(*args, **kwargs)
        connection.execute("PRAGMA max_page_count = 8")
        return connection

    monkeypatch.setattr("autoprune.storage.address.sqlite3.connect", small)
    with pytest.raises(OSError, match="No space left") as caught:
        Study.create(tmp_path / "r", CONFIGURATION)
    assert caught.value.errno == errno.ENOSPC
    assert list(tmp_path.iterdir()) == []
