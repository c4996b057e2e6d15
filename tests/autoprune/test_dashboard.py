"""What optuna-dashboard and Optuna's own tools are shown of a study: constraints, messages, notes."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy

import autoprune as ap
from autoprune.agents.base import Trial
from autoprune.config import SearchConfig
from autoprune.front import front
from autoprune.search_spaces.budget import Budget
from autoprune.study import FILE, Study, objectives
from tests.autoprune.runs import SETTINGS, loaders, tiny_net

BUDGET = ("macs=100k", "params=50")
LIMITS = Budget.parse(BUDGET).resolve({})
RATIOS = {"conv1": 0.5}


def trial(number: int, score: float | None, macs: float, params: float, **values: Any) -> Trial:
    costs = {"macs": macs, "params": params, "size": 1.0}
    return Trial(
        **{"number": number, "candidate": (number,), "state": "complete", "score": score, "costs": costs, **values}
    )


TRIALS = [
    trial(0, 0.5, 90e3, 50),
    trial(1, 0.9, 100e3 * (1 + 1e-12), 40),  # a sum that was rounded up keeps the limit
    trial(2, 0.4, 95e3, 50),  # dominated by the first
    trial(3, 0.99, 50e3, 51),  # the best, but not within the budget
    trial(4, None, 110e3, 10, state="cut", pruning="measured", message="measured: above the budget"),
    trial(5, None, 10, 10, state="failed", costs={}, message="ValueError: x"),
]


def store(study: Study, found: Trial) -> None:
    claim = study.next().claim
    assert claim is not None
    study.store(claim, found, RATIOS, LIMITS)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    with Study.create(tmp_path / "r", SearchConfig(budget=BUDGET, trials=100)) as study:
        for found in TRIALS:
            store(study, found)
    return tmp_path / "r"


def opened(run: Path) -> optuna.Study:
    return optuna.load_study(study_name=run.name, storage=f"sqlite:///{run / FILE}")


def note(study: optuna.Study, place: int | None = None) -> str:
    """What the dashboard shows of a study, or of the trial that was stored at this place."""
    dashboard = pytest.importorskip("optuna_dashboard._note")
    attributes = study._storage.get_study_system_attrs(study._study_id)
    of = None if place is None else study.get_trials(deepcopy=False)[place]._trial_id
    body: str = dashboard.get_note_from_system_attrs(attributes, of)["body"]
    return body


@pytest.fixture
def writes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Statements that changed a database since the test began."""
    seen: list[str] = []

    def listen(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        if not statement.startswith(("SELECT", "PRAGMA")):
            seen.append(statement)

    sqlalchemy.event.listen(sqlalchemy.Engine, "before_cursor_execute", listen)
    yield seen
    sqlalchemy.event.remove(sqlalchemy.Engine, "before_cursor_execute", listen)


def test_optuna_knows_which_trials_keep_the_budget(run: Path) -> None:
    study = opened(run)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        constraints = [found.constraints for found in study.trials]
        best = [found.number for found in study.best_trials]
    assert {name: constraints[0][name] for name in LIMITS} == {"macs": 90e3 / 100e3 - 1, "params": 0.0}
    assert constraints[1]["macs"] == 0.0
    assert constraints[3]["params"] == pytest.approx(0.02)
    assert constraints[4]["macs"] == pytest.approx(0.1)
    assert constraints[5] == {}
    within = [
        found
        for found in TRIALS
        if found.costs and all(found.costs[name] <= LIMITS[name] * (1 + 1e-9) for name in LIMITS)
    ]
    assert sorted(best) == sorted(found.number for found in front(within, objectives(BUDGET)[1:])) == [0, 1]


def test_the_dashboard_reads_the_same_constraints(run: Path) -> None:
    serializer = pytest.importorskip("optuna_dashboard._serializer")
    study = opened(run)
    for found in study.trials:
        shown = serializer.serialize_frozen_trial(study._study_id, found, {})
        assert shown["constraints"] == [value for name, value in found.constraints.items() if name in LIMITS]
        assert [each["key"] for each in shown["user_attrs"]] == ["message"] * (found.number >= 4)


def test_studies_that_were_stored_in_other_ways_still_open(run: Path) -> None:
    """Before there were constraints a trial was one of the user's attributes, and before that many of them."""
    study = opened(run)
    older = [replace(TRIALS[1], number=6), replace(TRIALS[1], number=7)]
    first, second = ({name: getattr(each, name) for name in Trial.__slots__} for each in older)
    for attributes in ({"trial": first}, second):
        study.add_trial(optuna.trial.create_trial(values=[0.9, 100e3, 40.0], user_attrs=attributes))
    with Study.open(run) as again:
        assert again.trials == [*TRIALS, *older]
        store(again, trial(8, 0.1, 1, 1))
    assert [found.number for found in opened(run).best_trials] == [0, 6, 7, 8]


def test_notes_are_those_of_the_last_front_only(run: Path, writes: list[str]) -> None:
    with Study.open(run) as study:
        study.annotate("first", {0: "point 0", 3: "point 1"})
        shown = opened(run)
        assert "first" in note(shown)
        assert ["point" in note(shown, place) for place in range(5)] == [True, False, False, True, False]
        writes.clear()
        study.annotate("first", {0: "point 0", 3: "point 1"})
        assert writes == []
        study.annotate("second", {3: "point 0"})
        shown = opened(run)
        assert "second" in note(shown)
        assert "first" not in note(shown)
        assert note(shown, 0) == ""
        assert "point 0" in note(shown, 3)
        versions = [v for k, v in shown._storage.get_study_system_attrs(shown._study_id).items() if "note_ver" in k]
        assert versions == [2, 2, 2]


@pytest.mark.parametrize("lengths", [(5000, 10), (10, 5000), (2045, 4090)])
def test_notes_of_any_length_come_back(run: Path, lengths: tuple[int, int]) -> None:
    with Study.open(run) as study:
        for length in lengths:
            text = ("0123456789×" * length)[:length]
            study.annotate(text, {})
            assert note(opened(run)).splitlines()[2] == text


def test_what_people_wrote_stays(run: Path) -> None:
    dashboard = pytest.importorskip("optuna_dashboard")
    shown = opened(run)
    dashboard.save_note(shown, "mine, above")
    dashboard.save_note(optuna.trial.Trial(shown, shown.trials[1]._trial_id), "  of a trial\n")
    with Study.open(run) as study:
        study.annotate("ours", {0: "point"})
        dashboard.save_note(opened(run), note(opened(run)) + "\nmine, below")
        study.annotate("ours again", {})
    lines = [line for line in note(opened(run)).splitlines() if line and not line.startswith("[//]")]
    assert lines == ["mine, above", "ours again", "mine, below"]
    assert note(opened(run), 1) == "  of a trial\n"
    assert note(opened(run), 0) == ""


@pytest.mark.parametrize("kill_at", [1, 4, 9])
def test_a_kill_leaves_all_of_the_old_notes_or_all_of_the_new(run: Path, kill_at: int, writes: list[str]) -> None:
    old, new = "old " * 2000, "new " * 1500
    with Study.open(run) as study:
        study.annotate(old, {0: "old"})

        def counting(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
            if len(writes) == kill_at:
                raise KeyboardInterrupt

        writes.clear()
        engine = study._database.engine
        sqlalchemy.event.listen(engine, "after_cursor_execute", counting)
        with pytest.raises(KeyboardInterrupt):
            study.annotate(new, {0: "new"})
        sqlalchemy.event.remove(engine, "after_cursor_execute", counting)
        assert note(opened(run)).count("old ") == 2000 - 1
        assert "old" in note(opened(run), 0)
        study.annotate(new, {0: "new"})
        assert note(opened(run)).count("new ") == 1500 - 1  # the last space goes
        assert "new" in note(opened(run), 0)
        assert "old" not in note(opened(run)) + note(opened(run), 0)


def test_notes_and_trials_written_at_the_same_time_are_all_there(run: Path) -> None:
    with Study.open(run) as study:
        study.share()
        other = Study.join(run)
        ready = threading.Barrier(2)

        def search() -> None:
            ready.wait()
            for number in range(6, 26):
                store(other, trial(number, 0.1, 10.0, 10.0))

        thread = threading.Thread(target=search)
        thread.start()
        ready.wait()
        for count in range(20):
            study.annotate(f"front {count} " + "x" * 3000, {count % 6: f"point {count}"})
        thread.join()
        other.close()
    shown = opened(run)
    assert len(Study.read(run).trials) == 26
    assert "front 19 " in note(shown)
    assert [place for place in range(26) if note(shown, place)] == [1]


def test_a_finished_run_has_its_front_as_notes(tmp_path: Path) -> None:
    settings = {**SETTINGS, "run": tmp_path / "r", "trials": 3, "agent": "random", "prior": "off", **loaders()}
    model = tiny_net()
    first = ap.search(model, **settings)
    shown = opened(tmp_path / "r")
    table = [
        [cell.strip() for cell in line.split("|")[2:-1]] for line in note(shown).splitlines() if line.startswith("|")
    ]
    assert table[0] == ["dense", *(f"point {k}" for k in range(len(first.front)))]
    assert table[2] == ["–", *(str(point.trial) for point in first.front)]
    assert "macs=0.5x" in note(shown)
    for index, point in enumerate(first.front):
        assert f"point {index}" in note(shown, point.trial)
        assert str(tmp_path / "r" / "front" / str(index)) in note(shown, point.trial)
    assert sum(bool(note(shown, place)) for place in range(3)) == len(first.front)
    (tmp_path / "r" / "front.json").unlink()  # finished again, as after a kill at the last moment
    before = shown._storage.get_study_system_attrs(shown._study_id)
    ap.resume(tmp_path / "r", model=model, **loaders())
    assert opened(tmp_path / "r")._storage.get_study_system_attrs(shown._study_id) == before
    more = ap.resume(tmp_path / "r", trials=3, model=model, **loaders())
    shown = opened(tmp_path / "r")
    assert [place for place in range(6) if note(shown, place)] == sorted(point.trial for point in more.front)
    assert all(value <= 0 for found in shown.trials for value in found.constraints.values())
    assert all("macs" in found.constraints for found in shown.trials)
