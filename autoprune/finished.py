"""`front.json`: the finished front of a run. It is written last, so it says that everything beside it is complete.

`autoprune show` reads it and computes nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from autoprune.documents import Damaged, parsing, read_document, write_document
from autoprune.front import FrontPoint, Measured
from autoprune.measure import Latency
from autoprune.tables import DenseFigures

FILE = "front.json"
FORMAT = 1
FOLDER = "front"
"""Holds one folder for each point: ``front/0`` is the best."""


@dataclass(frozen=True, kw_only=True)
class Dense:
    """The dense model beside its subnets: costs, score on the search split, accuracy on the test split, latency."""

    costs: dict[str, float]
    score: float
    test: float | None = None
    latency: Latency | None = None
    latencies: dict[str, Latency] = field(default_factory=dict)
    measured: dict[str, Measured] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The values in the words of JSON."""
        return {
            **asdict(self),
            "latency": None if self.latency is None else self.latency.to_dict(),
            "latencies": {name: latency.to_dict() for name, latency in self.latencies.items()},
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Dense:
        """Undo `to_dict`."""
        latency = values["latency"]
        return cls(
            **{
                **values,
                "latency": None if latency is None else Latency.from_dict(latency),
                "latencies": {name: Latency.from_dict(found) for name, found in values.get("latencies", {}).items()},
                "measured": {cost: Measured(*found) for cost, found in values.get("measured", {}).items()},
            }
        )


@dataclass(frozen=True, kw_only=True)
class Finished:
    """What ``front.json`` holds.

    Attributes:
        dense: the dense model, measured in turn with the points.
        points: best score first; point k is exported to ``front/k``.
        num_trials: length of the study when the points were chosen.
        device: where latency was measured, see `device_info`.
        notes: how good the predictions of measured costs are.
        digests: SHA-256 of every file of the points when they were written, by path in the run folder.
    """

    dense: Dense
    points: tuple[FrontPoint, ...]
    num_trials: int
    device: dict[str, Any]
    notes: tuple[str, ...] = ()
    digests: dict[str, str] = field(default_factory=dict)

    def figures(self) -> DenseFigures:
        """The dense model for tables."""
        dense = self.dense
        return {
            "costs": dense.costs,
            "score": dense.score,
            "test": dense.test,
            "latency": dense.latency,
            "measured": dense.measured,
        }

    def write(self, run: Path) -> None:
        """Store atomically as ``front.json`` of a run folder, with digests of all files that the points consist of."""
        points = [point.to_dict() | {"path": f"{FOLDER}/{index}"} for index, point in enumerate(self.points)]
        folders = [run / FOLDER / str(index) for index in range(len(points))]
        files = [file for folder in folders for file in sorted(folder.rglob("*")) if file.is_file()]
        content = {
            **vars(self),
            "dense": self.dense.to_dict(),
            "points": points,
            "digests": {file.relative_to(run).as_posix(): file_digest(file) for file in files},
        }
        write_document(run / FILE, FORMAT, content)

    @classmethod
    def read(cls, run: Path) -> Finished | None:
        """Read a run folder's ``front.json``; None where the run is not finished.

        Raises:
            Damaged: it cannot be read; `autoprune resume` makes it again.
            Newer: it is of a format to come.
        """
        path = run / FILE
        if not path.exists():
            return None
        try:
            values = read_document(path, FORMAT)
            with parsing(path):
                places = [run / FOLDER / str(index) for index in range(len(values["points"]))]
                points = tuple(
                    FrontPoint.from_dict(point | {"path": place})
                    for place, point in zip(places, values["points"], strict=True)
                )
                if any(".." in Path(name).parts or Path(name).is_absolute() for name in values.get("digests", ())):
                    raise ValueError("a file of a point lies elsewhere")
                notes = tuple(values.get("notes", ()))
                return cls(**{**values, "dense": Dense.from_dict(values["dense"]), "points": points, "notes": notes})
        except Damaged as error:
            raise Damaged(path, error.cause, f"Make it again: autoprune resume {run}.") from None

    def damage(self, run: Path) -> dict[Path, str]:
        """Files of the points that are not as they were written, and why: ``is missing``, ``is damaged``.

        Texts count as what they are: people may write into them.
        """
        found = {run / FOLDER / str(index): "is missing" for index in range(len(self.points))}
        found = {folder: why for folder, why in found.items() if not folder.is_dir()}
        for name, digest in self.digests.items():
            file = run / name
            if not file.is_file():
                found[file] = "is missing"
            elif file.suffix != ".md" and file_digest(file) != digest:
                found[file] = "is damaged"
        return found


def file_digest(path: Path) -> str:
    """SHA-256 of a file, hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
