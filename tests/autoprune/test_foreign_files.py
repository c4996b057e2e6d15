"""Files of a run or an exported folder that somebody made up: they lead nowhere else, and end in one message."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import shutil
import sqlite3
import struct
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

import autoprune
from autoprune.card import card
from autoprune.checkpoint import read_checkpoint, write_checkpoint
from autoprune.cli import app
from autoprune.config import SearchConfig
from autoprune.data.readers import load_arrays
from autoprune.files import atomic_write, check_links, read_json
from autoprune.finished import Finished
from autoprune.journal import check_journal
from autoprune.models import ModelSource, load_weights
from autoprune.points import example_inputs
from autoprune.races import read_losses
from autoprune.search_spaces.errors import UserError
from tests.autoprune.runs import SETTINGS, tiny_net

NET = ModelSource("autoprune.nets:small_resnet", {"widths": [8, 16], "blocks": [1, 1]})
SAMPLES = 144
"""Of the search split of the digits."""


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("foreign") / "r"
    autoprune.search(NET, data="digits", run=run, trials=2, **(SETTINGS | {"points": 1}))
    return run


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "r"))


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A folder of the user's that nothing may touch; every test ends with a look at it."""
    folder = tmp_path / "home"
    (folder / "sub").mkdir(parents=True)
    (folder / "file").write_text("mine")
    (folder / "sub" / "file").write_text("mine")
    return folder


def untouched(folder: Path) -> bool:
    files = {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}
    return files == {"file": "mine", "sub/file": "mine"}


def edit(path: Path, change: Callable[[Any], Any]) -> None:
    content = json.loads(path.read_text())
    content.pop("digest", None)  # which a forger can leave out, or compute
    change(content)
    path.write_text(json.dumps(content))


def refused(result: Result, *words: str) -> None:
    """One line that says what is wrong, exit code 2."""
    assert result.exit_code == 2, result.output
    line = result.stderr.splitlines()[-1]
    assert line.startswith("error: ")
    assert all(word in line for word in words), line


# -- paths ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["front", "profile", "finetune", "lock", "study.db", "report.html", "front/0/card.md"])
@pytest.mark.parametrize("command", [["resume"], ["export", "--format", "folder"], ["show"]], ids=lambda c: c[0])
def test_a_link_that_leads_out_of_a_run_is_refused(run: Path, secret: Path, name: str, command: list[str]) -> None:
    place = run / name
    if place.is_dir():
        shutil.rmtree(place)
    place.unlink(missing_ok=True)
    place.symlink_to(secret if "." not in name and name != "lock" else secret / "file")
    refused(call(command[0], run, *command[1:]), name, "link that leads out")
    assert untouched(secret)


def test_links_within_a_folder_and_to_it_are_fine(run: Path, tmp_path: Path) -> None:
    (run / "again").symlink_to(run / "front")
    (tmp_path / "linked").symlink_to(run)
    check_links(tmp_path / "linked")
    assert call("show", tmp_path / "linked").exit_code == 0
    (run / "loop").symlink_to("loop")
    check_links(run)
    (run / "parent").symlink_to("..")
    with pytest.raises(UserError, match="parent"):
        check_links(run)


def test_a_lock_that_is_a_link_destroys_nothing(run: Path) -> None:
    before = (run / "study.db").read_bytes()
    (run / "lock").unlink()
    (run / "lock").symlink_to("study.db")
    assert call("resume", run).exit_code == 2
    assert (run / "study.db").read_bytes() == before


def test_a_temporary_file_that_is_a_link_is_not_followed(tmp_path: Path, secret: Path) -> None:
    (tmp_path / f".x.json.{os.getpid()}.tmp").symlink_to(secret / "file")
    atomic_write(tmp_path / "x.json", "new")
    assert (tmp_path / "x.json").read_text() == "new"
    assert not (tmp_path / "x.json").is_symlink()
    assert untouched(secret)


