"""Does an agent that learns lose by being told bounds? With and without them, digits, several seeds.

    OMP_NUM_THREADS=1 python benchmarks/bounds_learning.py --agent tpe

Trains the dense network (15 epochs), then runs the real `autoprune.search` with every setting for every seed and score;
prints the best score of each seed, mean and deviation, and what was cut with the last seed. Four minutes on one core.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

import autoprune as ap
from autoprune.models import ModelSource
from autoprune.prunings import describe_prunings
from autoprune.train import train_dense

SPEC = "autoprune.nets:digits_resnet"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--trials", type=int, default=80)
    parser.add_argument("--budget", default="macs=0.25x")
    parser.add_argument("--agent", default="tpe")
    parser.add_argument("--bounds", nargs="*", default=["exact", "statistical", "off"])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "dense.safetensors"
        print(train_dense(ModelSource(SPEC), "digits", weights, settings={"epochs": 15, "lr": 0.1}, search_size=0.3))
        print("\n| score | bounds | best of each seed | mean ± deviation |\n|---|---|---|---|")
        for score in ("accuracy", "kl"):
            for bounds in options.bounds:
                best = []
                for seed in range(options.seeds):
                    result = ap.search(
                        ModelSource(SPEC, weights=str(weights)), data="digits", search_size=0.3, budget=options.budget,
                        agent=options.agent, trials=options.trials, seed=seed, score=score, recovery="compensate",
                        calibration_samples=300, latency_repeats=1, points=1, bounds=bounds,
                        run=Path(folder) / f"{score}-{bounds}-{seed}",
                    )  # fmt: skip
                    best.append(result.front[0].score)
                cuts = "; ".join(describe_prunings(result.trials))
                print(
                    f"| {score} | {bounds} | {', '.join(f'{value:.3f}' for value in best)} | "
                    f"{statistics.mean(best):.3f} ± {statistics.stdev(best):.3f} |"
                    + (f" last: {cuts}" if cuts else ""),
                    flush=True,
                )


if __name__ == "__main__":
    main()
