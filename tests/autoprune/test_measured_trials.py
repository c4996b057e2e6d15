"""Trials that are measured before they are scored: on a device with a known law, with models that learn."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autoprune.agents import make_agent
from autoprune.agents.base import Reading, Trial
from autoprune.config import SearchConfig
from autoprune.controller import Controller, Seat
from autoprune.keeping import Keeper
from autoprune.measure import TooNoisy
from autoprune.search_spaces import Budget, Candidate, UserError
from autoprune.search_spaces.types import FloatArray, IntArray
from autoprune.study import Study
from tests.autoprune.test_keeping import Space, ms
from tests.fakes import chain_space

LIMIT = "latency=6ms"


class LearningDevice:
    """Gauges of a device that is `factor` slower than predicted, until the model has learnt that from a reading."""

    def __init__(self, factor: float = 1.15) -> None:
        chain = chain_space([40, 48, 64, 64, 48], step=2)
        self.space = Space(chain.groups, chain.ops, more_costs={"latency": self.predict})
        self.costs: dict[str, Any] = {"latency": None}
        self.factor, self.learnt = factor, 1.0
        self.log: list[tuple[str, Any]] = []
        self.broken: Exception | None = None

    def predict(self, units: IntArray) -> FloatArray:
        predicted: FloatArray = self.learnt * ms(units)
        return predicted

    def truth(self, candidate: Candidate) -> float:
        return float(self.factor * ms(self.space.units(np.array([candidate])))[0])

    def measure(self, models: Mapping[str, Candidate], *, accuracy: float | None) -> dict[str, dict[str, float]]:
        if self.broken is not None:
            raise self.broken
        self.log.append(("measured", models["candidate"]))
        return {"one": {name: self.truth(candidate) for name, candidate in models.items()}}

    def values(self, found: Mapping[str, float]) -> dict[str, float]:
        return {"latency": found["one"]}

    def readings(self, candidate: Candidate, found: Mapping[str, float]) -> tuple[Reading, ...]:
        return (Reading(candidate, "one", found["one"], 0.01),)

    def slowdown(self, cost: str) -> float:
        return 1.0

    def learn(self, readings: tuple[Reading, ...]) -> None:
        for reading in readings:
            self.log.append(("learnt", reading))
            self.learnt = reading.ratio / float(ms(self.space.units(np.array([reading.candidate])))[0])


def search(path: Path, device: LearningDevice, trials: int, stop_at: int | None = None) -> list[Trial]:
    """Run or go on with a study; `stop_at` interrupts the evaluation of that trial."""
    config = SearchConfig(budget=(LIMIT,), agent="annealing", trials=trials, measure_trials="on")
    evaluated = 0

    def evaluate(candidate: Candidate) -> float:
        nonlocal evaluated
        evaluated += 1
        device.log.append(("scored", candidate))
        if evaluated == stop_at:
            raise KeyboardInterrupt
        return sum((i + 1) * level for i, level in enumerate(candidate)) / 100

    if not path.exists():
        Study.create(path, config).close()
    with Study.open(path) as study:
        budget = Budget.parse(LIMIT)
        agent = make_agent("annealing", device.space, budget, seed=0)
        keeper = Keeper(device.space, device)  # type: ignore[arg-type]  # stands in for both
        return list(
            Controller(
                study=study,
                space=device.space,
                seats=[Seat(agent, 1.0)],
                budget=budget,
                evaluate=evaluate,
                keeper=keeper,
            ).run()
        )


def test_every_trial_keeps_the_budget_as_measured_and_stores_what_was_measured(tmp_path: Path) -> None:
    device = LearningDevice()
    trials = search(tmp_path / "r", device, 8)
    for trial in trials:
        assert trial.costs["latency"] == device.truth(trial.candidate) <= 6
    first = trials[0]
    assert len(first.readings) > 1, "the first proposal trusts a prediction that is 15 % too low"
    assert first.readings[-1].candidate == first.candidate
    assert max(len(trial.readings) for trial in trials[1:]) <= 2, "the model has learnt the factor"
    stored = [trial.readings for trial in Study.read(tmp_path / "r").trials]
    assert stored == [trial.readings for trial in trials]
    assert [e for kind, e in device.log if kind == "learnt"] == [r for readings in stored for r in readings]


def test_a_candidate_is_measured_before_it_is_scored_and_learnt_after(tmp_path: Path) -> None:
    device = LearningDevice()
    (trial,) = search(tmp_path / "r", device, 1)
    kinds = [kind for kind, _ in device.log]
    assert kinds == ["measured"] * len(trial.readings) + ["scored"] + ["learnt"] * len(trial.readings)
    assert ("scored", trial.candidate) in device.log


def test_a_search_that_goes_on_finds_models_and_agents_as_they_were(tmp_path: Path) -> None:
    whole = search(tmp_path / "whole", LearningDevice(), 9)
    for stop_at in (1, 3):
        with pytest.raises(KeyboardInterrupt):
            search(tmp_path / "broken", LearningDevice(), 9, stop_at)
    resumed = LearningDevice()
    broken = search(tmp_path / "broken", resumed, 9)
    assert [(t.candidate, t.score, t.costs, t.readings) for t in broken] == [
        (t.candidate, t.score, t.costs, t.readings) for t in whole
    ]


def test_a_measured_candidate_is_not_measured_again(tmp_path: Path) -> None:
    device = LearningDevice(factor=1.0)
    search(tmp_path / "r", device, 8)
    measured = [candidate for kind, candidate in device.log if kind == "measured"]
    assert len(set(measured)) == len(measured)


def test_what_no_candidate_keeps_is_cut_and_said(tmp_path: Path) -> None:
    device = LearningDevice(factor=8.0)
    assert device.truth(device.space.smallest) > 6
    (trial,) = search(tmp_path / "r", device, 1)
    assert (trial.state, trial.score, trial.pruning) == ("cut", None, "measured")
    assert trial.costs["latency"] > 6
    assert trial.message == "it exceeds its budget as measured, and so do its repairs."
    assert not any(kind == "scored" for kind, _ in device.log)


def test_on_a_noisy_machine_the_prediction_is_trusted(tmp_path: Path) -> None:
    device = LearningDevice()
    device.broken = TooNoisy("The machine is too noisy")
    trials = search(tmp_path / "r", device, 2)
    for trial in trials:
        assert trial.readings == ()
        assert trial.costs["latency"] <= 6
        assert trial.state == "complete"


def test_a_model_that_cannot_be_run_is_a_failed_trial_and_what_the_user_can_mend_stops(tmp_path: Path) -> None:
    device = LearningDevice()
    device.broken = ValueError("no such kernel")
    (trial,) = search(tmp_path / "r", device, 1)
    assert trial.state == "failed"
    assert trial.message is not None
    assert trial.message.startswith("ValueError: no such kernel")
    device.broken = UserError("The runtime is gone.")
    with pytest.raises(UserError, match="runtime is gone"):
        search(tmp_path / "s", device, 1)
