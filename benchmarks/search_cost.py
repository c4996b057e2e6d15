"""What a whole search costs, in epochs of training, and what random search finds with many times that.

    OMP_NUM_THREADS=1 python benchmarks/search_cost.py

Fashion-MNIST, residual nets of `autoprune.nets` (3 epochs, kept in --work). For every net: the processor seconds of one
epoch of training it as `autoprune train` does; of a search within --budget, from ranking the units and measuring the
table to the last of --trials trials (with the settings in `SEARCH`, which spend little on each); and a random search
that evaluates candidates in full (6,000 samples, 2,000 calibration samples, no bounds) for --times those seconds. Both
winners are then scored alike, on the whole search split and on the test split: compensated, and repaired.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from autoprune.agents import make_agent
from autoprune.config import SearchConfig
from autoprune.data import Data, load_data
from autoprune.evaluate import Evaluator
from autoprune.importance import collect
from autoprune.models import ModelSource
from autoprune.preparing import check, make_ready
from autoprune.progress import NO_PROGRESS
from autoprune.scores import accuracy
from autoprune.search_spaces import Budget, Candidate, SearchSpace, trace
from autoprune.searching import run_trials
from autoprune.study import Study
from autoprune.train import train_dense
from autoprune.workbench import Objects, make_workbench

SPEC = "autoprune.nets:fashion_resnet"
DATA = "fashion-mnist"
SEARCH: dict[str, Any] = {
    "importance": "rebuild",
    "search_size": 2000,
    "batch_size": 500,
    "calibration_samples": 500,
    "bounds": "statistical",
    "tolerance": float("inf"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", default="macs=0.25x")
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--nets", type=int, default=3)
    parser.add_argument("--times", type=float, default=10.0)
    parser.add_argument("--bounds", default=SEARCH["bounds"])
    parser.add_argument("--agent", default="auto")
    parser.add_argument("--work", type=Path, default=Path("runs/proxy_quality"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    for net in range(options.nets):
        source = ModelSource(SPEC, {"seed": net}, str(options.work / f"resnet-{net}.safetensors"))
        epoch = one_epoch(net, Path(str(source.weights)))
        found, seconds, note = searched(source, options, seed=net)
        data = load_data(DATA)
        space = trace(source.build().eval(), data.example(1))
        collect(space, "rebuild", data, num_samples=1024)
        if options.times:
            other, count = random_search(space, data, options.budget, options.times * seconds, seed=net)
        print(f"net {net}: an epoch {epoch:.1f} s; search {seconds:.1f} s = {seconds / epoch:.2f} epochs; {note}")
        print(f"  {options.agent}: {judged(space, data, found)}")
        if options.times:
            print(f"  random, {count} full evaluations in {options.times:g} times that: {judged(space, data, other)}")


def one_epoch(net: int, weights: Path) -> float:
    """Processor seconds of an epoch more, of two trainings from scratch that differ by one; trains what is missing."""
    if not weights.exists():
        train_dense(ModelSource(SPEC, {"seed": net}), DATA, weights, settings={"epochs": 3, "lr": 0.1}, seed=net)
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        for epochs in (1, 2):
            start = time.process_time()
            settings = {"epochs": epochs, "lr": 0.1}
            train_dense(
                ModelSource(SPEC, {"seed": net}), DATA, Path(folder) / f"{epochs}.safetensors", settings=settings
            )
            seconds.append(time.process_time() - start)
    return seconds[1] - seconds[0]


def searched(source: ModelSource, options: argparse.Namespace, seed: int) -> tuple[Candidate, float, str]:
    """The winner of a search, the processor seconds that it took, and what it did."""
    config = SearchConfig(
        budget=(options.budget,),
        model=source.spec,
        model_args=source.kwargs,
        weights=source.weights,
        data=DATA,
        agent=options.agent,
        trials=options.trials,
        seed=seed,
        **{**SEARCH, "bounds": options.bounds},
    )
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        bench = make_workbench(config, Objects())
        start = time.process_time()
        check(bench, NO_PROGRESS)
        with Study.create(run, replace(bench.config, prepared=False)) as study:
            order = make_ready(study, bench, NO_PROGRESS)
            trials = run_trials(study, bench, order, NO_PROGRESS)
        seconds = time.process_time() - start
    best = max((t for t in trials if t.state == "complete"), key=lambda t: t.score or 0.0)
    cut = sum(trial.state == "cut" for trial in trials)
    share = sum(trial.evaluated for trial in trials) / len(trials)
    return (
        best.candidate,
        seconds,
        f"{cut} of {len(trials)} trials cut, {100 * share:.0f} % of the samples, best of trial {best.number}",
    )


def random_search(space: SearchSpace, data: Data, budget: str, seconds: float, seed: int) -> tuple[Candidate, int]:
    """The best of as many random candidates as can be evaluated in full within `seconds`, and their number."""
    agent = make_agent("random", space, Budget.parse(budget), seed=seed)
    judge = Evaluator(space, data, importance="rebuild")
    best, highest, count, start = space.smallest, -1.0, 0, time.process_time()
    while time.process_time() - start < seconds:
        candidate = agent.ask(count)
        score = judge.evaluate(candidate)
        count += 1
        if score > highest:
            best, highest = candidate, score
    return best, count


def judged(space: SearchSpace, data: Data, candidate: Candidate) -> str:
    """Accuracies of a winner on the whole search split and on the test split."""
    parts = []
    for rung in ("compensate", "repair"):
        judge = Evaluator(space, data, importance="rebuild", recovery=rung)
        subnet = judge.subnet(candidate)
        parts.append(
            f"{rung} {100 * judge.score(subnet):.2f} search, {100 * accuracy(subnet, data.test, split='test'):.2f} test"
        )
    return "; ".join(parts)


if __name__ == "__main__":
    main()
