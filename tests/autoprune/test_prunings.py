from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import autoprune as ap
from autoprune.agents import make_agent
from autoprune.agents.base import Agent, Trial
from autoprune.bounds import Cut, Staircase
from autoprune.cli.show import print_run
from autoprune.config import SearchConfig
from autoprune.controller import Controller, Seat
from autoprune.heuristic import RATE, STEP, Heuristic
from autoprune.prunings import REASONS, describe_prunings
from autoprune.search_spaces import Budget
from autoprune.search_spaces.errors import UserError
from autoprune.search_spaces.types import Candidate
from autoprune.study import FILE, Study
from tests.autoprune.runs import SETTINGS, tiny_net
from tests.autoprune.test_bounds import LIMITS, SPACE, answered, bounded_worth, config, content, worth

# -- alpha at a tolerance, and of the winner only ----------------------------------------------------------------------


def trials_of(points: Sequence[tuple[int, int, int]]) -> list[Trial]:
    return [
        Trial(number=number, candidate=(number,), state="complete", score=score, costs={"macs": macs, "params": params})
        for number, (score, macs, params) in enumerate(points)
    ]


@settings(deadline=None, max_examples=200)
@given(
    st.lists(st.tuples(st.integers(0, 6), st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=14),
    st.sampled_from([0.0, 0.25, 1.0, math.inf]),
)
def test_of_whatever_is_cut_something_as_good_is_kept(points: list[tuple[int, int, int]], tolerance: float) -> None:
    """At most the tolerance dearer, and scores no less; at infinity the winner is the first of the best scores."""
    stairs = Staircase(["macs", "params"], tolerance)
    kept: list[Trial] = []
    for trial in trials_of(points):
        incumbent = stairs.incumbent(trial.costs)
        assert trial.score is not None
        if incumbent is None or incumbent.score is None or trial.score > incumbent.score:
            stairs.add(trial)
            kept.append(trial)
    for trial in trials_of(points):
        assert any(
            (other.score or 0) >= (trial.score or 0)
            and all(other.costs[name] <= trial.costs[name] * (1 + tolerance) for name in trial.costs)
            for other in kept
        )
    if math.isinf(tolerance):
        best = max(score for score, _, _ in points)
        assert kept[-1].number == [score for score, _, _ in points].index(best)


def test_an_incumbent_is_who_sets_alpha() -> None:
    stairs = Staircase(["macs", "params"])
    for trial in trials_of([(3, 2, 2), (5, 4, 2), (5, 2, 4), (4, 3, 3)]):
        stairs.add(trial)
    found = stairs.incumbent({"macs": 4, "params": 4})
    assert found is not None
    assert (found.number, found.score, stairs.alpha({"macs": 4, "params": 4})) == (1, 5, 5)
    assert stairs.incumbent({"macs": 1, "params": 9}) is None


# -- the heuristic -----------------------------------------------------------------------------------------------------


def audit(number: int, right: bool) -> Trial:
    state: Any = "cut" if right else "complete"
    return Trial(number=number, candidate=(number,), state=state, score=0.5, pruning="heuristic", audit=right)


@given(st.lists(st.booleans(), max_size=200))
def test_the_share_of_wrong_audits_is_what_the_slack_says(rights: list[bool]) -> None:
    heuristic = Heuristic(lambda candidate: 0.0)
    first, clipped = heuristic.slack, False
    for number, right in enumerate(rights):
        heuristic.learn(audit(number, right))
        clipped |= heuristic.slack == 1
    if rights and not clipped:
        share = rights.count(False) / len(rights)
        assert share == pytest.approx(RATE + math.log(heuristic.slack / first) / (STEP * len(rights)), abs=1e-9)
    assert heuristic.slack >= 1


def test_only_its_own_audits_move_the_slack() -> None:
    heuristic = Heuristic(lambda candidate: float(candidate[0]))
    for trial in (replace(audit(0, True), pruning="statistical"), replace(audit(0, True), audit=None)):
        heuristic.learn(trial)
    assert heuristic.slack == 2
    incumbent = Trial(number=0, candidate=(3,), state="complete", score=1.0)
    assert [heuristic.skips((level,), incumbent) for level in (2, 6, 7)] == [False, False, True]


# -- the controller ----------------------------------------------------------------------------------------------------


def controller(study: Study, evaluate: Callable[[Candidate], float] = worth, **more: Any) -> Controller:
    """Predicts at random: many candidates are skipped, some of them wrongly."""
    budget = Budget.parse(LIMITS)
    seats = [Seat(make_agent(study.config.agent, SPACE, budget.scaled(s), seed=0), s) for s in study.config.sweep]
    more = {"predict": lambda candidate: 0.5 + 7 * sum(candidate) % 5, "audit": 0.4, **more}
    return Controller(study=study, space=SPACE, seats=seats, budget=budget, evaluate=evaluate, **more)


@pytest.mark.parametrize(("agent", "above"), [("random", None), ("tpe", bounded_worth)])
def test_skipped_audited_and_the_same_when_interrupted(tmp_path: Path, agent: str, above: Any) -> None:
    with Study.create(tmp_path / "whole", config(24, agent)) as study:
        whole = list(controller(study, evaluate_above=above, tolerance=math.inf).run())
    skipped = [trial for trial in whole if trial.pruning == "heuristic"]
    assert {trial.audit for trial in skipped} >= {None, True}
    for trial in skipped:
        assert trial.message is not None
        assert trial.message.startswith(REASONS["heuristic"])
        if trial.audit is None:
            assert (trial.state, trial.score, trial.evaluated) == ("cut", None, 0.0)
        elif not trial.audit:
            assert (trial.state, trial.score) == ("complete", worth(trial.candidate))
    Study.create(tmp_path / "broken", config(24, agent)).close()
    calls = 0

    def interrupted(candidate: Candidate) -> float:
        nonlocal calls
        calls += 1
        if calls % 4 == 0:
            raise KeyboardInterrupt
        return worth(candidate)

    while len(Study.read(tmp_path / "broken").trials) < 24:
        with Study.open(tmp_path / "broken") as study, suppress(KeyboardInterrupt):
            controller(study, interrupted, evaluate_above=above, tolerance=math.inf).run()
    assert content(Study.read(tmp_path / "broken").trials) == content(whole)


def test_only_the_winner_counts(tmp_path: Path) -> None:
    best, finished = [], []
    for name, tolerance in (("front", 0.0), ("winner", math.inf)):
        with Study.create(tmp_path / name, config(30, "random")) as study:
            trials = controller(study, evaluate_above=bounded_worth, predict=None, tolerance=tolerance).run()
        complete = [trial for trial in trials if trial.state == "complete"]
        best.append(max(complete, key=lambda trial: trial.score or 0.0).number)
        finished.append(len(complete))
    assert best[0] == best[1]
    assert finished[0] > finished[1]


def test_a_lost_race_is_not_run_again(tmp_path: Path) -> None:
    raced: list[Candidate] = []

    def race(number: int, candidate: Candidate, incumbent: Trial | None) -> float | Cut:
        raced.append(candidate)
        return 9.0 if incumbent is None else Cut(9.0, 0.1, "statistical")

    class Same(Agent):
        def ask(self, number: int) -> Candidate:
            return SPACE.smallest if number == 0 else self.uniform()

    budget = Budget.parse(LIMITS)
    with Study.create(tmp_path / "run", SearchConfig(budget=LIMITS, trials=4, agent="uniform")) as study:
        seat = Seat(Same(SPACE, budget, seed=0), 1.0)
        trials = Controller(study=study, space=SPACE, seats=[seat], budget=budget, evaluate=worth, race=race).run()
    assert len(raced) == 2
    assert [(t.state, t.pruning, t.evaluated) for t in trials] == [
        ("complete", None, 1.0),
        ("cut", "statistical", 0.1),
        ("cut", "subproblem", 0.0),
        ("cut", "subproblem", 0.0),
    ]


def test_infeasible_prefixes_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Study.create(tmp_path / "run", config(6, "bnb")) as study:
        trials = controller(study, predict=None).run()
    assert all(trial.ruled_out["constraint"] > 0 for trial in trials)
    counted = sum({trial.share: trial.ruled_out["constraint"] for trial in trials}.values())
    line = f"constraint: {counted:,} partial candidates ruled out"
    assert line in describe_prunings(trials)
    print_run(tmp_path / "run", every_trial=True)
    assert line in capsys.readouterr().out


# -- older studies -----------------------------------------------------------------------------------------------------


def test_a_study_that_names_no_prunings(tmp_path: Path) -> None:
    with Study.create(tmp_path / "run", config(12, "random")) as study:
        whole = controller(study, evaluate_above=bounded_worth, predict=None).run()
    with sqlite3.connect(tmp_path / "run" / FILE) as connection:
        table = "trial_system_attributes WHERE key = 'trial'"
        rows = connection.execute(f"SELECT trial_id, value_json FROM {table}").fetchall()
        connection.execute(f"DELETE FROM {table}")
        connection.execute("DELETE FROM trial_user_attributes")
        found = set()
        for number, text in rows:
            trial = json.loads(text)
            found |= {trial.pop(name) for name in ("pruning", "audit")}
            del trial["ruled_out"]
            connection.executemany(
                "INSERT INTO trial_user_attributes (trial_id, key, value_json) VALUES (?, ?, ?)",
                [(number, name, json.dumps(value)) for name, value in trial.items()],
            )
        assert found >= {None, "alpha-beta"}
    connection.close()
    read = Study.read(tmp_path / "run").trials
    assert [trial.pruning for trial in read] == [
        "alpha-beta" if trial.state == "cut" else trial.pruning for trial in whole
    ]
    assert {trial.audit for trial in read} == {None}


# -- a real network ----------------------------------------------------------------------------------------------------


def test_a_search_that_skips_by_the_prior(tmp_path: Path) -> None:
    model = tiny_net()
    data: dict[str, Any] = {"train": answered(model, 100, 1), "search": answered(model, 100, 2)}
    options = {**SETTINGS, **data, "agent": "random", "trials": 12, "latency_repeats": 1, "points": 1, "audit": 0.5}
    whole = ap.search(model, run=tmp_path / "whole", heuristic=True, **options)
    skipped = [trial for trial in whole.trials if trial.pruning == "heuristic"]
    assert skipped
    lines = describe_prunings(whole.trials)
    assert any(line.startswith("heuristic: ") for line in lines)
    assert all(line in (tmp_path / "whole" / "report.html").read_text() for line in lines)
    ap.search(model, run=tmp_path / "half", heuristic=True, **{**options, "trials": 6})
    assert content(ap.resume(tmp_path / "half", trials=6, model=model, **data).trials) == content(whole.trials)
    with pytest.raises(UserError, match="skips by the prior"):
        ap.search(model, run=tmp_path / "none", heuristic=True, prior="off", **options)
