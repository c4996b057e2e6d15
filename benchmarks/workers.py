"""What storing trials costs as a study grows, and how many evaluations a minute several workers make.

    python benchmarks/workers.py

First, wall and processor milliseconds for one trial of 20 groups (claimed, begun, stored) when 100, 1,000
and 10,000 are stored already, the seconds that opening such a study takes, and the bytes of its file per trial. Then
evaluations a minute of 1, 2 and 4 workers, processes of their own, where an evaluation sleeps for 0.5 s: on SQLite, and
on a PostgreSQL server that is started for it on this machine, if there is one.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import time
from multiprocessing.synchronize import Barrier
from pathlib import Path

from autoprune.agents import make_agent
from autoprune.agents.base import Trial
from autoprune.config import SearchConfig
from autoprune.controller import Controller, Seat
from autoprune.search_spaces.budget import Budget
from autoprune.storage.address import VARIABLE
from autoprune.study import Study
from tests.fakes import FakeSpace, chain_space
from tests.faults.postgres import NoServer, postgres

GROUPS = 20
BUDGET = "macs=0.5x"
MEASURED = 50
"""Trials that a figure is the mean of."""

EVALUATION_S = 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stored", type=int, nargs="*", default=[100, 1000, 10_000])
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2, 4])
    parser.add_argument("--trials", type=int, default=60, help="evaluations of each worker")
    options = parser.parse_args()
    if options.stored:
        overhead(options.stored)
    if options.workers:
        print(f"\n{'storage':>10} {'workers':>7} {'evaluations a minute':>20} {'of the most possible':>20}", flush=True)
        speed("SQLite", None, options.workers, options.trials)
        try:
            with postgres() as server:
                os.environ[VARIABLE] = server.url
                speed("PostgreSQL", server.open_url, options.workers, options.trials)
        except NoServer as why:
            print(f"no PostgreSQL: {why}")


def space() -> FakeSpace:
    return chain_space([32 + 4 * (i % 16) for i in range(GROUPS)])


def overhead(stored: list[int]) -> None:
    """Print what one more trial costs at each length of the study."""
    print(f"{'stored':>7} {'wall ms':>8} {'cpu ms':>7} {'open s':>7} {'bytes a trial':>13}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run"
        with Study.create(path, SearchConfig(budget=(BUDGET,), trials=10**6)) as study:
            for count in sorted(stored):
                _store(study, count - len(study.trials))
                before = sum(file.stat().st_size for file in path.glob("study.db*"))
                wall, cpu = time.perf_counter(), time.process_time()
                _store(study, MEASURED)
                wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
                start = time.perf_counter()
                Study.read(path)
                opened = time.perf_counter() - start
                print(
                    f"{count:>7,} {1e3 * wall / MEASURED:>8.1f} {1e3 * cpu / MEASURED:>7.1f} {opened:>7.2f} "
                    f"{before / count:>13,.0f}",
                    flush=True,
                )


def _store(study: Study, num: int) -> None:
    """Store so many more trials; the candidates differ, the score is made up."""
    chain = space()
    for number in range(len(study.trials), len(study.trials) + num):
        claim = study.next().claim
        assert claim is not None
        candidate = tuple((number * 7919 + 31 * i) % len(group.levels) for i, group in enumerate(chain.groups))
        costs = chain.cost_dict(candidate)
        study.begin(claim, candidate)
        trial = Trial(number=claim.number, candidate=candidate, state="complete", score=number % 17 / 17, costs=costs)
        study.store(claim, trial, chain.keep_ratios(candidate))


def speed(name: str, storage: str | None, workers: list[int], trials: int) -> None:
    """Print evaluations a minute for each number of workers."""
    for num in workers:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"run-{num}"
            config = SearchConfig(
                budget=(BUDGET,), trials=trials * num, agent="random", storage=storage, study=path.name
            )
            with Study.create(path, config) as study:
                study.share()
            context = multiprocessing.get_context("spawn")
            ready = context.Barrier(num + 1)
            processes = [context.Process(target=_work, args=(path, ready)) for _ in range(num)]
            for process in processes:
                process.start()
            ready.wait()
            start = time.perf_counter()
            for process in processes:
                process.join()
            minutes = (time.perf_counter() - start) / 60
            assert len(Study.read(path).trials) == trials * num
        rate = trials * num / minutes
        print(f"{name:>10} {num:>7} {rate:>20.0f} {rate / (60 / EVALUATION_S * num):>20.1%}", flush=True)


def _work(path: Path, ready: Barrier) -> None:
    def evaluate(candidate: tuple[int, ...]) -> float:
        time.sleep(EVALUATION_S)
        return sum(candidate) / 1000

    chain, budget = space(), Budget.parse(BUDGET)
    agent = make_agent("random", chain, budget, seed=0)
    with Study.join(path) as study:
        ready.wait()
        Controller(study=study, space=chain, seats=[Seat(agent, 1.0)], budget=budget, evaluate=evaluate).run()


if __name__ == "__main__":
    main()
