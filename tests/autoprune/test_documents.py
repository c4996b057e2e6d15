from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from autoprune.documents import Damaged, Newer, parsing, read_document, usable, write_document
from autoprune.search_spaces.errors import UserError
from tests.autoprune.documents import rewrite

CONTENT = {"numbers": [0.1, 1e-300, 3], "text": "größer", "deep": {"b": None, "a": [True, [], {}]}}


class Lines:
    """A progress that keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


def test_content_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.json"
    write_document(path, 3, {**CONTENT, "tuple": (1, 2), "keys": {1: "one"}})
    assert read_document(path, 3) == {**CONTENT, "tuple": [1, 2], "keys": {"1": "one"}}
    assert next(iter(json.loads(path.read_text()))) == "format"
    with pytest.raises(ValueError, match="JSON"):
        write_document(path, 3, {"nan": float("nan")})
    assert read_document(path, 3)["text"] == "größer"


def test_every_flipped_bit_and_every_cut_is_damage_or_changes_nothing(tmp_path: Path) -> None:
    """A flip can hit the space between two words, which says nothing, or the name of the digest."""
    path = tmp_path / "a.json"
    write_document(path, 1, CONTENT)
    whole = path.read_bytes()
    damaged = 0
    for bit in range(8 * len(whole)):
        torn = bytearray(whole)
        torn[bit // 8] ^= 1 << bit % 8
        path.write_bytes(torn)
        try:
            assert read_document(path, 1).items() >= CONTENT.items()
        except Damaged:
            damaged += 1
    assert damaged > 0.8 * 8 * len(whole)
    for length in range(len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(Damaged):
            read_document(path, 1)


def test_one_without_digest_or_format_is_of_an_earlier_release(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(CONTENT))
    assert read_document(path, 2) == CONTENT
    with pytest.raises(Damaged, match="its format is 1, not 2"):
        read_document(path, 2, oldest=2)


def test_a_newer_one_is_told_from_one_whose_format_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_document(path, 2, CONTENT)
    with pytest.raises(Newer, match=r"a.json was written by a newer autoprune \(format 2, this one reads up to 1\)"):
        read_document(path, 1)
    rewrite(path, lambda content: content.update(format=9))
    with pytest.raises(Newer):
        read_document(path, 1)
    write_document(path, 1, CONTENT)
    path.write_text(path.read_text().replace('"format": 1', '"format": 9'))
    with pytest.raises(Damaged):
        read_document(path, 1)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"7", b"\xff\x00", b'{"a": NaN}', b'{"format": "x"}', b"[" * 100_000], ids=range(8)
)
def test_anything_else_is_damage(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(Damaged, match=r"a\.json is damaged: .*delete it: it is made again"):
        read_document(tmp_path / "a.json", 1)


def test_what_is_missing_or_a_folder(tmp_path: Path) -> None:
    with pytest.raises(Damaged, match="is missing"):
        read_document(tmp_path / "a.json", 1)
    with pytest.raises(Damaged, match="not a JSON file"):
        read_document(tmp_path, 1)


def test_what_is_damaged_is_said_once_and_what_is_newer_is_refused(tmp_path: Path) -> None:
    progress: Any = Lines()
    path = tmp_path / "a.json"

    def load() -> int:
        content = read_document(path, 1)
        with parsing(path):
            return int(content["number"])

    assert usable(load, progress) is None
    assert progress.said == []
    wrong: dict[str, Any]
    for wrong in ({}, {"number": "x"}, {"number": []}):
        write_document(path, 1, wrong)
        assert usable(load, progress, "it is counted again") is None
        assert progress.said.pop().startswith(f"{path} is damaged: ")
    write_document(path, 1, {"number": 7})
    assert usable(load, progress) == 7
    write_document(path, 2, {"number": 7})
    with pytest.raises(Newer):
        usable(load, progress)
    assert progress.said == []


def test_what_the_user_is_told_of_the_content_is_damage_too(tmp_path: Path) -> None:
    with pytest.raises(Damaged, match=r"a is damaged: too wide\. Restore"), parsing(tmp_path / "a"):
        raise UserError("too wide.")
