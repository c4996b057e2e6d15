"""What closed-form recovery is worth without a gradient step: Fashion-MNIST, three kinds of network.

    OMP_NUM_THREADS=1 python benchmarks/proxy_quality.py
    OMP_NUM_THREADS=1 python benchmarks/proxy_quality.py --net mobilenet --seeds 1

Trains each dense network once (kept in --work), cuts it to one ratio for all groups at three budgets, prints test
accuracy for: magnitude ranking as sliced; recalibrated (EagleEye); compensated; repaired; and repaired with units
ranked by what cannot be rebuilt. Then non-uniform ratios: the best of --steps random changes to the uniform ones, by
score on the search split after a repair on 1,000 samples. Last, CPU seconds a candidate on each rung.

Everything else is that of the library: 2,000 calibration samples from the training split, the test split only for what
is printed.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from autoprune.data import Data, load_data
from autoprune.evaluate import Evaluator
from autoprune.models import ModelSource
from autoprune.recovery.ladder import RUNGS
from autoprune.scores import accuracy
from autoprune.search_spaces import Budget, Candidate, SearchSpace, trace
from autoprune.train import train_dense

BUDGETS = (0.56, 0.25, 0.10)
COLUMNS = (("l2", "slice"), ("l2", "recalibrate"), ("l2", "compensate"), ("l2", "repair"), ("rebuild", "repair"))
RECIPES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "resnet": ("autoprune.nets:fashion_resnet", {}, {"epochs": 3, "lr": 0.1}),
    "resnet_decayed": ("autoprune.nets:fashion_resnet", {}, {"epochs": 3, "lr": 0.2, "weight_decay": 2e-3}),
    "mobilenet": ("autoprune.nets:fashion_mobilenet", {}, {"epochs": 4, "lr": 0.1}),
    "vit": (
        "timm:vit_tiny_patch16_224",
        {
            "img_size": 28,
            "patch_size": 4,
            "in_chans": 1,
            "embed_dim": 64,
            "depth": 4,
            "num_heads": 4,
            "num_classes": 10,
        },
        {"epochs": 8, "optimizer": "adamw", "lr": 0.002, "weight_decay": 0.02},
    ),
}
"""Name -> model, its arguments, how it is trained."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", choices=RECIPES, action="append", help="default: all")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=40, help="candidates of the non-uniform search; 0: none")
    parser.add_argument("--work", type=Path, default=Path("runs/proxy_quality"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = load_data("fashion-mnist")
    for net in options.net or RECIPES:
        found: dict[tuple[float, str], list[float]] = defaultdict(list)
        seconds: dict[str, list[float]] = defaultdict(list)
        dense = []
        for seed in range(options.seeds):
            space = traced(net, seed, data, options.work)
            dense.append(100 * accuracy(space.model, data.test, split="test"))
            one_net(space, data, found, seconds, options.steps, seed)
        print_table(net, dense, found, seconds, options)


def traced(net: str, seed: int, data: Data, work: Path) -> SearchSpace:
    spec, arguments, settings = RECIPES[net]
    if spec.startswith("autoprune"):
        arguments = {**arguments, "seed": seed}
    weights = work / f"{net}-{seed}.safetensors"
    if not weights.exists():
        torch.manual_seed(seed)
        train_dense(ModelSource(spec, arguments), "fashion-mnist", weights, settings=settings, seed=seed)
    model = ModelSource(spec, arguments, str(weights)).build().eval()
    space = trace(model, data.example(1), align=1)
    space.collect("rebuild", data.samples(2000))
    return space


def one_net(
    space: SearchSpace,
    data: Data,
    found: dict[tuple[float, str], list[float]],
    seconds: dict[str, list[float]],
    steps: int,
    seed: int,
) -> None:
    for share in BUDGETS:
        candidate = uniform(space, share)
        found[share, "MACs"].append(space.costs(candidate).macs / space.costs(space.dense).macs)
        for importance, rung in COLUMNS:
            scorer = Evaluator(space, data, importance=importance, recovery=rung)
            scorer.subnet(space.dense)  # what is collected once is not part of a candidate's time
            start = time.process_time()
            subnet = scorer.subnet(candidate)
            seconds[rung].append(time.process_time() - start)
            found[share, f"{importance}, {rung}"].append(100 * accuracy(subnet, data.test, split="test"))
        if steps and share < 0.5:
            best = searched(space, data, share, steps, seed)
            scorer = Evaluator(space, data, importance="rebuild", recovery="repair")
            found[share, "searched"].append(100 * accuracy(scorer.subnet(best), data.test, split="test"))


def uniform(space: SearchSpace, share: float) -> Candidate:
    """One keep ratio for all groups, its MACs nearest to `share`."""
    candidates = [space.candidate(float(ratio)) for ratio in np.linspace(0.05, 1, 200)]
    macs = space.cost("macs", candidates) / space.costs(space.dense).macs
    return candidates[int(np.argmin(np.abs(macs - share)))]


def searched(space: SearchSpace, data: Data, share: float, steps: int, seed: int) -> Candidate:
    """The best of `steps` candidates: uniform ratios first, then random changes to the best so far."""
    scorer = Evaluator(space, data, importance="rebuild", recovery="repair", calibration_samples=1000)
    rng = np.random.default_rng(seed)
    budget = Budget.parse([f"macs={share}x"])
    wishes = np.array(list(space.keep_ratios(uniform(space, share)).values()))
    best, highest, seen = space.smallest, -1.0, set()
    for step in range(steps):
        change = rng.normal(0, 0.25, len(wishes)) * (rng.random(len(wishes)) < 0.4) * (step > 0)
        candidate = space.project(np.clip(wishes * np.exp(change), 0.02, 1), budget)
        if candidate in seen:
            continue
        seen.add(candidate)
        score = scorer.evaluate(candidate)
        if score > highest:
            best, highest = candidate, score
            wishes = np.array(list(space.keep_ratios(candidate).values()))
    return best


def print_table(
    net: str,
    dense: list[float],
    found: dict[tuple[float, str], list[float]],
    seconds: dict[str, list[float]],
    options: argparse.Namespace,
) -> None:
    names = [f"{importance}, {rung}" for importance, rung in COLUMNS] + ["searched"] * bool(options.steps)
    print(f"\n{net}, {options.seeds} seeds, dense {spread(dense)} % on the test split\n")
    print(f"| MACs | {' | '.join(names)} |\n|{(len(names) + 1) * '---|'}")
    for share in BUDGETS:
        cells = [spread(found[share, name]) if (share, name) in found else "" for name in names]
        print(f"| {statistics.mean(found[share, 'MACs']):.3f}x | {' | '.join(cells)} |")
    print("\nCPU seconds a candidate: " + ", ".join(f"{rung} {statistics.median(seconds[rung]):.2f}" for rung in RUNGS))


def spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values) if len(values) > 1 else 0:.1f}"


if __name__ == "__main__":
    main()
