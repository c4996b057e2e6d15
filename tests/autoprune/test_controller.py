from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from autoprune.agents import make_agent
from autoprune.agents.base import Agent, Trial
from autoprune.config import SearchConfig
from autoprune.controller import Controller, Seat
from autoprune.search_spaces.budget import Budget
from autoprune.search_spaces.errors import UserError
from autoprune.search_spaces.types import Candidate
from autoprune.study import Study
from tests.fakes import tiny_space

LIMITS = ("macs=0.5x", "latency=0.9x")
SPACE = tiny_space()
BUDGET = Budget.parse(LIMITS)


def score(candidate: Candidate) -> float:
    return sum((i + 1) * level for i, level in enumerate(candidate)) / 100


def controller(
    study: Study, evaluate: Callable[[Candidate], float] = score, agents: list[Agent] | None = None
) -> Controller:
    config = study.config
    seats = [
        Seat(make_agent(config.agent, SPACE, BUDGET.scaled(share), seed=config.seed), share) for share in config.sweep
    ]
    if agents is not None:
        seats = [Seat(agent, 1.0) for agent in agents]
    return Controller(study=study, space=SPACE, seats=seats, budget=BUDGET, evaluate=evaluate)


def config(trials: int = 12, agent: str = "tpe", sweep: tuple[float, ...] = (1.0, 0.8)) -> SearchConfig:
    return SearchConfig(budget=LIMITS, trials=trials, agent=agent, sweep=sweep, agent_options={})


def content(trials: list[Trial]) -> list[tuple[object, ...]]:
    """Everything but the seconds, which no two runs share."""
    return [(t.number, t.candidate, t.state, t.score, t.costs, t.share, t.message) for t in trials]


class Stubborn(Agent):
    """Proposes the same candidate for ever."""

    def __init__(self, candidate: Candidate) -> None:
        super().__init__(SPACE, BUDGET, seed=0)
        self.candidate = candidate

    def ask(self, number: int) -> Candidate:
        return self.candidate


def test_interrupted_search_is_the_unbroken_one(tmp_path: Path) -> None:
    with Study.create(tmp_path / "whole", config(14)) as study:
        whole = list(controller(study).run())
    calls = 0

    def interrupted(candidate: Candidate) -> float:
        nonlocal calls
        calls += 1
        if calls % 4 == 0:
            raise KeyboardInterrupt
        return score(candidate)

    Study.create(tmp_path / "broken", config(14)).close()
    interruptions = 0
    while len(Study.read(tmp_path / "broken").trials) < 14:
        with Study.open(tmp_path / "broken") as study:
            try:
                controller(study, interrupted).run()
            except KeyboardInterrupt:
                interruptions += 1
    assert interruptions >= 3
    assert content(Study.read(tmp_path / "broken").trials) == content(whole)


def test_every_trial_keeps_its_share_of_the_budget(tmp_path: Path) -> None:
    with Study.create(tmp_path / "r", config(sweep=(1.0, 0.8, 0.6))) as study:
        trials = controller(study).run()
    dense = SPACE.cost_dict(SPACE.dense)
    assert {trial.share for trial in trials} == {1.0, 0.8, 0.6}
    for trial in trials:
        assert trial.share == (1.0, 0.8, 0.6)[trial.number % 3]
        assert trial.costs == SPACE.cost_dict(trial.candidate)
        for cost, limit in BUDGET.scaled(trial.share).resolve(dense).items():
            assert trial.costs[cost] <= limit


def test_each_agent_learns_from_its_own_trials_only(tmp_path: Path) -> None:
    with Study.create(tmp_path / "r", config(6)) as study:
        search = controller(study)
        search.run()
        assert [[t.number for t in seat.agent.trials] for seat in search.seats] == [[0, 2, 4], [1, 3, 5]]


def test_same_subnet_is_evaluated_once(tmp_path: Path) -> None:
    evaluated: list[Candidate] = []

    def counted(candidate: Candidate) -> float:
        evaluated.append(candidate)
        return score(candidate)

    Study.create(tmp_path / "r", config(2)).close()
    for planned in (2, 4):
        with Study.open(tmp_path / "r") as study:
            study.change(trials=planned)
            controller(study, counted, [Stubborn(SPACE.smallest)]).run()
            trials = study.trials
    assert evaluated == [SPACE.smallest]
    assert [trial.message for trial in trials] == [None] + ["same subnet as trial 0"] * 3
    assert {trial.score for trial in trials} == {score(SPACE.smallest)}


def test_proposal_above_the_budget_is_our_bug(tmp_path: Path) -> None:
    with Study.create(tmp_path / "r", config()) as study:
        with pytest.raises(AssertionError, match="bug in autoprune"):
            controller(study, agents=[Stubborn(SPACE.dense)]).run()
        assert study.trials == []


def test_failed_trial_is_kept_with_its_reason(tmp_path: Path) -> None:
    with Study.create(tmp_path / "r", config(6, agent="random")) as study:

        def sometimes(candidate: Candidate) -> float:
            if len(study.trials) % 2:
                raise ZeroDivisionError("by [the] user")
            return score(candidate)

        trials = controller(study, sometimes).run()
    for trial in trials:
        failed = trial.number % 2 == 1
        assert (trial.state == "failed") == failed
        assert (trial.score is None) == failed
        assert not failed or "ZeroDivisionError: by [the] user (" in (trial.message or "")


@pytest.mark.parametrize("reason", ["raises", "nan"])
def test_three_failures_of_a_kind_stop_the_search(tmp_path: Path, reason: str) -> None:
    def broken(candidate: Candidate) -> float:
        if reason == "raises":
            raise RuntimeError("no such layer")
        return float("nan")

    stops = pytest.raises(UserError, match=r"3 trials in a row.*(no such layer|NaN).*autoprune resume")
    with Study.create(tmp_path / "r", config()) as study, stops:
        controller(study, broken).run()
    assert [trial.state for trial in Study.read(tmp_path / "r").trials] == ["failed"] * 3
    with Study.open(tmp_path / "r") as study:  # mended: goes on
        trials = controller(study).run()
    assert [trial.state for trial in trials] == ["failed"] * 3 + ["complete"] * 12  # they do not count


def test_failures_of_different_kinds_do_not_stop_it(tmp_path: Path) -> None:
    kinds = [RuntimeError, ValueError]
    with Study.create(tmp_path / "r", config(6, sweep=(1.0,), agent="random")) as study:

        def alternating(candidate: Candidate) -> float:
            raise kinds[len(study.trials) % 2]("x")

        assert len(controller(study, alternating).run()) == 6


@pytest.mark.parametrize("error", [UserError("wrong shapes"), OSError(errno.ENOSPC, "No space left on device")])
def test_what_no_other_candidate_can_mend_ends_the_search(tmp_path: Path, error: Exception) -> None:
    def broken(candidate: Candidate) -> float:
        raise error

    with Study.create(tmp_path / "r", config()) as study:
        with pytest.raises(type(error)) as caught:
            controller(study, broken).run()
        assert caught.value is error
        assert study.trials == []
