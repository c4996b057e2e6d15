"""`front.json`: the finished front of a run. It is written last, so it says that everything beside it is complete.

`autoprune show` reads it and computes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from autoprune.files import read_json, write_json
from autoprune.front import FrontPoint, Measured
from autoprune.measure import Latency
from autoprune.search_spaces.errors import UserError
from autoprune.tables import DenseFigures

FILE = "front.json"
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
    """

    dense: Dense
    points: tuple[FrontPoint, ...]
    num_trials: int
    device: dict[str, Any]
    notes: tuple[str, ...] = ()

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

    def is_whole(self) -> bool:
        """Whether the folders of all points are there, as `read` found them."""
        return all(point.path is not None and point.path.is_dir() for point in self.points)

    def write(self, run: Path) -> None:
        """Store atomically as ``front.json`` of a run folder."""
        points = [point.to_dict() | {"path": f"{FOLDER}/{index}"} for index, point in enumerate(self.points)]
        write_json(run / FILE, {**vars(self), "dense": self.dense.to_dict(), "points": points})

    @classmethod
    def read(cls, run: Path) -> Finished | None:
        """Read a run folder's ``front.json``; None where the run is not finished."""
        if not (run / FILE).is_file():
            return None
        values = read_json(run / FILE)
        try:
            places = [run / FOLDER / str(index) for index in range(len(values["points"]))]
            points = tuple(
                FrontPoint.from_dict(point | {"path": place})
                for place, point in zip(places, values["points"], strict=True)
            )
            notes = tuple(values.get("notes", ()))
            return cls(**{**values, "dense": Dense.from_dict(values["dense"]), "points": points, "notes": notes})
        except (AttributeError, KeyError, TypeError) as error:
            raise UserError(
                f"{run / FILE} is damaged ({error!r}). Delete it; `autoprune resume {run}` makes it again."
            ) from None