def test_points_lie_where_they_belong_whatever_the_front_says(run: Path, secret: Path) -> None:
    edit(run / "front.json", lambda content: content["points"][0].update(path=str(secret)))
    found = Finished.read(run)
    assert found is not None
    assert found.points[0].path == run / "front" / "0"


@pytest.mark.parametrize("name", ["../../home/file", "/etc/passwd"])
def test_files_of_points_lie_in_the_run(run: Path, name: str) -> None:
    edit(run / "front.json", lambda content: content["digests"].update({name: "0" * 64}))
    with pytest.raises(UserError, match="lies elsewhere"):
        Finished.read(run)


@pytest.mark.parametrize("trial", ["../../../home", "/home", None, [1]])
def test_the_number_of_a_trial_is_a_number(run: Path, secret: Path, trial: Any) -> None:
    edit(run / "front.json", lambda content: content["points"][0].update(trial=trial))
    refused(call("finetune", run, "--epochs", "1"), "front.json", "damaged")
    refused(call("show", run), "front.json", "damaged")
    assert untouched(secret)


def test_an_export_copies_no_file_from_elsewhere(run: Path, secret: Path, tmp_path: Path) -> None:
    (run / "front" / "0" / "notes").symlink_to(secret / "file")
    refused(call("export", run, "--format", "folder", "--out", tmp_path / "out"), "notes")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["../x", "/tmp/x", "a b", "x/y", ""])
def test_names_of_devices_make_no_paths(run: Path, name: str) -> None:
    replace(SearchConfig.read(run), runtimes=(f"{name}=eager",)).write(run)
    refused(call("resume", run, "--measure-latency"), "device")


@pytest.mark.parametrize("command", ["show", "resume"])
def test_a_journal_that_names_a_file_deletes_nothing(run: Path, secret: Path, command: str) -> None:
    hot_journal(run / "study.db")
    check_journal(run / "study.db")  # as a killed process of our own leaves it
    name_a_file(run / "study.db-journal", secret / "file")
    refused(call(command, run), "study.db-journal")
    assert untouched(secret)
    sqlite3.connect(run / "study.db").execute("select count(*) from t")
    assert not untouched(secret), "the oracle: SQLite itself deletes the file"


