"""Notes on a study and its trials, as optuna-dashboard keeps them: in system attributes of the study.

Read in optuna-dashboard 0.21, `_note.py`: a note has a version, which counts up, and its text in pieces. Ours stands
between two marks, which Markdown does not show, so that what people write above and below it in the dashboard stays.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_PIECE = 2045
"""Characters in one attribute, as the dashboard writes them."""

_BEGIN, _END = "[//]: # (autoprune)", "[//]: # (end of autoprune)"
_VERSION = re.compile(r"dashboard:(?:(\d+):)?note_ver")


def changes(attributes: Mapping[str, Any], texts: Mapping[int | None, str]) -> dict[str, int | str]:
    """The attributes to set so that our notes are `texts` and no others; none where they are.

    Args:
        attributes: system attributes of the study.
        texts: Markdown by Optuna's id of the trial; of the study itself under None.
    """
    noted = [None if found[1] is None else int(found[1]) for found in map(_VERSION.fullmatch, attributes) if found]
    changed: dict[str, int | str] = {}
    for of in dict.fromkeys([*noted, *texts]):
        old = _read(attributes, of)
        new = _replaced(old, texts.get(of, ""))
        if new != old:
            changed |= _written(attributes, of, new)
    return changed


def _prefix(of: int | None) -> str:
    return "dashboard:" if of is None else f"dashboard:{of}:"


def _pieces(attributes: Mapping[str, Any], of: int | None) -> int:
    return sum(key.startswith(f"{_prefix(of)}note_str:") for key in attributes)


def _read(attributes: Mapping[str, Any], of: int | None) -> str:
    pieces = (attributes.get(f"{_prefix(of)}note_str:{k}", "") for k in range(_pieces(attributes, of)))
    return "".join(map(str, pieces))


def _replaced(note: str, text: str) -> str:
    """A note with our part of it replaced, or left out where the text is empty."""
    if not text and _BEGIN not in note:
        return note
    before, _, rest = note.partition(_BEGIN)
    after = rest.partition(_END)[2]
    ours = f"{_BEGIN}\n\n{text.strip()}\n\n{_END}" if text else ""
    return "\n\n".join(part for part in (before.strip(), ours, after.strip()) if part)


def _written(attributes: Mapping[str, Any], of: int | None, note: str) -> dict[str, int | str]:
    pieces = [note[start : start + _PIECE] for start in range(0, len(note), _PIECE)]
    pieces += [""] * (_pieces(attributes, of) - len(pieces))  # of a longer note before: the dashboard joins them all
    written: dict[str, int | str] = {f"{_prefix(of)}note_str:{k}": piece for k, piece in enumerate(pieces)}
    version = f"{_prefix(of)}note_ver"
    return {**written, version: int(attributes.get(version, 0)) + 1}
