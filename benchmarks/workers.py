"""What storing trials costs as a study grows, and how many evaluations a minute several workers make.

    python benchmarks/workers.py

Prints wall and processor milliseconds for storing one trial (20 groups) when 100, 1,000 and 10,000 are stored already,
the seconds that opening such a study takes, and the bytes of its file per trial.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from autoprune.agents.base import Trial
from autoprune.config import SearchConfig
from autoprune.study import Study
from tests.fakes import FakeSpace, chain_space

GROUPS = 20
MEASURED = 50
"""Trials that a figure is the mean of."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stored", type=int, nargs="*", default=[100, 1000, 10_000])
    options = parser.parse_args()
    overhead(options.stored)


def overhead(stored: list[int]) -> None:
    """Print what one more trial costs at each length of the study."""
    space = chain_space([32 + 4 * (i % 16) for i in range(GROUPS)])
    print(f"{'stored':>7} {'wall ms':>8} {'cpu ms':>7} {'open s':>7} {'bytes a trial':>13}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run"
        with Study.create(path, SearchConfig(budget=("macs=0.5x",))) as study:
            for count in sorted(stored):
                _append(study, space, count - len(study.trials))
                before = _size(path)
                wall, cpu = time.perf_counter(), time.process_time()
                _append(study, space, MEASURED)
                wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
                start = time.perf_counter()
                assert len(Study.read(path).trials) == count + MEASURED
                opened = time.perf_counter() - start
                print(
                    f"{count:>7,} {1e3 * wall / MEASURED:>8.1f} {1e3 * cpu / MEASURED:>7.1f} {opened:>7.2f} "
                    f"{before / count:>13,.0f}",
                    flush=True,
                )


def _append(study: Study, space: FakeSpace, num: int) -> None:
    """Store so many more trials; the candidates differ, the score is made up."""
    for number in range(len(study.trials), len(study.trials) + num):
        candidate = tuple((number * 7919 + 31 * i) % len(g.levels) for i, g in enumerate(space.groups))
        costs = space.cost_dict(candidate)
        trial = Trial(number=number, candidate=candidate, state="complete", score=number % 17 / 17, costs=costs)
        study.append(trial, space.keep_ratios(candidate))


def _size(run: Path) -> int:
    """Bytes of the database in a run folder, with what SQLite keeps beside it."""
    return sum(file.stat().st_size for file in run.glob("study.db*"))


if __name__ == "__main__":
    main()
