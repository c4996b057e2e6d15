"""What the workers on one study do that tests kill, stop and cut off: a search whose evaluations cost next to nothing.

Each writes down what it begins and ends, and what it drops, so that a test can tell who evaluated what, and why twice.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from autoprune.agents import make_agent
from autoprune.agents.base import Trial
from autoprune.config import SearchConfig
from autoprune.controller import Controller, Seat
from autoprune.progress import NO_PROGRESS, Task
from autoprune.search_spaces.budget import Budget
from autoprune.search_spaces.types import Candidate
from autoprune.storage import address, presence
from autoprune.study import Study
from tests.fakes import FakeSpace, chain_space

RUN = "run"
BUDGET = ("macs=0.5x",)
SWEEP = (1.0, 0.8)

BEAT_S, LEASE_S = 0.2, 2.0
"""Of the workers here: short, so that a stopped one loses its trial soon."""


def space() -> FakeSpace:
    return chain_space([16 + 4 * i for i in range(8)])


def score(candidate: Candidate) -> float:
    return sum((i + 1) * level for i, level in enumerate(candidate)) / 1000


def make(folder: Path, trials: int, agent: str, storage: str | None = None) -> None:
    """Make a study for workers to join."""
    config = SearchConfig(
        budget=BUDGET,
        trials=trials,
        agent=agent,
        sweep=SWEEP,
        storage=storage,
        study=folder.name if storage else None,
        agent_options={},
    )
    with Study.create(folder / RUN, config) as study:
        study.share()


def work(folder: str, seconds: float, lease: float, url: str | None = None, seen: bool = True) -> None:
    """Be a worker.

    Args:
        seconds: that an evaluation takes; while there is the file ``gate``, it takes longer.
        lease: see `presence.LEASE_S`.
        url: of the server, with password.
        seen: whether this worker sees the run folder; else it gets what it needs from the server.
    """
    presence.BEAT_S, presence.LEASE_S = BEAT_S, lease
    if url is not None:
        os.environ[address.VARIABLE] = url
    path = Path(folder)
    notes = Notes(path)

    def evaluate(candidate: Candidate) -> float:
        notes.write("begins", candidate)
        time.sleep(seconds)
        while (path / "gate").exists():
            time.sleep(0.01)
        notes.write("ends", candidate)
        return score(candidate)

    chain, budget = space(), Budget.parse(BUDGET)
    with Study.join(path / RUN) if seen else Study.join_stored(url or "", path.name) as study:
        agents = [make_agent(study.config.agent, chain, budget.scaled(share), seed=0) for share in SWEEP]
        seats = [Seat(agent, share) for agent, share in zip(agents, SWEEP, strict=True)]
        Controller(study=study, space=chain, seats=seats, budget=budget, evaluate=evaluate, progress=notes).run()


@dataclass(frozen=True)
class Note:
    """A line: what a process did, `what` being one of begins, ends, dropped, killed."""

    pid: int
    what: str
    candidate: str = ""


class Notes:
    """The notebook of all workers on a study, one file that each appends to; and their progress, for what they drop."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "notes"

    def write(self, what: str, candidate: Candidate = (), pid: int | None = None) -> None:
        with self._path.open("ab", buffering=0) as file:
            file.write(f"{pid or os.getpid()} {what} {'-'.join(map(str, candidate))}\n".encode())

    def read(self) -> list[Note]:
        if not self._path.exists():
            return []
        lines = [line.split(" ") for line in self._path.read_text().splitlines()]
        return [Note(int(pid), what, candidate) for pid, what, candidate in lines]

    @contextmanager
    def task(self, description: str, total: float, unit: str = "", *, done: float = 0) -> Iterator[Task]:
        with NO_PROGRESS.task(description, total, unit, done=done) as task:
            yield task

    def say(self, text: str) -> None:
        if text.startswith("Dropped"):
            self.write("dropped")


def check(trials: list[Trial], planned: int, notes: list[Note]) -> int:
    """Every number once, with the score of its candidate, and nothing evaluated twice without need.

    Returns:
        How many evaluations were in vain: of workers that were killed, or lost their claim.

    Raises:
        AssertionError: one of these is not so.
    """
    assert sorted(trial.number for trial in trials) == list(range(planned))
    assert all(trial.score == score(trial.candidate) for trial in trials)
    useful: Counter[str] = Counter()
    in_vain = 0
    for at, note in enumerate(notes):
        if note.what == "begins":
            later = [other.what for other in notes[at + 1 :] if other.pid == note.pid]
            after = next((what for what in later if what != "ends"), None)
            if after in ("killed", "dropped"):
                in_vain += 1  # or it was killed just after it had stored that
            else:
                useful[note.candidate] += 1
    assert set(useful.values()) == {1}, [name for name, number in useful.items() if number > 1]
    evaluated = {note.candidate for note in notes if note.what == "ends"}
    assert {"-".join(map(str, trial.candidate)) for trial in trials} <= evaluated
    return in_vain
