"""`autoprune doctor`, and what a search makes of the damage that it finds: one table of files for both."""

from __future__ import annotations

import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from typer.testing import CliRunner, Result

import autoprune as ap
from autoprune.checkpoint import write_checkpoint
from autoprune.cli import app
from autoprune.config import SearchConfig
from autoprune.diagnosis import BAD, Finding, doctor, is_well, mend
from autoprune.lock import FolderLock
from autoprune.storage.presence import Presence
from tests.autoprune.documents import rewrite
from tests.autoprune.runs import SETTINGS, loaders, tiny_net

SEARCH: dict[str, Any] = {
    **SETTINGS,
    "budget": ["latency=9s", "macs=0.9x"],
    "importance": "taylor",
    "importance_samples": 64,
    "agent": "tpe",
    "bounds": "statistical",
    "measure_trials": "off",
    "points": 1,
    "trials": 3,
    "formats": ["onnx"],
}

CACHES = {
    "profile/importance.json": "same",
    "profile/order.json": "same",
    "profile/prior.json": "same",
    "profile/verified.json": "unread",
    "profile/latency/eager-1.json": "other",
    "profile/losses/0.npz": "unread",
    "profile/device.json": "unread",
    "profile/kl.json": "unread",
    "front.json": "other",
    "front/0/architecture.json": "other",
    "front/0/model.safetensors": "weights",
    "front/0/model.onnx": "other",
}
"""File -> what it is after `resume` made it again: byte for byte the same, another measurement, the same weights; or as
damaged as before, since nothing needed it."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("whole") / "r"
    ap.search(tiny_net(), **loaders(), **SEARCH, finetune=ap.FineTune(epochs=1, lr=0.01), run=run)
    ap.profile(run, levels=1, samples=50, model=tiny_net(), **loaders())
    return run


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "r"))


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def about(run: Path, name: str) -> list[Finding]:
    return [finding for finding in doctor(run) if finding.what == name]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


class Lines:
    """A progress that keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def task(self, *args: Any, **kwargs: Any) -> Any:
        from autoprune.progress import NO_PROGRESS

        return NO_PROGRESS.task(*args, **kwargs)


def test_a_whole_run_is_well_and_is_not_touched(run: Path) -> None:
    before = contents(run)
    found = doctor(run)
    assert is_well(found), "\n".join(map(str, found))
    assert {finding.verdict for finding in found} <= {"ok", "remark"}
    for name in ("config.toml", "study.db", "profile/prior.json", "finetune/*/*.checkpoint", "front/0", "front.json"):
        assert [f.verdict for f in found if f.what == name] == ["ok"], name
    assert contents(run) == before
    shown = call("doctor", run)
    assert (shown.exit_code, shown.stderr) == (0, "")
    assert len(shown.stdout.splitlines()) == len(found)
    content = json.loads(call("doctor", run, "--json").stdout)
    assert (content["well"], len(content["findings"])) == (True, len(found))


