"""Importance criteria against each other: Fashion-MNIST, uniform ratios, with and without fine-tuning.

    OMP_NUM_THREADS=1 python benchmarks/importance.py --seeds 3 --samples 1024 --tune 9000

Trains one dense network per seed (3 epochs; kept in --work), ranks its units by every criterion on --samples training
samples, cuts it to half and a quarter of the MACs with one keep ratio everywhere, recovers it (--recovery) with 2,000
training samples, and scores the test split; the smaller one again after one pass over --tune training images with the
dense network as teacher. Prints mean and standard deviation over seeds, and the processor seconds of the ranking.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from autoprune.agents import make_agent
from autoprune.data import Data, TensorBatches, load_data
from autoprune.evaluate import Evaluator, accuracy
from autoprune.finetune import FineTune, finetune
from autoprune.importance import collect
from autoprune.models import ModelSource
from autoprune.progress import RichProgress
from autoprune.recovery.ladder import RUNGS
from autoprune.search_spaces import CRITERIA, Budget, SearchSpace, trace
from autoprune.train import train_dense

SPEC = "autoprune.nets:fashion_resnet"
DATA = "fashion-mnist"
SHARES = (0.5, 0.25)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=1024)
    parser.add_argument("--tune", type=int, default=9000, help="images to fine-tune on; 0 for none")
    parser.add_argument("--importance", nargs="+", default=list(CRITERIA))
    parser.add_argument("--recovery", choices=RUNGS, default="recalibrate")
    parser.add_argument("--work", type=Path, default=Path("runs/importance"))
    options = parser.parse_args()
    data = load_data(DATA)
    part = fewer(data, options.tune)
    rows: dict[str, list[list[float]]] = {name: [] for name in options.importance}
    dense = []
    for seed in range(options.seeds):
        weights = options.work / f"dense-{seed}.safetensors"
        source = ModelSource(SPEC, {"seed": seed}, str(weights))
        if not weights.exists():
            untrained = ModelSource(SPEC, {"seed": seed})
            settings = {"epochs": 3, "lr": 0.1}
            print(train_dense(untrained, DATA, weights, settings=settings, seed=seed, progress=RichProgress()))
        space = trace(source.build(), data.example())
        assert data.test is not None
        dense.append(accuracy(space.model, data.test))
        for name in options.importance:
            rows[name].append(measured(space, data, part, name, options, seed))
            print(f"seed {seed} {name}: {[round(value, 4) for value in rows[name][-1]]}", flush=True)
    print(f"\n{SPEC}, {options.seeds} dense networks ({spread(dense)} % on test), {options.samples} samples")
    print(f"recovery: {options.recovery}\n")
    heads = [f"{share:g}x MACs" for share in SHARES] + ([f"{SHARES[-1]:g}x, tuned"] if part else [])
    print(f"| criterion | {' | '.join(heads)} | seconds |\n|{'---|' * (2 + len(heads))}")
    for name, results in rows.items():
        *columns, seconds = zip(*results, strict=True)
        print(f"| {name} | {' | '.join(map(spread, columns))} | {statistics.mean(seconds):.2f} |")


def fewer(data: Data, num_samples: int) -> Data | None:
    """The same data with the first `num_samples` training images of a permutation."""
    if not num_samples:
        return None
    assert isinstance(data.train, TensorBatches)
    train = copy.copy(data.train)
    chosen = torch.randperm(data.train.num_samples, generator=torch.Generator().manual_seed(0))[:num_samples]
    train.inputs, train.targets = data.train.inputs[chosen], data.train.targets[chosen]
    return replace(data, train=train)


def measured(
    space: SearchSpace, data: Data, part: Data | None, name: str, options: argparse.Namespace, seed: int
) -> list[float]:
    """Test accuracy at every share, at the smallest also fine-tuned on `part`, and processor seconds of ranking."""
    start = time.process_time()
    if name == "random":  # another draw for every network
        generator = np.random.default_rng(seed)
        space.use_scores(name, [generator.random(group.num_units) for group in space.groups])
    else:
        collect(space, name, data, num_samples=options.samples)
    seconds = time.process_time() - start
    assert data.test is not None
    found = []
    for share in SHARES:
        candidate = make_agent("uniform", space, Budget.parse(f"macs={share}x"), seed=0).ask(0)
        model = Evaluator(space, data, importance=name, recovery=options.recovery).subnet(candidate)
        found.append(accuracy(model, data.test))
    if part is not None:
        tuned = finetune(model, part, FineTune(epochs=1), teacher=space.model, seed=seed)
        found.append(accuracy(tuned.model, data.test))
    return [*found, seconds]


def spread(values: Sequence[float]) -> str:
    return f"{100 * statistics.mean(values):.2f} ± {100 * statistics.stdev(values) if len(values) > 1 else 0:.2f}"


if __name__ == "__main__":
    main()