def name_a_file(journal: Path, victim: Path) -> None:
    """Append the record of a super-journal."""
    name = str(victim).encode()
    page, length, checksum = (number.to_bytes(4, "big") for number in (2**30 // 4096 + 1, len(name), sum(name)))
    with journal.open("ab") as file:
        file.write(page + name + length + checksum + bytes.fromhex("d9d505f920a163d7"))


def hot_journal(path: Path) -> None:
    """Put a database in the midst of a transaction at `path`, as after kill -9."""
    living = path.with_name("living.db")
    connection = sqlite3.connect(living, isolation_level=None)
    connection.execute("create table t(x)")
    connection.executemany("insert into t values (?)", [("a" * 1000,)] * 100)
    connection.execute("pragma cache_size = 2")  # so that pages are written before the commit
    connection.execute("begin")
    connection.execute("update t set x = 'b' || x")
    shutil.copy(living, path)
    shutil.copy(f"{living}-journal", f"{path}-journal")
    connection.close()
    living.unlink()


# -- contents ---------------------------------------------------------------------------------------------------------


class Bomb:
    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path(self.marker),)


def refused_losses(folder: Path, content: bytes) -> None:
    """Let made-up losses of a trial be read."""
    (folder / "0.npz").write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        read_losses(folder / "0.npz", SAMPLES)


def test_no_reader_unpickles(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    bomb = pickle.dumps({"x": Bomb(marker)}, protocol=2)
    saved = io.BytesIO()
    torch.save({"state": Bomb(marker)}, saved)
    objects = io.BytesIO()
    np.save(objects, np.array([Bomb(marker)]), allow_pickle=True)
    archive = io.BytesIO()
    np.savez(archive, x=np.zeros(3))
    for content in (bomb, saved.getvalue(), objects.getvalue(), archive.getvalue()):
        for name in ("w.pt", "w.bin", "w.safetensors"):
            (tmp_path / name).write_bytes(content)
            with pytest.raises(UserError):
                load_weights(tiny_net(), tmp_path / name)
        (tmp_path / "data.pkl").write_bytes(content)
        with pytest.raises(UserError):
            load_arrays(tmp_path / "data.pkl")
        refused_losses(tmp_path, content)
        write_checkpoint(tmp_path / "c", {}, {})
        checkpoint = (tmp_path / "c").read_bytes()
        (tmp_path / "c").write_bytes(checkpoint[:19] + hashlib.sha256(content).digest() + content)
        with pytest.raises(UserError):
            read_checkpoint(tmp_path / "c", {})
    assert not marker.exists()


@pytest.mark.parametrize("size", [2**40, 2**62, 10**30])
def test_absurd_sizes_give_a_message(run: Path, tmp_path: Path, size: int) -> None:
    header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': ({size},), }}".ljust(117) + "\n"
    npy = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + b"\0" * 64
    refused_losses(tmp_path, npy)

    header_bytes = json.dumps({"w": {"dtype": "F32", "shape": [size], "data_offsets": [0, 4 * size]}}).encode()
    (tmp_path / "w.safetensors").write_bytes(struct.pack("<Q", len(header_bytes)) + header_bytes)
    with pytest.raises(UserError):
        load_weights(tiny_net(), tmp_path / "w.safetensors")
    (tmp_path / "w.safetensors").write_bytes(struct.pack("<Q", min(size, 2**63)) + b"{}")
    with pytest.raises(UserError):
        load_weights(tiny_net(), tmp_path / "w.safetensors")

    edit(
        run / "front" / "0" / "architecture.json",
        lambda content: content["inputs"].update(args=[{"shape": [1, size], "dtype": "float32"}]),
    )
    with pytest.raises(UserError, match="damaged"):
        example_inputs(run / "front" / "0")


@pytest.mark.parametrize(
    "inputs",
    [
        {"args": [{"shape": [1, 1, 8, 8], "dtype": "load"}], "kwargs": {}},
        {"args": [{"shape": [1, -1], "dtype": "float32"}], "kwargs": {}},
        {"args": [{"shape": "8", "dtype": "float32"}], "kwargs": {}},
        {"args": [{"shape": [1], "dtype": ["float32"]}], "kwargs": {}},
        {"args": 3, "kwargs": {}},
        {},
    ],
)
def test_inputs_are_tensors_of_a_sane_shape(run: Path, inputs: dict[str, Any]) -> None:
    edit(run / "front" / "0" / "architecture.json", lambda content: content.update(inputs=inputs))
    with pytest.raises(UserError, match="damaged"):
        example_inputs(run / "front" / "0")


def test_nesting_without_end_gives_a_message(run: Path) -> None:
    deep = "[" * 200_000
    (run / "x.json").write_text(deep)
    with pytest.raises(UserError, match=r"x\.json"):
        read_json(run / "x.json")
    (run / "config.toml").write_text("x = " + deep)
    refused(call("show", run), "config.toml")


FORGED: list[Any] = [None, True, -1, 10**400, "x", "../x", [], {}, [[]], {"a": {}}, ["x"], "\x1b[2J", "NaN"]


@pytest.mark.parametrize("name", ["front.json", "front/0/architecture.json"])
@pytest.mark.parametrize("value", FORGED, ids=lambda value: f"{value!r:.8}")
def test_forged_json_is_read_or_ends_in_a_message(run: Path, name: str, value: Any) -> None:
    path = run / name
    whole = json.loads(path.read_text())
    whole.pop("digest", None)
    for content in (value, *({**whole, key: value} for key in whole)):
        path.write_text(json.dumps(content))
        with suppress(UserError):
            Finished.read(run)
        with suppress(UserError):
            autoprune.load(run / "front" / "0")


@pytest.mark.parametrize("name", ["model", "data", "score", "weights", "agent", "runtimes", "budget", "id", "recovery"])
@pytest.mark.parametrize("value", ["3", "true", "[3]", "[[]]", "{a = 1}", "1979-05-27"])
def test_settings_of_another_type_are_refused(run: Path, name: str, value: str) -> None:
    table = {"agent": "search", "budget": "search", "id": "run", "runtimes": "latency"}.get(name, "model")
    table = {"data": "data", "score": "score", "recovery": "score"}.get(name, table)
    lines = (run / "config.toml").read_text().splitlines()
    lines = drop(lines, name)
    lines.insert(lines.index(f"[{table}]") + 1, f"{name} = {value}")
    (run / "config.toml").write_text("\n".join(lines))
    refused(call("show", run), "config.toml", name)


def drop(lines: list[str], name: str) -> list[str]:
    """Without the setting, which may be a list over several lines."""
    kept, inside = [], False
    for line in lines:
        begins = line.startswith(f"{name} = ")
        inside = inside or (begins and line.endswith("["))
        if not (begins or inside):
            kept.append(line)
        if inside and line == "]":
            inside = False
    return kept


@pytest.mark.parametrize(
    ("attribute", "value"), [("state", "<script>"), ("message", 3), ("candidate", 3), ("readings", [1])]
)
def test_forged_trials_end_in_a_message(run: Path, attribute: str, value: Any) -> None:
    forge(run, **{attribute: value})
    refused(call("show", run, "--trials"), "study.db", "damaged")


def test_messages_of_a_foreign_study_reach_no_terminal_raw(run: Path) -> None:
    forge(run, state="failed", score=None, message="\x1b]0;owned\x07[/bold] postgresql://ann:hunter2@db/x")
    result = call("show", run, "--trials")
    assert result.exit_code == 0, result.output
    assert "\x1b" not in result.stdout
    assert r"\x1b]0;owned\x07[/bold]" in result.stdout
    assert "hunter2" not in result.stdout


def forge(run: Path, **changes: Any) -> None:
    """Change what the study says of its first trial."""
    connection = sqlite3.connect(run / "study.db")
    where = "trial_system_attributes where trial_id = 1 and key = 'trial'"
    (text,) = connection.execute(f"select value_json from {where}").fetchone()
    value = json.dumps({**json.loads(text), **changes})
    connection.execute(f"update {where.replace(' where', ' set value_json = ? where')}", (value,))
    connection.commit()
    connection.close()


def test_a_card_shows_names_as_they_are(run: Path) -> None:
    evil = "<img src=x onerror=alert(1)>[a](javascript:x)|`\n# b"
    finished = Finished.read(run)
    assert finished is not None
    text = card(0, finished, replace(SearchConfig.read(run), model=evil, data=evil, weights=evil, agent=evil))
    assert "<img" not in text
    assert "[a](" not in text.replace("\\[a\\](", "")
    assert "\n# b" not in text
    assert text.count("&lt;img src=x onerror=alert(1)&gt;") == 4


def test_the_doctor_touches_nothing_elsewhere(run: Path, secret: Path) -> None:
    hot_journal(run / "study.db")
    name_a_file(run / "study.db-journal", secret / "file")
    result = call("doctor", run, "--mend")
    assert result.exit_code == 1, result.output
    assert "names another file" in result.stdout
    assert untouched(secret)
    (run / "finetune" / "\x1b[2J").mkdir(parents=True)
    assert "\x1b" not in call("doctor", run).stdout
    shutil.rmtree(run / "profile")
    (run / "profile").symlink_to(secret)
    refused(call("doctor", run, "--mend"), "profile", "link that leads out")
    assert untouched(secret)
