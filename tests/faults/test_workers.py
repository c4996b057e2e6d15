"""Several workers on one study that are killed, stopped and cut off: every number once, nothing lost, nothing twice."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from autoprune.agents.base import Trial
from autoprune.storage import Database
from autoprune.storage import address as address_module
from autoprune.storage.address import VARIABLE, Address
from autoprune.storage.presence import Presence
from autoprune.study import Study
from tests.faults import crew
from tests.faults.harness import KILL, KINDS, PATIENCE, TEAR, Harness, Process
from tests.faults.phases import ON_A_SERVER
from tests.faults.postgres import NoServer, Postgres, postgres
from tests.faults.proxy import Proxy

HANGS = 60.0
"""Seconds without an evaluation after which workers are taken to hang: many times what they take."""

NO_LEASE = 1e9
"""No worker loses its claim because its machine is slow."""


@pytest.fixture(scope="module")
def database() -> Iterator[Postgres]:
    try:
        with postgres() as found:
            yield found
    except NoServer as why:
        pytest.skip(f"no PostgreSQL server: {why}")


@dataclass
class Crew:
    """Workers on a study that is made for them."""

    harness: Harness
    folder: Path
    planned: int
    agent: str = "random"
    storage: Postgres | None = None
    url: str | None = None
    lease: float = NO_LEASE
    seen: bool = True
    seconds: float = 0.02
    working: list[Process] = field(default_factory=list)
    hired: int = 0
    trials: list[Trial] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.folder.mkdir()
        self.notes = crew.Notes(self.folder)
        shown = None
        if self.storage is not None:
            self.url = self.url or self.storage.url
            shown = Address.parse(self.url).shown  # and its password is known to this process
        crew.make(self.folder, self.planned, self.agent, shown)

    def hire(self, fault: list[Any] | None = None) -> Process:
        arguments = (str(self.folder), self.seconds, self.lease, self.url, self.seen)
        self.hired += 1
        log = self.folder / f"log-{self.hired}"
        process = self.harness.server.start("tests.faults.crew:work", *arguments, log=log, fault=fault)
        self.working.append(process)
        return process

    def until_begun(self, more: int) -> None:
        """Wait for so many more evaluations."""
        wanted, end = self._begun() + more, time.monotonic() + HANGS
        while self._begun() < wanted:
            for process in self.working:
                assert process.wait(0.005) in (None, 0, -signal.SIGKILL), process.said()
            assert time.monotonic() < end, "the workers hang"

    def kill(self, process: Process) -> None:
        assert process.kill() == -signal.SIGKILL
        self.bury(process, KINDS[0])

    def bury(self, process: Process, kind: str) -> None:
        self.working.remove(process)
        self.notes.write("killed", pid=process.pid)
        self.record(kind)

    def record(self, kind: str) -> None:
        name = "SQLite" if self.storage is None else "PostgreSQL"
        self.harness.records.append({"phase": f"workers, {name}", "kind": kind, "at": "", "lost": 0})

    def finish(self) -> int:
        """Let all come to their end, and check what they did; returns how many evaluations were in vain."""
        for process in self.working:
            assert process.wait() == 0, process.said()
        self.trials = Study.read(self.folder / crew.RUN).trials
        return crew.check(self.trials, self.planned, self.notes.read())

    def _begun(self) -> int:
        return sum(note.what == "begins" for note in self.notes.read())


def kill_at_random(team: Crew, kills: int, seed: int) -> None:
    """Kill one of three workers again and again, and start another in its place."""
    rng = random.Random(seed)
    for _ in range(3):
        team.hire()
    for _ in range(kills):
        team.until_begun(rng.randint(1, 8))
        time.sleep(rng.uniform(0, 2 * team.seconds))
        team.kill(rng.choice(team.working))
        team.hire()
    assert team.finish() <= kills


@pytest.fixture(params=["SQLite", "PostgreSQL"])
def storage(request: pytest.FixtureRequest) -> Postgres | None:
    return request.getfixturevalue("database") if request.param == "PostgreSQL" else None


@pytest.fixture(autouse=True)
def password(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also this process reads from the server."""
    if "database" in request.fixturenames or "PostgreSQL" in request.node.name:
        monkeypatch.setenv(VARIABLE, request.getfixturevalue("database").url)


