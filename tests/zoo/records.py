"""What is known of each network after its check: one JSON file each, so that a run can go on where another stopped."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

FOLDER = Path("build") / "zoo"


@dataclass(kw_only=True)
class Record:
    """The outcome of one check. Sizes are counts, times seconds on one thread, errors relative.

    Attributes:
        failures: what went wrong, in order; empty if the network passes.
        frozen: [reason, units] of what stays, most units first.
        smallest: MACs of the smallest candidate / MACs of the dense network.
        error, error64: largest error of all candidates in float32, and in float64 where float32 was not enough.
        inexact: groups over which a norm or mean runs.
    """

    library: str
    name: str
    failures: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    groups: int = 0
    units: int = 0
    inexact: int = 0
    frozen: list[tuple[str, int]] = field(default_factory=list)
    unknown_ops: list[str] = field(default_factory=list)
    params: int = 0
    macs: int = 0
    smallest: float | None = None
    trace_s: float | None = None
    slice_s: float | None = None
    error: float | None = None
    error64: float | None = None
    total_s: float = 0.0
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        return not self.failures


def path_of(folder: Path, library: str, name: str) -> Path:
    """Where a record lies; a slash in a name (transformers has them) becomes two dashes."""
    return folder / library / f"{name.replace('/', '--')}.json"


def save(record: Record, folder: Path) -> None:
    """Write a record whole or not at all."""
    path = path_of(folder, record.library, record.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(json.dumps(asdict(record), indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)


def load(folder: Path, library: str, name: str) -> Record | None:
    """The record of a network, None where there is none (or one that an older version wrote)."""
    try:
        return Record(**json.loads(path_of(folder, library, name).read_text(encoding="utf-8")))
    except (FileNotFoundError, TypeError, ValueError):
        return None
