"""Channel steps of the runtimes here, and what widths beside the step cost a whole network.

    OMP_NUM_THREADS=1 python benchmarks/steps.py probes --runtime onnxruntime
    OMP_NUM_THREADS=1 python benchmarks/steps.py networks --runtime onnxruntime --model mobilenet_v2

`probes` prints, for every kind of op, the penalty of each step and its p-value (autoprune/steps.py). `networks` draws
random mixed subnets with levels in multiples of 1, 8 and 16 and the same MACs, and compares their latencies.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
import torchvision

from autoprune.measure.stopwatch import Stopwatch
from autoprune.runtimes import make_runtime
from autoprune.search_spaces import Budget, trace
from autoprune.steps import KINDS, PROBES, judge, time_probe

ALIGNS = (1, 8, 16)


def probes(name: str) -> None:
    """Print the evidence of every probe, and the step of every kind."""
    runtime = make_runtime(name)
    print(runtime.describe())
    steps = dict.fromkeys(KINDS, 1)
    for probe in PROBES:
        evidence, step = judge(time_probe(runtime, probe), probe.kind)
        steps[probe.kind] = max(steps[probe.kind], step)
        shown = ", ".join(f"{e.step}: {e.penalty:+.1%} (p {e.p:.3f})" for e in evidence)
        print(f"  {probe.name}: step {step}; {shown}", flush=True)
    print(f"  {steps}")


def networks(name: str, model: str, *, subnets: int, rounds: int, max_levels: int) -> None:
    """Print the latencies of subnets drawn at each alignment with the same MACs, and their ratios to align 8."""
    runtime = make_runtime(name)
    dense = torchvision.models.get_model(model, weights=None).eval()
    inputs = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    spaces = {align: trace(dense, inputs, align=align, max_levels=max_levels) for align in ALIGNS}
    rng = np.random.default_rng(0)
    drawn = {}
    for index in range(subnets):
        budget = Budget.parse(f"macs={rng.uniform(0.4, 0.9):.3f}x")
        wishes = rng.uniform(0.3, 1.0, len(spaces[8].groups))
        drawn |= {(index, align): space.project(wishes, budget) for align, space in spaces.items()}
    models = {
        f"{index} {align}": spaces[align].materialise(candidate, share=True)
        for (index, align), candidate in drawn.items()
    }
    with Stopwatch(runtime, dense, inputs, accuracy=np.inf, min_rounds=rounds, max_rounds=rounds) as stopwatch:
        found = stopwatch.measure(models)
    dense_macs = spaces[8].costs(spaces[8].dense).macs
    ms = np.array([[found[f"{index} {align}"].ms for align in ALIGNS] for index in range(subnets)])
    macs = np.array([[spaces[align].costs(drawn[index, align]).macs for align in ALIGNS] for index in range(subnets)])
    print(f"{model}, {runtime.describe()}, at most {max_levels} levels, dense {found['dense'].ms:.2f} ms")
    for times, shares in zip(ms / found["dense"].ms, macs / dense_macs, strict=True):
        print(
            "  "
            + "; ".join(f"align {a}: {m:.3f}x MACs {t:.2f}x ms" for a, m, t in zip(ALIGNS, shares, times, strict=True))
        )
    ratios = ms / ms[:, [ALIGNS.index(8)]]
    for align, column in zip(ALIGNS, ratios.T, strict=True):
        spread = f"{column.min():.2f} to {column.max():.2f}"
        print(f"  latency at align {align} over align 8: median {np.median(column):.2f}, {spread}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["probes", "networks"])
    parser.add_argument("--runtime", default="onnxruntime")
    parser.add_argument("--model", default="mobilenet_v2")
    parser.add_argument("--subnets", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--max-levels", type=int, default=1024, help="32 in a search")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.what == "probes":
        probes(given.runtime)
    else:
        networks(given.runtime, given.model, subnets=given.subnets, rounds=given.rounds, max_levels=given.max_levels)