def test_two_workers_one_killed(harness: Harness, tmp_path: Path) -> None:
    team = Crew(harness, tmp_path / "crew", 10)
    (team.folder / "gate").touch()
    killed, _ = team.hire(), team.hire()
    team.until_begun(2)
    team.kill(killed)
    (team.folder / "gate").unlink()
    team.hire()
    assert team.finish() == 1


@pytest.mark.slow
@pytest.mark.parametrize("agent", ["random", "tpe"])
def test_workers_killed_at_random(harness: Harness, tmp_path: Path, storage: Postgres | None, agent: str) -> None:
    kill_at_random(Crew(harness, tmp_path / f"killed-{agent}", 200, agent, storage), 20, seed=0)


@pytest.mark.slow
def test_workers_that_see_no_run_folder_killed(harness: Harness, tmp_path: Path, database: Postgres) -> None:
    """Nobody can tell that they have ended: what they held is taken over when its lease has run out."""
    team = Crew(harness, tmp_path / "far", 150, storage=database, lease=crew.LEASE_S, seen=False)
    kill_at_random(team, 12, seed=1)


@pytest.mark.slow
@pytest.mark.usefixtures("shim")
def test_workers_killed_inside_of_writes(harness: Harness, tmp_path: Path) -> None:
    """Each dies before one of its operations on files, while two others work on the same database."""
    team, rng = Crew(harness, tmp_path / "torn", 250), random.Random(2)
    fates: dict[int, int] = {}

    def hire_doomed() -> None:
        kind = rng.choice([KILL, TEAR])
        process = team.hire([str(team.folder / crew.RUN), kind, rng.randint(1, 60), str(team.folder / "operations")])
        fates[process.pid] = kind

    for _ in range(3):
        hire_doomed()
    kills, end = 0, time.monotonic() + PATIENCE
    while kills < 30:
        dead = [process for process in team.working if process.wait(0.005) is not None]
        for process in dead:
            assert process.wait() == -signal.SIGKILL, process.said()
            team.bury(process, KINDS[fates[process.pid]])
            kills += 1
            hire_doomed()
        assert time.monotonic() < end
    for _ in range(2):
        team.hire()
    for process in list(team.working):
        if process.pid in fates and process.wait() == -signal.SIGKILL:
            team.bury(process, KINDS[fates[process.pid]])
    team.finish()


@pytest.mark.slow
@pytest.mark.parametrize("number", range(3))
def test_a_worker_stopped_for_longer_than_its_lease(
    harness: Harness, tmp_path: Path, storage: Postgres | None, number: int
) -> None:
    """What it held is taken over; its late result is dropped."""
    team = Crew(harness, tmp_path / f"stopped-{number}", 20, storage=storage, lease=crew.LEASE_S)
    (team.folder / "gate").touch()
    late = team.hire()
    team.until_begun(1)
    late.send(signal.SIGSTOP)
    team.record("stopped for longer than the lease")
    (team.folder / "gate").unlink()
    others = [team.hire(), team.hire()]
    for process in others:
        assert process.wait() == 0, process.said()
    assert len(Study.read(team.folder / crew.RUN).trials) == team.planned
    late.send(signal.SIGCONT)
    assert team.finish() >= 1
    assert crew.Note(late.pid, "dropped") in team.notes.read()


