"""The Pareto front: how much it covers, which of its points to show.

Objective arrays have shape [n, objectives] and are all minimised: a score enters negated (`agents.dominance`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from autoprune.agents.base import Trial
from autoprune.agents.dominance import non_dominated, objective_array
from autoprune.search_spaces.types import Candidate, FloatArray

if TYPE_CHECKING:
    from autoprune.measure import Latency


class Measured(NamedTuple):
    """A measured cost: value and ends of its 95 % interval, and its share of the dense network's, measured in turns."""

    value: float
    low: float
    high: float
    share: float | None = None


@dataclass(frozen=True, kw_only=True)
class FrontPoint:
    """A subnet of the front, finished: fine-tuned where asked, measured, exported.

    Attributes:
        trial: number of the trial that found it.
        candidate: level index per group.
        costs: ``macs``, ``params``, ``memory``, ``size`` (bytes); where the budget limits them ``latency`` (ms) and
            the like: upper ends of their prediction intervals.
        score: of the search, before fine-tuning, on `split`; higher is better.
        split: the data that `score` was taken on.
        latency: measured on the first device; None where it was not measured.
        latencies: on all devices, by the name of the gauge: ``onnxruntime-1`` is ONNX Runtime at batch 1.
        measured: cost -> what was found, in the units of `costs`.
        proposed: candidate of the trial, where another was taken to keep the budget as measured; else None.
        misses: budgeted costs that the finished subnet does not keep, as measured. A point that misses one is shown
            but is not a solution.
        repaired: score on `split` after a sequential repair; None where the search made one, or it was no better.
        finetuned: score on `split` after fine-tuning; None without.
        recipe: settings of `FineTune` that the exported weights went through; None without.
        test_before, test_after: accuracy in [0, 1] on the test split before fine-tuning (repaired, if it was) and after
            it; None where there is no test split or no fine-tuning.
        path: the exported folder.
    """

    trial: int
    candidate: Candidate
    costs: dict[str, float]
    score: float
    split: str = "search"
    latency: Latency | None = None
    latencies: dict[str, Latency] = field(default_factory=dict)
    measured: dict[str, Measured] = field(default_factory=dict)
    proposed: Candidate | None = None
    misses: tuple[str, ...] = ()
    repaired: float | None = None
    finetuned: float | None = None
    recipe: dict[str, Any] | None = None
    test_before: float | None = None
    test_after: float | None = None
    path: Path | None = None

    def to_dict(self) -> dict[str, Any]:
        """The point in the words of JSON."""
        return {
            **asdict(self),
            "latency": None if self.latency is None else self.latency.to_dict(),
            "latencies": {name: latency.to_dict() for name, latency in self.latencies.items()},
            "path": None if self.path is None else str(self.path),
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> FrontPoint:
        """Undo `to_dict`.

        Raises:
            KeyError, TypeError: the values are not what it wrote. The trial's number becomes the name of a folder, so
                it is one.
        """
        from autoprune.measure import Latency

        if not all(isinstance(number, int) for number in (values["trial"], *values["candidate"])):
            raise TypeError(f"trial {values['trial']!r} and candidate {values['candidate']!r} must be whole numbers")
        return cls(
            **{
                **values,
                "candidate": tuple(values["candidate"]),
                "misses": tuple(values["misses"]),
                "latency": None if values["latency"] is None else Latency.from_dict(values["latency"]),
                "latencies": {name: Latency.from_dict(found) for name, found in values.get("latencies", {}).items()},
                "measured": {cost: Measured(*found) for cost, found in values.get("measured", {}).items()},
                "proposed": None if values.get("proposed") is None else tuple(values["proposed"]),
                "path": None if values["path"] is None else Path(values["path"]),
            }
        )


def hypervolume(objectives: FloatArray, reference: FloatArray) -> float:
    """Volume that the rows dominate below `reference`, exact, by slicing along the last objective.

    Source: Zitzler & Thiele 1998, "Multiobjective optimization using evolutionary algorithms"; the slicing is While
    et al. 2006, "A faster algorithm for calculating hypervolume" (HSO). Exponential in the number of objectives:
    meant for two to four.
    """
    inside = objectives[(objectives < reference).all(axis=1)]
    if len(inside) == 0:
        return 0.0
    if inside.shape[1] == 1:
        return float(reference[0] - inside.min())
    inside = inside[np.argsort(inside[:, -1], kind="stable")]
    edges = np.append(inside[:, -1], reference[-1])
    slices = zip(range(1, len(inside) + 1), np.diff(edges), strict=True)
    return sum(hypervolume(inside[:count, :-1], reference[:-1]) * float(depth) for count, depth in slices if depth)


def knee(objectives: FloatArray) -> int:
    """Row where the first objective gains most per loss in the others: nearest to the ideal in normalised units."""
    return int(_normalised(objectives).sum(axis=1).argmin())


def front(trials: Sequence[Trial], costs: Sequence[str]) -> list[Trial]:
    """The complete trials that no other dominates in score and `costs`, best score first."""
    complete = [trial for trial in trials if trial.state == "complete"]
    kept = [complete[index] for index in non_dominated(objective_array(complete, costs))]
    return sorted(kept, key=lambda trial: (-(trial.score or 0.0), trial.number))


def choose(trials: Sequence[Trial], costs: Sequence[str], count: int) -> list[Trial]:
    """At most `count` trials of a front: the first, then always the one that adds most hypervolume to those taken.

    Objectives are scaled to [0, 1] over the front; the reference lies a tenth beyond its worst values, so that a trade
    of much score for little cost adds next to nothing.
    """
    if len(trials) <= count:
        return list(trials)
    places = _normalised(objective_array(trials, costs))
    reference = np.full(places.shape[1], 1.1)
    taken = [0]
    while len(taken) < count:
        rest = [index for index in range(len(trials)) if index not in taken]
        taken.append(max(rest, key=lambda index: hypervolume(places[[*taken, index]], reference)))
    return [trials[index] for index in sorted(taken)]


def _normalised(objectives: FloatArray) -> FloatArray:
    low, high = objectives.min(axis=0), objectives.max(axis=0)
    scaled: FloatArray = (objectives - low) / np.where(high > low, high - low, 1.0)
    return scaled
