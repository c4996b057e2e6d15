"""Points are held against the budget as measured before they are fine-tuned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autoprune.agents.base import Reading
from autoprune.front import FrontPoint, Measured
from autoprune.measure import Latency
from autoprune.search_spaces import Budget, Candidate
from autoprune.verifying import VERIFIED, forget_verified, verified, verify
from tests.autoprune.test_gauges import latency
from tests.autoprune.test_keeping import Space, ms
from tests.fakes import chain_space


@dataclass
class Device:
    """Gauges of a device that takes `factor` times what is predicted, and `later` times that after the first round."""

    space: Space
    factor: float
    later: float = 1.0
    costs: Mapping[str, Any] = field(default_factory=lambda: {"latency": None})
    accuracies: list[float | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.gauges = (type("Gauge", (), {"name": "one"})(),)

    def measure(self, models: Mapping[str, Candidate], **settings: Any) -> dict[str, dict[str, Latency]]:
        self.accuracies.append(settings["accuracy"])
        dense = float(ms(self.space.units(np.array([self.space.dense])))[0])
        found = {
            name: latency(self.factor * float(ms(self.space.units(np.array([c])))[0]) / dense, dense)
            for name, c in models.items()
        }
        self.factor *= self.later
        self.later = 1.0
        return {"one": {"dense": latency(1.0, dense), **found}}

    def values(self, found: Mapping[str, Latency]) -> dict[str, float]:
        return {"latency": found["one"].ms}

    def measured(self, found: Mapping[str, Latency]) -> dict[str, Measured]:
        return {"latency": Measured(found["one"].ms, found["one"].low_ms, found["one"].high_ms)}

    def readings(self, candidate: Candidate, found: Mapping[str, Latency]) -> tuple[Reading, ...]:
        return ()

    def learn(self, readings: tuple[Reading, ...]) -> None:
        pass

    def recheck(self, found: Mapping[str, Mapping[str, Latency]], progress: Any) -> None:
        pass

    def slowdown(self, cost: str) -> float:
        return 1.0


class Bench:
    """What verification asks of a workbench; the score is the number of units kept."""

    def __init__(self, factor: float, measure_trials: str = "on", later: float = 1.0) -> None:
        chain = chain_space([40, 48, 64, 64, 48], step=2)
        self.space = Space(chain.groups, chain.ops, more_costs={"latency": ms})
        self.gauges = Device(self.space, factor, later)
        self.budget = Budget.parse("latency=6ms")
        self.prior = None
        self.config = type("Config", (), {"measure_trials": measure_trials, "latency_repeats": 3})()
        self.evaluator = self
        self.evaluated: list[Candidate] = []

    def evaluate(self, candidate: Candidate) -> float:
        self.evaluated.append(candidate)
        return float(sum(candidate))

    def points(self, *limits: float) -> list[FrontPoint]:
        found = [self.space.project([1.0] * 5, Budget.parse(f"latency={limit}ms")) for limit in limits]
        return [
            FrontPoint(trial=i, candidate=c, costs=self.space.cost_dict(c), score=float(sum(c)))
            for i, c in enumerate(found)
        ]


class Silent:
    """Progress that keeps what was said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


def run(bench: Any, points: list[FrontPoint]) -> tuple[list[FrontPoint], list[str]]:
    progress: Any = Silent()
    found, dense = verify(points, bench, progress)
    assert dense["one"].ratio == 1
    return found, progress.said


def test_points_that_keep_the_budget_stay_as_they_are() -> None:
    bench = Bench(1.0)
    points = bench.points(6, 4)
    found, said = run(bench, points)
    assert [point.candidate for point in found] == [point.candidate for point in points]
    assert [(point.misses, point.proposed) for point in found] == [((), None)] * 2
    assert (said, bench.evaluated) == ([], [])
    assert found[0].measured["latency"].value == found[0].latencies["one"].ms <= 6


def test_a_point_that_misses_is_moved_down_scored_again_and_measured_again() -> None:
    bench = Bench(1.1)
    first, second = bench.points(6, 4)
    found, said = run(bench, [first, second])
    moved = next(point for point in found if point.trial == 0)
    assert moved.misses == ()
    assert moved.proposed == first.candidate != moved.candidate
    assert moved.score == sum(moved.candidate) < first.score
    assert 5.5 < moved.measured["latency"].value <= 6
    assert "moved to keep the budget" in said[0]
    assert next(point for point in found if point.trial == 1).candidate == second.candidate


def test_what_its_prediction_made_too_small_is_moved_up_where_trials_were_not_measured() -> None:
    for measure_trials, moved in (("off", True), ("on", False)):
        bench = Bench(0.8, measure_trials)
        (point,) = bench.points(6)
        (found,), _ = run(bench, [point])
        assert (found.proposed is not None) == moved
        assert (found.score > point.score) == moved
        assert found.misses == ()


def test_what_cannot_be_kept_is_marked_and_the_same_subnet_stands_once() -> None:
    bench = Bench(20.0)
    found, _ = run(bench, bench.points(6, 4))
    assert found
    assert all(point.misses == ("latency",) for point in found)
    candidates = [point.candidate for point in found]
    assert len(set(candidates)) == len(candidates)


def test_points_come_best_first_after_moves() -> None:
    bench = Bench(1.0, later=1.3)
    bench.gauges.factor = 1.3
    found, _ = run(bench, bench.points(6, 4.4))
    scores = [point.score for point in found]
    assert scores == sorted(scores, reverse=True)


def test_without_a_measured_limit_noise_is_no_reason_to_stop() -> None:
    bench = Bench(1.0)
    bench.gauges.costs = {}
    run(bench, bench.points(6))
    assert bench.gauges.accuracies == [float("inf")]


def test_a_score_that_fails_on_a_moved_point_leaves_it_where_it_was() -> None:
    bench = Bench(1.1)

    def fails(candidate: Candidate) -> float:
        raise ValueError("no such class")

    bench.evaluate = fails  # type: ignore[method-assign]
    (point,) = bench.points(6)
    (found,), said = run(bench, [point])
    assert (found.candidate, found.misses) == (point.candidate, ("latency",))
    assert "was not moved: ValueError: no such class" in said[0]


def test_what_was_found_is_kept_until_other_points_are_chosen(tmp_path: Path) -> None:
    bench: Any = Bench(1.1)
    progress: Any = Silent()
    points = bench.points(6, 4)
    found, dense = verified(points, bench, tmp_path, progress)
    measurements = len(bench.gauges.accuracies)
    again, dense_again = verified(points, bench, tmp_path, progress)
    assert len(bench.gauges.accuracies) == measurements
    assert again == found
    assert dense_again == dense
    assert [p.candidate for p in verified(points[:1], bench, tmp_path, progress)[0]] != [p.candidate for p in found]
    assert len(bench.gauges.accuracies) > measurements
    (tmp_path / VERIFIED).write_text('{"chosen": []}')
    assert verified(points, bench, tmp_path, progress)[0] == found
    forget_verified(tmp_path)
    assert not (tmp_path / VERIFIED).exists()
    with pytest.raises(FileNotFoundError):
        (tmp_path / VERIFIED).read_text()
