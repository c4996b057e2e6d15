"""Several workers on one study: every number once, no candidate evaluated twice, nothing lost."""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

import autoprune as ap
from autoprune import controller as controller_module
from autoprune.agents import AGENTS
from autoprune.agents.base import Trial
from autoprune.search_spaces.errors import UserError
from autoprune.search_spaces.types import Candidate
from autoprune.storage import Address, Database
from autoprune.storage.address import VARIABLE
from autoprune.study import Study
from autoprune.workers.crew import check_crew
from tests.autoprune.runs import SETTINGS, loaders, tiny_net
from tests.autoprune.test_controller import SPACE, Stubborn, config, controller, score

ALL = [name for name in AGENTS if ":" not in name]


class Counted:
    """A score that counts how often each candidate was evaluated, by all workers together."""

    def __init__(self) -> None:
        self.calls: Counter[Candidate] = Counter()
        self._lock = threading.Lock()

    def __call__(self, candidate: Candidate) -> float:
        with self._lock:
            self.calls[candidate] += 1
        return score(candidate)


def make(path: Path, **settings: object) -> None:
    with Study.create(path, config(**settings)) as study:  # type: ignore[arg-type]
        study.share()


def share_work(path: Path, evaluate: Callable[[Candidate], float], workers: int = 3) -> list[Trial]:
    start = threading.Barrier(workers)

    def work(_: int) -> int:
        with Study.join(path) as study:
            start.wait()
            return len(controller(study, evaluate).run())

    with ThreadPoolExecutor(workers) as pool:
        seen = list(pool.map(work, range(workers)))
    trials = Study.read(path).trials
    assert seen == [len(trials)] * workers  # none leaves before all is stored
    return trials


@pytest.mark.parametrize("agent", ALL)
def test_workers_divide_the_numbers_and_evaluate_nothing_twice(tmp_path: Path, agent: str) -> None:
    make(tmp_path / "r", trials=14, agent=agent)
    evaluate = Counted()
    trials = share_work(tmp_path / "r", evaluate)
    assert sorted(trial.number for trial in trials) == list(range(14))
    assert set(evaluate.calls.values()) == {1}
    assert {trial.candidate for trial in trials} == set(evaluate.calls)
    for trial in trials:
        assert trial.share == (1.0, 0.8)[trial.number % 2]
        assert trial.score == score(trial.candidate)


def test_what_another_evaluates_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Agents that know one candidate only: one worker evaluates it, the others take over what it found."""
    monkeypatch.setattr(controller_module, "POLL_S", 0.001)
    make(tmp_path / "r", trials=6, sweep=(1.0,))
    evaluate = Counted()

    def work(_: int) -> None:
        with Study.join(tmp_path / "r") as study:
            controller(study, evaluate, [Stubborn((0,) * len(SPACE.groups))]).run()

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(work, range(3)))
    trials = Study.read(tmp_path / "r").trials
    assert sum(evaluate.calls.values()) == 1
    assert [trial.pruning for trial in trials] == [None] + ["subproblem"] * 5
    assert len({trial.score for trial in trials}) == 1


def test_a_stopped_worker_leaves_its_trial_to_the_others(tmp_path: Path) -> None:
    make(tmp_path / "r", trials=6, agent="random")

    def stops(candidate: Candidate) -> float:
        raise KeyboardInterrupt

    with Study.join(tmp_path / "r") as study, suppress(KeyboardInterrupt):
        controller(study, stops).run()
    assert Study.read(tmp_path / "r").trials == []
    trials = share_work(tmp_path / "r", score, workers=2)
    assert sorted(trial.number for trial in trials) == list(range(6))


def test_random_proposals_do_not_depend_on_the_number_of_workers(tmp_path: Path) -> None:
    """An agent that learns nothing proposes by number alone: the set of candidates is that of one worker."""
    make(tmp_path / "many", trials=12, agent="random")
    make(tmp_path / "one", trials=12, agent="random")
    many, one = share_work(tmp_path / "many", score), share_work(tmp_path / "one", score, workers=1)
    assert {t.number: t.candidate for t in many} == {t.number: t.candidate for t in one}


@pytest.mark.parametrize("agent", ALL)
def test_agents_propose_something_else_than_what_is_pending(agent: str) -> None:
    """Also before they were told anything, and what they are asked for does not depend on what was pending before."""
    from autoprune.agents import make_agent
    from autoprune.search_spaces.budget import Budget

    made, fresh = (make_agent(agent, SPACE, Budget.parse(("macs=0.5x",)), seed=3) for _ in range(2))
    pending: list[Candidate | None] = []
    for number in range(5):
        made.pending = tuple(pending)
        pending.append(made.ask(number))
    assert len(set(pending)) == len(pending)
    made.pending = (*pending[:4], None)
    assert made.ask(5) not in pending[:4]
    made.pending = ()
    assert made.ask(0) == fresh.ask(0)


def test_a_worker_without_the_run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It gets what it needs from the database, and leaves nothing behind."""
    run = tmp_path / "r"
    whole = ap.search(tiny_net(), **loaders(), **SETTINGS, trials=6, run=tmp_path / "whole")
    ap.search(tiny_net(), **loaders(), **SETTINGS, trials=2, run=run)
    with Study.open(run) as study:
        study.change(trials=6)
        study.share()
    for name in ("config.toml", "profile"):
        path = run / name
        shutil.move(path, tmp_path / name)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    done = ap.work(storage=f"sqlite:///{run / 'study.db'}", model=tiny_net(), **loaders())
    assert done == 6
    assert not [path for path in (tmp_path / "temporary").iterdir() if path.is_dir()]
    for name in ("config.toml", "profile"):
        shutil.move(tmp_path / name, run / name)
    result = ap.resume(run, model=tiny_net(), **loaders())
    assert [(t.number, t.candidate, t.score) for t in result.trials] == [
        (t.number, t.candidate, t.score) for t in whole.trials
    ]


