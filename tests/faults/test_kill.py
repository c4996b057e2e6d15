"""A search that is killed again and again and resumed ends as one that was never interrupted.

Two kinds of kill, both SIGKILL: at a random time, and just before a random one of the operations that make something
durable (SQL statements, fsync, rename). The killed processes are forks of a server that has imported everything; the
slow test kills the real command.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from safetensors.torch import load_file
from sqlalchemy.engine import Engine

import autoprune as ap
from autoprune.finished import Finished
from autoprune.study import Study
from tests.autoprune.runs import DIGITS, NET, QUICK, SETTINGS, loaders, tiny_net

TRIALS = 8


def go_on(run: Path) -> None:
    """Start the search, or go on with it."""
    if run.exists():
        ap.resume(run, model=tiny_net(), **loaders())
    else:
        settings = {**SETTINGS, "budget": ["macs=0.5x", "params=0.6x"], "latency_repeats": 1}
        tuning = ap.FineTune(epochs=2, lr=0.1)
        ap.search(tiny_net(), **loaders(), **settings, trials=TRIALS, sweep=(1.0, 0.7), run=run, finetune=tuning)


def outcome(run: Path) -> tuple[Any, ...]:
    """Everything that must not depend on interruptions: not seconds, not measured latencies."""
    trials = Study.read(run).trials
    finished = Finished.read(run)
    assert finished is not None
    points = [
        (p.trial, p.candidate, p.costs, p.score, p.finetuned, p.test_before, p.test_after) for p in finished.points
    ]
    # The bytes of the files differ: safetensors writes its header in an order that changes from process to process.
    tensors = [load_file(run / "front" / str(k) / "model.safetensors") for k in range(len(points))]
    weights = [{name: tensor.tolist() for name, tensor in found.items()} for found in tensors]
    return [(t.number, t.candidate, t.state, t.score, t.costs, t.share, t.message) for t in trials], points, weights


def die_before(moment: int) -> None:
    """Kill this process before the `moment`-th operation that makes something durable."""
    count = 0

    def tick(*args: Any) -> None:
        nonlocal count
        count += 1
        if count == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            tick()
            return function(*args, **kwargs)

        return call

    sqlalchemy.event.listen(Engine, "before_cursor_execute", tick)
    sqlalchemy.event.listen(Engine, "commit", tick)
    os.fsync = counted(os.fsync)
    Path.replace = counted(Path.replace)  # type: ignore[method-assign]
    Path.rename = counted(Path.rename)  # type: ignore[method-assign]


def search_until(moment: int, run: Path) -> None:
    """What a killed process runs; `moment` 0 is never reached."""
    die_before(moment)
    go_on(run)


@dataclass(frozen=True)
class Unbroken:
    """The outcome of an uninterrupted search, and how long it took."""

    outcome: tuple[Any, ...]
    seconds: float


@pytest.fixture(scope="module")
def server() -> ForkServerContext:
    """Forks processes that have everything imported. Not of this process: its autograd may have run already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["autoprune.api", "tests.faults.test_kill"])
    return context


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, server: ForkServerContext) -> Unbroken:
    run = tmp_path_factory.mktemp("unbroken") / "r"
    for path in (run.with_name("first"), run):  # the first one also waits until everything is imported
        start = time.monotonic()
        process = server.Process(target=search_until, args=(0, path))
        process.start()
        process.join()
        assert process.exitcode == 0
    return Unbroken(outcome(run), time.monotonic() - start)


def killed_until_done(
    server: ForkServerContext, run: Path, kills: int, moment: Callable[[], int], wait: Callable[[], float | None]
) -> int:
    """Start the search, kill it, start it again; after `kills` kills it may finish.

    Args:
        moment: the durable operation before which the process kills itself, 0 for none.
        wait: seconds after which it is killed from outside, None for never.

    Returns:
        How often it was killed.
    """
    for killed in range(kills + 1):
        last = killed == kills
        process = server.Process(target=search_until, args=(0 if last else moment(), run))
        process.start()
        process.join(None if last else wait())
        process.kill()
        process.join()
        if process.exitcode == 0:
            return killed
        assert process.exitcode == -signal.SIGKILL, "the search failed instead of being killed"
        if run.exists():  # whatever a kill leaves can be looked at, and holds whole trials only
            trials = Study.read(run).trials
            assert [trial.number for trial in trials] == list(range(len(trials)))
            assert {trial.state for trial in trials} <= {"complete", "cut"}
    raise AssertionError("it was not killed, and did not end")


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
def test_killed_before_durable_operations(
    tmp_path: Path, server: ForkServerContext, unbroken: Unbroken, seed: int
) -> None:
    rng, run, kills = random.Random(seed), tmp_path / "r", 12 if seed == 0 else 60
    assert killed_until_done(server, run, kills, lambda: rng.randint(1, 120), lambda: None) >= 5
    assert outcome(run) == unbroken.outcome
    assert not [path for path in run.rglob(".*.tmp") if path.parent in (run, run / "front")]


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_at_random_times(tmp_path: Path, server: ForkServerContext, unbroken: Unbroken, seed: int) -> None:
    rng, run, kills = random.Random(seed), tmp_path / "r", 6 if seed == 0 else 40
    longest = 0.5 * unbroken.seconds
    # The first kill is early enough on any machine: the unbroken run may have been timed in a slow minute.
    waits = itertools.chain([0.05], (rng.uniform(0, longest) for _ in itertools.count()))
    assert killed_until_done(server, run, kills, lambda: 0, lambda: next(waits)) >= 1
    assert outcome(run) == unbroken.outcome


@pytest.mark.slow
def test_command_killed_at_random_times(tmp_path: Path) -> None:
    settings = [*NET, *DIGITS, *QUICK, "--budget", "macs=0.5x", "--trials", "40", "--finetune-epochs", "2"]
    command = [sys.executable, "-m", "autoprune"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    subprocess.run([*command, "search", *settings, "--run", whole], check=True, capture_output=True)
    rng, killed = random.Random(0), 0
    for _ in range(8):
        what: list[str | Path] = ["resume", broken] if broken.exists() else ["search", *settings, "--run", broken]
        process = subprocess.Popen([*command, *what], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            process.wait(timeout=rng.uniform(2, 8))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            killed += 1
    assert killed >= 3
    subprocess.run([*command, "resume", broken], check=True, capture_output=True)
    assert outcome(broken) == outcome(whole)