@pytest.mark.slow
def test_connections_that_are_dropped(harness: Harness, tmp_path: Path, database: Postgres) -> None:
    """At random moments, in the middle of messages, and with a server that is away for a while."""
    rng = random.Random(3)
    with Proxy(database.port) as proxy:
        team = Crew(harness, tmp_path / "dropped", 150, storage=database, url=database.behind(proxy.port))
        for _ in range(3):
            team.hire()
        for _ in range(30):
            team.until_begun(rng.randint(1, 4))
            how = rng.choice(["connection dropped", "cut inside a message", "answer lost", "connections refused"])
            if how == "cut inside a message":
                proxy.cut_after(rng.randint(1, 2000))
            elif how == "answer lost":
                proxy.lose_answer(rng.randint(1, 15))
            elif how == "connections refused":
                proxy.refusing = True
                proxy.drop()
                time.sleep(rng.uniform(0.2, 2))
                proxy.refusing = False
            else:
                time.sleep(rng.uniform(0, 0.1))
                proxy.drop()
            team.record(how)
        assert team.finish() == 0


@pytest.mark.slow
@pytest.mark.parametrize("number", range(3))
def test_a_server_that_goes_down(harness: Harness, tmp_path: Path, database: Postgres, number: int) -> None:
    team = Crew(harness, tmp_path / f"down-{number}", 60, storage=database)
    for _ in range(3):
        team.hire()
    for _ in range(3):
        team.until_begun(5)
        database.stop()
        time.sleep(0.5)
        database.start()
        team.record("server stopped at once")
    assert team.finish() == 0


@pytest.mark.slow
def test_one_worker_on_a_server_killed_at_random_times(harness: Harness, database: Postgres) -> None:
    """It comes to the same as the one that was left alone, bit for bit."""
    (harness.folder / "server").write_text(f"{database.open_url}\n{database.url}\n")
    assert harness.interrupt(ON_A_SERVER, [0] * 12, seed=4) == 12


def test_a_worker_that_vanishes_inside_of_a_transaction(
    tmp_path: Path, database: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it has locked is free again after a while, though its connection stands."""
    monkeypatch.setattr(address_module, "IDLE_S", 1)
    address = Address.parse(database.url)
    Database.create(address, "vanished", ["score", "macs"], {})
    gone, other = (Database.open(address, "vanished", Presence(tmp_path)) for _ in range(2))
    assert gone.claims is not None
    assert other.claims is not None
    claim = gone.claims.next(1).claim
    assert claim is not None
    with gone.engine.connect() as connection:
        connection.execute(gone.claims.change(claim, beat=1))  # and never commits
        other.claims.give_back(claim)  # waits for the row
        connection.invalidate()
    taken = other.claims.next(1).claim
    assert taken is not None
    assert taken.number == 0
    gone.close()
    other.close()


def test_claims_whose_answers_are_lost(tmp_path: Path, database: Postgres) -> None:
    """A worker has what it claimed without knowing: the answers to all messages of a claim are lost in turn."""
    with Proxy(database.port) as proxy:
        address = Address.parse(database.behind(proxy.port))
        Database.create(address, "claims", ["score", "macs"], {})
        worker = Database.open(address, "claims", Presence(tmp_path))
        assert worker.claims is not None
        for number in range(15):
            proxy.lose_answer(number + 1)
            claim = worker.claims.next(100).claim
            assert claim is not None
            assert claim.number == number
            done = optuna.trial.create_trial(state=TrialState.COMPLETE, values=[0.5, 1.0])
            worker.store(claim, done, keep_candidate=False)
        assert len(worker.trials()) == 15
        worker.close()


@pytest.mark.slow
def test_one_worker_whose_answers_are_lost(harness: Harness, tmp_path: Path, database: Postgres) -> None:
    """What it asked for was done, and it does not know: it comes to the same as one that was left alone.

    The answer to each message is lost that goes to the server from one evaluation to the next.
    """
    planned = 50
    alone = Crew(harness, tmp_path / "alone", planned, "tpe")
    alone.hire()
    alone.finish()
    with Proxy(database.port) as proxy:
        team = Crew(harness, tmp_path / "cut-off", planned, "tpe", database, database.behind(proxy.port))
        team.hire()
        for number in range(1, planned - 5):
            team.until_begun(1)
            proxy.lose_answer(number)
            team.record("answer lost")
        assert team.finish() == 0
    told = [[(trial.number, trial.candidate, trial.score) for trial in each.trials] for each in (alone, team)]
    assert told[0] == told[1]