def test_a_worker_that_comes_too_early_is_told(tmp_path: Path) -> None:
    Study.create(tmp_path / "r", config()).close()
    with pytest.raises(UserError, match="still being prepared"):
        ap.work(tmp_path / "r")
    with pytest.raises(UserError, match="still being prepared"):
        ap.work(storage=f"sqlite:///{tmp_path / 'r' / 'study.db'}")
    assert list((tmp_path / "r" / "workers").iterdir()) == []


def test_a_worker_elsewhere_is_told_which_study_to_trust(tmp_path: Path) -> None:
    with Study.create(tmp_path / "r", replace(config(), model="somebody.elses:net")) as study:
        study.share()
    url = f"sqlite:///{tmp_path / 'r' / 'study.db'}"
    with pytest.raises(UserError, match=r"study '.*' in sqlite:///.*study\.db runs.*somebody\.elses:net.*--trust"):
        ap.work(storage=url)
    with pytest.raises(UserError) as refused:
        ap.work(storage=url, weights="mine.safetensors")
    assert "mine" not in str(refused.value)  # who names them here trusts them


def test_a_worker_names_one_of_several_studies(tmp_path: Path) -> None:
    for name in ("first", "second"):
        Database.create(Address.of_file(tmp_path / "s.db"), name, ["score", "macs"], {})
    for study, what in ((None, "holds 2 studies"), ("third", "holds no study 'third'")):
        with pytest.raises(UserError, match=rf"{what}.*--study NAME.*first, second"):
            ap.work(storage=f"sqlite:///{tmp_path / 's.db'}", study=study)


def test_the_environment_names_the_storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, f"sqlite:///{tmp_path / 'missing.db'}")
    with pytest.raises(UserError, match=r"missing\.db is missing"):
        ap.work(study="first")


def test_a_worker_is_given_one_study(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(UserError, match="run folder, or --storage"):
        ap.work()
    with pytest.raises(UserError, match="run folder, or --storage"):
        ap.work("runs/first", storage="sqlite:///study.db")


def test_crews_that_cannot_work_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    check_crew(config(), 1, "local")
    with pytest.raises(UserError, match="whole number of at least 1"):
        check_crew(config(), 0, "local")
    with pytest.raises(UserError, match="local"):
        check_crew(config(), 2, "locla")
    with pytest.raises(UserError, match=r"autoprune\.work"):
        check_crew(config(), 2, "local")
    monkeypatch.setattr("autoprune.workers.crew.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"autoprune\[ray\]"):
        check_crew(config(), 2, "ray")


def test_a_number_that_is_taken_over_gets_what_it_would_have_got(tmp_path: Path) -> None:
    """The first candidates of an agent are not lost with the worker that had them."""
    make(tmp_path / "one", trials=4, agent="uniform", sweep=(1.0,))
    make(tmp_path / "two", trials=4, agent="uniform", sweep=(1.0,))
    alone = share_work(tmp_path / "one", score, workers=1)
    with Study.join(tmp_path / "two") as first:
        assert first.next().claim is not None  # number 0, and nothing comes of it until the others are stored
        with Study.join(tmp_path / "two") as second:
            claim = second.next().claim
            assert claim is not None
            second.store(claim, alone[1], SPACE.keep_ratios(alone[1].candidate))
    trials = share_work(tmp_path / "two", score, workers=1)
    assert {t.number: t.candidate for t in trials} == {t.number: t.candidate for t in alone}


def test_a_worker_writes_no_settings_of_its_own_into_the_run(tmp_path: Path) -> None:
    make(tmp_path / "r", trials=9)
    before = (tmp_path / "r" / "config.toml").read_text()

    def fails(candidate: Candidate) -> float:
        raise ValueError("boom")

    with Study.join(tmp_path / "r", weights="/elsewhere") as study, pytest.raises(UserError, match="start this worker"):
        controller(study, fails).run()
    assert (tmp_path / "r" / "config.toml").read_text() == before


def test_a_run_is_gone_on_with_in_the_storage_that_it_names(tmp_path: Path) -> None:
    make(tmp_path / "r", trials=3)
    with pytest.raises(UserError, match=r"study\.db in its folder, not in postgresql\+psycopg://ann@db/studies"):
        ap.resume(tmp_path / "r", storage="postgresql://ann:s3cret@db/studies")
