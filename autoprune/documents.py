"""JSON documents that say of which format they are, and notice damage: what a run folder keeps beside the study.

A document is a JSON object whose first member is its ``format``, a whole number, and whose last one is a ``digest`` of
all others. One without a digest is of an autoprune that wrote none, and is read. One of a higher format is refused and
never overwritten. A damaged one is made again where that can be done, see `usable`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from autoprune.files import atomic_write
from autoprune.progress import Progress
from autoprune.search_spaces.errors import UserError

T = TypeVar("T")

AGAIN = "Restore it from a copy, or delete it: it is made again."


class Unreadable(UserError):
    """A file that cannot be used.

    Attributes:
        path, why: ``profile/prior.json``, ``is damaged: ...``: together a sentence.
        remedy: sentences that say what to do.
    """

    def __init__(self, path: Path, why: str, remedy: str) -> None:
        super().__init__(f"{path} {why}. {remedy}")
        self.path, self.why, self.remedy = path, why, remedy


class Damaged(Unreadable):
    """Missing, torn, or not what was written.

    Attributes:
        cause: what is wrong; "" where the file is missing.
    """

    def __init__(self, path: Path, cause: str, remedy: str = AGAIN) -> None:
        super().__init__(path, f"is damaged: {cause}" if cause else "is missing", remedy)
        self.cause = cause


class Newer(Unreadable):
    """Written by a release to come; it is left as it is."""

    def __init__(self, path: Path, found: int, known: int) -> None:
        why = f"was written by a newer autoprune (format {found}, this one reads up to {known})"
        super().__init__(path, why, "Install that autoprune.")


def write_document(path: Path, format: int, content: Mapping[str, Any]) -> None:
    """Write `content` atomically; folders are made. NaN and infinity are refused (ValueError): JSON has no such words.

    Floats survive exactly.
    """
    whole = {"format": format, **content}
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, json.dumps({**whole, "digest": _digest(whole)}, indent=1, allow_nan=False) + "\n")


def read_document(path: Path, format: int, *, oldest: int = 1) -> dict[str, Any]:
    """Read what `write_document` wrote, without format and digest.

    Args:
        format: the highest that is known, `oldest` the lowest that can still be read. A file that names none is of 1.

    Raises:
        Damaged: missing, torn or altered, or of a format that is too old.
        Newer: of a higher format.
    """
    content = read_object(path)
    version, digest = content.get("format", 1), content.pop("digest", None)
    whole = digest is None or digest == _digest(content)
    if whole and isinstance(version, int) and version > format:
        raise Newer(path, version, format)
    if not whole:
        raise Damaged(path, "its content is not what was written")
    if not isinstance(version, int) or version < oldest:
        raise Damaged(path, f"its format is {version!r}, not {format}")
    content.pop("format", None)
    return content


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        Damaged: the file is missing, or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse)
    except (FileNotFoundError, NotADirectoryError):
        raise Damaged(path, "") from None
    except (ValueError, RecursionError, IsADirectoryError) as error:
        raise Damaged(path, f"it is not a JSON file ({error})") from None
    if not isinstance(content, dict):
        raise Damaged(path, "it holds no JSON object")
    return content


@contextmanager
def parsing(path: Path) -> Iterator[None]:
    """What goes wrong in this block goes wrong because the content of `path` is damaged."""
    try:
        yield
    except Unreadable:
        raise
    except UserError as error:
        raise Damaged(path, str(error).rstrip(".")) from None
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise Damaged(path, repr(error)) from None


def usable(load: Callable[[], T], progress: Progress, again: str = "it is made again") -> T | None:
    """What `load` reads; None where it finds nothing, or something damaged, of which one line is said."""
    try:
        return load()
    except Damaged as error:
        if error.path.exists():
            progress.say(f"{error.path} {error.why}: {again}.")
        return None


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, allow_nan=False).encode()).hexdigest()[:16]


def _refuse(word: str) -> Any:
    raise ValueError(f"{word} is no number")
