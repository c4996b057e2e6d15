"""Files that were cut short or changed: no command ends in a traceback, and what is precious is not touched."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.harness import Harness
from tests.faults.phases import RUN

PRECIOUS = ("study.db", "config.toml")
"""What cannot be made again: only a copy restores it."""


def cut_short(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content))]


def empty(content: bytes, rng: random.Random) -> bytes:
    return b""


def flip(content: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(content))
    return content[:place] + bytes([content[place] ^ 1 << rng.randrange(8)]) + content[place + 1 :]


def overwrite(content: bytes, rng: random.Random) -> bytes:
    """A piece of it, as a bad block would be."""
    place = rng.randrange(len(content))
    return content[:place] + rng.randbytes(min(512, len(content) - place)) + content[place + 512 :]


DAMAGES: list[Callable[[bytes, random.Random], bytes]] = [cut_short, empty, flip, overwrite]

COMMANDS = {
    "show": ("show", "RUN", "--trials"),
    "resume": ("resume", "RUN"),
    "add": ("resume", "RUN", "--trials", "1"),
    "profile": ("profile", "RUN", "--samples", "100", "--levels", "2"),
    "proxy": ("proxy", "RUN", "--candidates", "5"),
    "finetune": ("finetune", "RUN", "--point", "0", "--epochs", "1"),
    "export": ("export", "RUN", "--point", "0", "--out", "OUT"),
}


def check(
    harness: Harness,
    folder: Path,
    file: str,
    damage: Callable[[bytes, random.Random], bytes],
    name: str,
    start: str = "everything",
) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(harness.started(start), folder)
    path = folder / file
    content = path.read_bytes()
    rng = random.Random(f"{file} {damage.__name__}")
    damaged = damage(content, rng) if content else b"?"
    path.write_bytes(damaged)
    if name == "load":
        process = harness.call("load_point", folder / RUN / "front" / "0", folder=folder)
    else:
        words = [{"RUN": str(folder / RUN), "OUT": str(folder / "out")}.get(word, word) for word in COMMANDS[name]]
        process = harness.call("command", *words, folder=folder)
    code, said = process.wait(), process.said()
    where = f"{file} {damage.__name__}, {name}: {code}\n{said}"
    assert code in (0, 2), where
    assert "Traceback" not in said, where
    if path.name in PRECIOUS and code:
        assert path.read_bytes() == damaged, where
    process.log.unlink()


def files(harness: Harness, start: str = "everything") -> list[str]:
    folder = harness.started(start)
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_some_damaged_files(harness: Harness, tmp_path: Path) -> None:
    rng = random.Random(0)
    for file in [f"{RUN}/study.db", *rng.sample(files(harness, "finished"), 4)]:
        check(harness, tmp_path / "run", file, rng.choice(DAMAGES), rng.choice(["show", "load"]), "finished")


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
def test_every_damaged_file(harness: Harness, tmp_path: Path, damage: Callable[[bytes, random.Random], bytes]) -> None:
    rng, problems = random.Random(damage.__name__), []
    for file in files(harness):
        for name in rng.sample(["load", *COMMANDS], 3) if Path(file).name not in PRECIOUS else ["load", *COMMANDS]:
            try:
                check(harness, tmp_path / "run", file, damage, name)
            except AssertionError as error:
                problems.append(str(error))
    assert not problems, "\n\n".join(problems)