QUICK = ("profile/importance.json", "profile/latency/eager-1.json", "profile/device.json", "front/0/model.safetensors")


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in CACHES])
def test_a_damaged_cache_is_found_and_made_again(run: Path, name: str) -> None:
    path = run / name
    before = path.read_bytes()
    path.write_bytes(before[: len(before) // 2])
    findings = about(run, name)
    assert [f.verdict for f in findings] == ["damaged"]
    assert findings[0].do.startswith("autoprune ")
    assert call("doctor", run).exit_code == 1
    trials = ap.resume(run, model=tiny_net(), **loaders()).trials
    assert len(trials) == 3
    if CACHES[name] == "unread":
        assert path.read_bytes() == before[: len(before) // 2]
        return
    assert is_well(doctor(run)), "\n".join(map(str, doctor(run)))
    if CACHES[name] == "same":
        assert path.read_bytes() == before
    elif CACHES[name] == "weights":
        path.with_name("old.safetensors").write_bytes(before)
        old, new = load_file(path.with_name("old.safetensors")), load_file(path)
        assert {k: v.tolist() for k, v in old.items()} == {k: v.tolist() for k, v in new.items()}


def test_what_is_made_again_is_said_in_one_line(run: Path) -> None:
    progress: Any = Lines()
    names = ("profile/order.json", "profile/prior.json", "profile/latency/eager-1.json", "front.json")
    for name in names:
        (run / name).write_text("{")
    ap.resume(run, progress=progress, model=tiny_net(), **loaders())
    for name in names:
        (line,) = [text for text in progress.said if str(run / name) in text]
        assert "is damaged" in line
        assert line.endswith("again.")


DOCUMENTS = [name for name in CACHES if name.endswith(".json") and "front/" not in name]


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in DOCUMENTS])
def test_a_newer_file_is_never_overwritten(run: Path, name: str) -> None:
    rewrite(run / name, lambda content: content.update(format=99))
    before = (run / name).read_bytes()
    (finding,) = about(run, name)
    assert (finding.verdict, finding.do) == ("newer", "Install that autoprune.")
    mend(run)
    if CACHES[name] != "unread":
        with pytest.raises(ap.UserError, match="newer autoprune"):
            ap.resume(run, model=tiny_net(), **loaders())
    assert (run / name).read_bytes() == before


def test_a_newer_checkpoint_or_point_is_left_where_it_is(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (path,) = run.glob("finetune/*/*.checkpoint")
    with monkeypatch.context() as patch:
        patch.setattr("autoprune.checkpoint.FORMAT", 99)
        write_checkpoint(path, {}, {})
    (finding,) = about(run, str(path.relative_to(run)))
    assert finding.verdict == "newer"
    rewrite(run / "front" / "0" / "architecture.json", lambda content: content.update(format=99))
    rewrite(run / "front.json", lambda content: content.update(digests={}))
    (finding,) = about(run, "front/0")
    assert finding.verdict == "newer"
    before = contents(run)
    assert mend(run) == []
    assert contents(run) == before


@pytest.mark.parametrize("name", ["study.db", "config.toml"])
def test_a_damaged_study_is_never_touched(run: Path, name: str) -> None:
    path = run / name
    torn = path.read_bytes()[:200]
    path.write_bytes(torn)
    (finding,) = about(run, name)
    assert finding.verdict == "damaged"
    assert "Restore" in str(finding) or "restore" in str(finding)
    assert call("doctor", run, "--mend").exit_code == 1
    with pytest.raises(ap.UserError, match=f"{name} (is damaged|lacks)"):
        ap.resume(run, model=tiny_net(), **loaders())
    assert path.read_bytes() == torn
    path.unlink()
    assert [f.verdict for f in about(run, name)] in (["missing"], ["damaged"])
    assert not path.exists()


def test_a_trial_that_lost_its_content(run: Path) -> None:
    database = sqlite3.connect(run / "study.db")
    database.execute("UPDATE trial_system_attributes SET value_json = '{}' WHERE trial_id = 2 AND key = 'trial'")
    database.commit()
    database.close()
    (finding,) = about(run, "study.db")
    assert finding.verdict == "damaged"
    assert "a trial cannot be read" in finding.why
    assert str(run / "study.db") in finding.why


def test_mending_removes_and_moves_aside_and_says_so(run: Path) -> None:
    (run / "profile" / ".order.json.4194309.tmp").write_text("torn")
    order, point = run / "profile" / "order.json", run / "front" / "0" / "model.safetensors"
    order.write_text("{")
    point.write_bytes(b"torn")
    settings = (run / "config.toml").read_bytes(), (run / "study.db").read_bytes()
    (left,) = about(run, "profile/.order.json.4194309.tmp")
    assert (left.verdict, left.do) == ("remark", f"autoprune doctor {run} --mend")
    result = call("doctor", run, "--mend")
    assert result.exit_code == 1, "the point has to be exported again"
    mended = [line for line in result.stdout.splitlines() if line.startswith("mended")]
    assert len(mended) == 2
    assert "now called order.json.damaged" in "".join(mended)
    assert not list(run.rglob("*.tmp"))
    assert (order.with_name("order.json.damaged").read_text(), order.exists()) == ("{", False)
    assert point.read_bytes() == b"torn"
    assert ((run / "config.toml").read_bytes(), (run / "study.db").read_bytes()) == settings
    ap.resume(run, model=tiny_net(), **loaders())
    assert is_well(doctor(run))
    assert call("doctor", run).exit_code == 0


def test_a_run_that_is_in_use_is_looked_at_but_not_mended(run: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from autoprune.lock import FolderLock\n"
        f"lock = FolderLock(Path({str(run)!r})); print('held', flush=True); sys.stdin.read()\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "held\n"
        assert [f.why for f in about(run, "lock")] == [f"process {process.pid} works on the run"]
        assert is_well(doctor(run))
        with pytest.raises(ap.UserError, match=f"in use by process {process.pid}"):
            mend(run)
    finally:
        process.communicate()
    assert about(run, "lock") == []
    with FolderLock(run):
        assert [f.why for f in about(run, "lock")] == [f"process {os.getpid()} works on the run"]


def test_a_run_that_further_workers_use_is_not_mended(run: Path) -> None:
    """They hold no lock on the folder, and what they write must not be taken for damaged or moved aside."""
    worker = Presence(run)
    try:
        assert [f.why for f in about(run, "lock")] == [f"process {worker.worker} works on the run"]
        assert is_well(doctor(run))
        with pytest.raises(ap.UserError, match=f"in use by worker {worker.worker}"):
            mend(run)
    finally:
        worker.leave()
    assert about(run, "lock") == []


def test_what_was_promised_and_is_missing(run: Path) -> None:
    config = (run / "config.toml").read_text()
    (run / "profile" / "importance.json").unlink()
    shutil.rmtree(run / "profile" / "latency")
    (run / "report.html").unlink()
    (run / "front" / "0" / "card.md").unlink()
    shutil.copytree(run / "finetune", run / "finetune" / "77")
    found = {f.what: f.verdict for f in doctor(run)}
    assert found["profile/importance.json"] == "remark"
    assert found["profile/latency"] == "remark"
    assert found["report.html"] == found["front/0/card.md"] == "missing"
    assert found["finetune/77"] == "remark"
    lines = [line for line in config.splitlines() if not line.startswith('importance = "') or "taylor" in line]
    (run / "config.toml").write_text("\n".join(lines))  # of a release that could not tell scores apart
    assert SearchConfig.read(run).fingerprints.keys() == {"space", "weights", "data"}
    assert [f.verdict for f in about(run, "profile/importance.json")] == ["missing"]


def test_other_versions_and_a_run_that_is_not_finished(run: Path) -> None:
    text = (run / "config.toml").read_text()
    (run / "config.toml").write_text(text.replace('autoprune = "', 'autoprune = "0.0.'))
    (run / "front.json").unlink()
    found = doctor(run)
    assert is_well(found)
    assert any("made with autoprune 0.0." in f.why for f in found if f.what == "versions")
    assert any("not finished" in f.why for f in found if f.what == "front.json")


def test_what_is_no_run_is_bad_input(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        result = call("doctor", path)
        assert (result.exit_code, result.stdout) == (2, "")
        assert result.stderr.startswith("error: ")


def test_no_damage_of_any_file_makes_it_fail(whole: Path, tmp_path: Path) -> None:
    """Each file torn, flipped, emptied, filled with garbage, and replaced by a folder; on top of each other, too."""
    rng, run = random.Random(0), tmp_path / "r"
    shutil.copytree(whole, run)
    files = [path.relative_to(whole) for path in sorted(whole.rglob("*")) if path.is_file() and path.name != "lock"]
    files = [file for file in files if (whole / file).stat().st_size]
    assert len(files) >= 15
    for file in files:
        path, content = run / file, (whole / file).read_bytes()
        flipped = bytearray(content)
        for _ in range(1 + len(content) // 500):
            flipped[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        for damage in (content[: rng.randrange(len(content))], bytes(flipped), b"", b"[" * 5000, rng.randbytes(400)):
            path.write_bytes(damage)
            found = doctor(run)
            assert found
            assert all(str(finding).startswith(finding.verdict) for finding in found)
            if damage == b"[" * 5000 and path.suffix not in (".md", ".html"):
                assert not is_well(found), file
        path.unlink()
        path.mkdir()
        assert doctor(run)
        path.rmdir()
        path.write_bytes(content)
    assert is_well(doctor(run))
    for file in files:
        (run / file).write_bytes(rng.randbytes(100))
    assert sum(finding.verdict in BAD for finding in doctor(run)) >= 10
