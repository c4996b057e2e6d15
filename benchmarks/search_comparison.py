"""Agents against each other at equal evaluations: Fashion-MNIST, a residual net of 78k parameters, one MACs budget.

    python benchmarks/search_comparison.py --budget macs=0.25x --trials 40 --seeds 3 --epochs 2

Trains the dense network once (3 epochs, kept in --work), then runs the real `autoprune.search` for every agent and
seed and fine-tunes the best subnet of each. Prints, per agent, mean and spread over seeds: the best search-split score
that the search found, and test accuracy of that subnet before and after fine-tuning. Runs are kept in --work: a killed
benchmark goes on where it was.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import autoprune as ap
from autoprune.models import ModelSource
from autoprune.progress import RichProgress
from autoprune.train import train_dense

SPEC = "autoprune.nets:fashion_resnet"
DATA = "fashion-mnist"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", action="append")
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--agents", nargs="+", default=["uniform", "random", "tpe"])
    parser.add_argument("--work", type=Path, default=Path("runs/search_comparison"))
    options = parser.parse_args()
    budget = options.budget or ["macs=0.25x"]
    weights = options.work / "dense.safetensors"
    if not weights.exists():
        print(train_dense(ModelSource(SPEC), DATA, weights, settings={"epochs": 3, "lr": 0.1}, progress=RichProgress()))
    source = ModelSource(SPEC, weights=str(weights))
    rows = {}
    for agent in options.agents:
        rows[agent] = [_run(agent, seed, source, budget, options) for seed in range(options.seeds)]
    print(f"\n{SPEC}, {', '.join(budget)}, {options.trials} trials, {options.seeds} seeds, {options.epochs} epochs\n")
    print("| agent | distinct subnets | best search score | test before | test after | seconds a search |")
    print("|---|---|---|---|---|---|")
    for agent, results in rows.items():
        columns = list(zip(*results, strict=True))
        print(
            f"| {agent} | {statistics.mean(columns[0]):.0f} | "
            + " | ".join(_spread(column) for column in columns[1:4])
            + f" | {statistics.mean(columns[4]):.0f} |"
        )


def _run(
    agent: str, seed: int, source: ModelSource, budget: list[str], options: argparse.Namespace
) -> tuple[int, float, float, float, float]:
    """Distinct subnets, best score, test accuracy before and after, seconds spent in evaluations."""
    run = options.work / "-".join([agent, str(seed), str(options.trials), *budget]).replace("=", "")
    start = time.perf_counter()
    settings = ap.FineTune(epochs=options.epochs)
    if (run / "config.toml").exists():
        result = ap.resume(run, progress=RichProgress())
    else:
        result = ap.search(
            source, data=DATA, budget=budget, agent=agent, trials=options.trials, seed=seed, run=run, points=1,
            finetune=settings, progress=RichProgress(),
        )  # fmt: skip
    best = result.front[0]
    assert best.test_before is not None
    assert best.test_after is not None
    distinct = len({trial.candidate for trial in result.trials})
    print(f"{agent} seed {seed}: {best.score:.4f} {best.test_before:.4f} {best.test_after:.4f}"
          f" ({time.perf_counter() - start:.0f} s)")  # fmt: skip
    return distinct, best.score, best.test_before, best.test_after, sum(trial.seconds for trial in result.trials)


def _spread(values: tuple[float, ...]) -> str:
    return f"{100 * statistics.mean(values):.2f} ± {100 * statistics.stdev(values) if len(values) > 1 else 0:.2f}"


if __name__ == "__main__":
    main()
