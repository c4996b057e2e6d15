"""What a latency table costs and how far it is off: python benchmarks/latency_table.py resnet18 mobilenet_v2

Prints, per torchvision network: seconds to measure the table, its distinct ops, its own leave-one-out error, and the
time of one prediction and of one thousand at once.
"""

from __future__ import annotations

import sys
import time

import numpy as np
import torch
import torchvision

from autoprune.latency import LatencyTable
from autoprune.search_spaces import CostModel, trace
from autoprune.search_spaces.types import IntArray


def main(names: list[str]) -> None:
    print("| network | table, s | distinct ops | error | one prediction, us | of 1000 at once, us each |")
    print("|---|---|---|---|---|---|")
    for name in names:
        space = trace(torchvision.models.get_model(name, weights=None).eval(), torch.randn(1, 3, 224, 224))
        start = time.perf_counter()
        table = LatencyTable.measure(space)
        seconds = time.perf_counter() - start
        predict = table.predictor(space)
        one = space.units([space.dense])
        many = space.units(np.random.default_rng(0).integers(0, space.num_levels, (1000, len(space.groups))))
        print(
            f"| {name} | {seconds:.1f} | {len(table.times)} | {table.error:.1%} "
            f"| {1e6 * _fastest(predict, one):.0f} | {1e3 * _fastest(predict, many):.1f} |"
        )


def _fastest(predict: CostModel, units: IntArray, repeats: int = 50) -> float:
    """Seconds of the fastest of `repeats` predictions."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        predict(units)
        times.append(time.perf_counter() - start)
    return min(times)


if __name__ == "__main__":
    main(sys.argv[1:] or ["resnet18", "mobilenet_v2"])
