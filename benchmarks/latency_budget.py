"""Are latency budgets kept? python benchmarks/latency_budget.py resnet18 mobilenet_v2 --runtimes eager onnxruntime

For each torchvision network and runtime: learn to predict its latency, draw random budgets between 0.35 and 0.9 of
the dense latency, in milliseconds, and random wishes for each, and keep the budget as a search does: project, measure,
move, measure again. A new process then measures the subnets afresh, and this counts how many are within their budget.

Prints, per network and runtime: subnets within the budget as measured afresh, in milliseconds; the same where the
lower end of the fresh interval counts; the same where the budget is taken as a share of the dense latency, which leaves
out that the machine as a whole was faster or slower in the new process; the share of the budget that is used by that
count (median, and the least); how many of the subnets that the prediction alone proposed are within; the dense latency
and the ratio to it of the new process over those before; measurements for each subnet; and what learning the device
took, in dense evaluations.
One image at a time, one thread; no training: accuracy is no part of this.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision

from autoprune.config import SearchConfig
from autoprune.gauges import make_gauges
from autoprune.keeping import Keeper
from autoprune.progress import NO_PROGRESS
from autoprune.search_spaces import Budget, SearchSpace, trace

SHARES = (0.35, 0.9)
HEADINGS = (
    "network",
    "runtime",
    "dense, ms",
    "within, afresh",
    "within, but for the interval",
    "within, by share of dense",
    "budget used: median, least",
    "within, proposed",
    "dense afresh / before",
    "ratio afresh / before: spread, mean",
    "measurements each",
    "learning, dense evaluations",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", default=["resnet18", "mobilenet_v2"])
    parser.add_argument("--runtimes", nargs="+", default=["eager", "onnxruntime"])
    parser.add_argument("--budgets", type=int, default=20)
    parser.add_argument("--subnets", type=int, default=24)
    parser.add_argument("--pixels", type=int, default=224)
    parser.add_argument("--accuracy", type=float, default=0.02)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--check", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.check is not None:
        measure_afresh(given.check)
        return
    print(f"| {' | '.join(HEADINGS)} |")
    print(f"|{'---|' * len(HEADINGS)}")
    for network in given.networks:
        for runtime in given.runtimes:
            config = SearchConfig(
                budget=("latency=0.9x",),
                runtimes=(runtime,),
                latency_subnets=given.subnets,
                latency_accuracy=given.accuracy,
            )
            row = keep_budgets(network, config, given.budgets, given.pixels, given.seed)
            print(f"| {' | '.join(row)} |", flush=True)


def keep_budgets(network: str, config: SearchConfig, count: int, pixels: int, seed: int) -> list[str]:
    """Keep random budgets, have the results measured in a new process, and count."""
    space = make_space(network, pixels)
    (runtime,) = config.runtimes
    rng = np.random.default_rng((seed, 1))
    with make_gauges(config, Budget.parse(config.budget), space) as gauges:
        (gauge,) = gauges.gauges
        start = time.perf_counter()
        gauges.learn_devices(space, config, NO_PROGRESS)
        learning = (time.perf_counter() - start) * 1e3 / gauge.predictor.dense_ms
        gauges.add_costs(space, config.latency_confidence)
        keeper = Keeper(space, gauges)
        jobs: list[dict[str, Any]] = []
        for share in rng.uniform(*SHARES, count):
            limit = float(share * gauge.predictor.dense_ms)
            budget = Budget.parse(f"latency={limit:.6f}ms")
            proposed = space.project(rng.random(len(space.groups)), budget)
            kept = keeper.keep(proposed, budget)
            gauges.learn(kept.readings)
            jobs.append(
                {
                    "limit": limit,
                    "proposed": proposed,
                    "candidate": kept.candidate,
                    "missed": bool(kept.misses),
                    "ratio": kept.latencies[gauge.name].ratio,
                    "measurements": len(kept.readings),
                }
            )
        dense_ms = gauge.predictor.dense_ms
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "jobs.json"
        path.write_text(json.dumps({"network": network, "runtime": runtime, "pixels": pixels, "jobs": jobs}))
        subprocess.run([sys.executable, __file__, "--check", str(path)], check=True)
        found = json.loads(path.read_text())["found"]
    limits = np.array([job["limit"] for job in jobs])
    ms, low, proposed = (np.array([entry[name] for entry in found]) for name in ("ms", "low_ms", "proposed_ms"))
    ratios = np.array([entry["ratio"] for entry in found])
    drift = float(np.median([entry["dense_ms"] for entry in found])) / dense_ms
    apart = ratios / np.array([job["ratio"] for job in jobs])
    used, shares = ms / limits, ratios * dense_ms / limits
    return [
        network,
        runtime,
        f"{dense_ms:.1f}",
        f"{(used <= 1).sum()}/{count}",
        f"{(low <= limits).sum()}/{count}",
        f"{(shares <= 1).sum()}/{count}",
        f"{np.median(shares):.1%}, {shares.min():.1%}",
        f"{(proposed <= limits).sum()}/{count}",
        f"{drift:.3f}",
        f"{np.std(np.log(apart)):.1%}, {np.exp(np.mean(np.log(apart))):.3f}",
        f"{np.mean([job['measurements'] for job in jobs]):.1f}",
        f"{learning:.0f}",
    ]


def measure_afresh(path: Path) -> None:
    """In a process of its own: measure the candidates of `path`, and write what was found beside them."""
    content = json.loads(path.read_text())
    space = make_space(content["network"], content["pixels"])
    config = SearchConfig(budget=("macs=1x",), runtimes=(content["runtime"],))
    found = []
    with make_gauges(config, Budget.parse(config.budget), space) as gauges:
        for job in content["jobs"]:
            models = {name: space.materialise(tuple(job[name]), share=True) for name in ("candidate", "proposed")}
            (latencies,) = gauges.measure(models).values()
            latency = latencies["candidate"]
            found.append(
                {
                    "ms": latency.ms,
                    "low_ms": latency.low_ms,
                    "proposed_ms": latencies["proposed"].ms,
                    "ratio": latency.ratio,
                    "dense_ms": latencies["dense"].ms,
                }
            )
    path.write_text(json.dumps({**content, "found": found}))


def make_space(network: str, pixels: int) -> SearchSpace:
    """The space of a torchvision network with the weights that seed 0 gives."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = torchvision.models.get_model(network, weights=None).eval()
    return trace(model, torch.randn(1, 3, pixels, pixels))


if __name__ == "__main__":
    main()
