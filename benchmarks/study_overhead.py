"""What a trial costs beside its evaluation: proposing it, and storing it durably.

    python benchmarks/study_overhead.py

Prints milliseconds of processor time per trial over 100 trials, for the agents `random` and `tpe` on made-up chains of
20 and 60 groups.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from autoprune.agents import make_agent
from autoprune.agents.base import Trial
from autoprune.config import SearchConfig
from autoprune.search_spaces.budget import Budget
from autoprune.study import Study
from tests.fakes import FakeSpace, chain_space

TRIALS = 100


def main() -> None:
    print(f"{'groups':>6} {'agent':>8} {'propose':>8} {'store':>8}   ms per trial, mean of {TRIALS}")
    for num_groups in (20, 60):
        space = chain_space([32 + 4 * (i % 16) for i in range(num_groups)])
        for name in ("random", "tpe"):
            with tempfile.TemporaryDirectory() as folder:
                proposing, storing = run(name, space, Path(folder) / "run")
            print(f"{num_groups:>6} {name:>8} {proposing:>8.1f} {storing:>8.1f}")


def run(name: str, space: FakeSpace, path: Path) -> tuple[float, float]:
    """Milliseconds per trial for asking and telling, and for storing."""
    budget = Budget.parse("macs=0.5x")
    agent = make_agent(name, space, budget, seed=0)
    limits = budget.resolve(space.cost_dict(space.dense))
    proposing = storing = 0.0
    with Study.create(path, SearchConfig(budget=("macs=0.5x",))) as study:
        for number in range(TRIALS):
            claim = study.next().claim
            assert claim is not None
            start = time.process_time()
            candidate = agent.ask(number)
            asked = time.process_time()
            costs = space.cost_dict(candidate)
            trial = Trial(number=number, candidate=candidate, state="complete", score=number % 17 / 17, costs=costs)
            before = time.process_time()
            study.store(claim, trial, space.keep_ratios(candidate), limits)
            stored = time.process_time()
            agent.tell(trial)
            proposing += asked - start + time.process_time() - stored
            storing += stored - before
    return 1e3 * proposing / TRIALS, 1e3 * storing / TRIALS


if __name__ == "__main__":
    main()
