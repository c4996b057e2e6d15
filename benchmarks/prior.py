"""How good a table of few levels is: the candidate it thinks best, evaluated, and what measuring it took.

    OMP_NUM_THREADS=1 python benchmarks/prior.py

Fashion-MNIST, residual nets of `autoprune.nets`, trained once and kept in --work. Accuracy on the search split after
compensation, units ranked by --importance; nothing but the one candidate per budget is evaluated.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from autoprune.agents import make_agent
from autoprune.data import load_data
from autoprune.evaluate import Evaluator
from autoprune.importance import collect, reads_data
from autoprune.models import ModelSource
from autoprune.prior import as_table
from autoprune.profiling import measure_table
from autoprune.search_spaces import Budget, trace
from autoprune.train import train_dense

SPEC = "autoprune.nets:fashion_resnet"
BUDGETS = ("macs=0.25x", "macs=0.12x")
TABLES: tuple[tuple[int | str, int], ...] = ((2, 256), (3, 256), (3, 512), (4, 512), ("all", 1024))
"""Levels per group and samples."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--importance", default="rebuild")
    parser.add_argument("--work", type=Path, default=Path("runs/proxy_quality"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = load_data("fashion-mnist")
    for seed in range(options.seeds):
        weights = options.work / f"resnet-{seed}.safetensors"
        source = ModelSource(SPEC, {"seed": seed}, str(weights))
        if not weights.exists():
            untrained = ModelSource(SPEC, {"seed": seed})
            print(train_dense(untrained, "fashion-mnist", weights, settings={"epochs": 3, "lr": 0.1}, seed=seed))
        space = trace(source.build().eval(), data.example(1))
        if reads_data(options.importance):
            collect(space, options.importance, data, num_samples=1024)
        judge = Evaluator(space, data, importance=options.importance)
        for levels, samples in TABLES:
            start = time.process_time()
            table = as_table(measure_table(judge, levels=levels, samples=samples))
            seconds = time.process_time() - start
            agents = [make_agent("bnb", space, Budget.parse(each), seed=0, table=table) for each in BUDGETS]
            found = [100 * judge.evaluate(agent.ask(0)) for agent in agents]
            print(f"net {seed}, {levels} levels, {samples} samples, {seconds:.1f} s: {found[0]:.1f}, {found[1]:.1f}")
        uniform = [make_agent("uniform", space, Budget.parse(each), seed=0).ask(0) for each in BUDGETS]
        print(f"net {seed}, uniform: " + ", ".join(f"{100 * judge.evaluate(each):.1f}" for each in uniform))


if __name__ == "__main__":
    main()
