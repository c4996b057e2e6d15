"""Branch and bound: what a second way to its start brings, up from the smallest subnet beside down from the dense one.

    OMP_NUM_THREADS=1 python benchmarks/bnb_start.py

Spaces of real networks, random tables (losses fall as a power of the units kept, groups matter by a lognormal factor,
noise), five for every budget. Printed are means: the loss of the better start and of the first proposal after --nodes
nodes, as a multiple of those with the way down only; in how many of the five the way up was the better one; the share
of the loss between it and the proved bound; processor time of the start.
"""

from __future__ import annotations

import argparse
import time
from unittest.mock import patch

import numpy as np
import torch
import torchvision

from autoprune.agents import moves
from autoprune.agents.kbest import KBest
from autoprune.agents.table import Table
from autoprune.nets import fashion_resnet
from autoprune.search_spaces import Budget, SearchSpace, trace
from autoprune.search_spaces.projection import check_budget
from autoprune.search_spaces.types import IntArray

BUDGETS = (["macs=0.5x"], ["macs=0.25x"], ["macs=0.4x", "params=0.4x"])
TABLES = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=3000)
    options = parser.parse_args()
    spaces = {"fashion_resnet": trace(fashion_resnet().eval(), torch.zeros(1, 1, 28, 28))}
    for name in ("resnet18", "mobilenet_v2"):
        spaces[name] = trace(torchvision.models.get_model(name, weights=None).eval(), torch.zeros(1, 3, 64, 64))
    print("| space | budget | start | way up better | first proposal | gap: down only, both | seconds |")
    print("|---|---|---|---|---|---|---|")
    for name, space in spaces.items():
        for budget in BUDGETS:
            limits = check_budget(space, Budget.parse(budget))
            rows = []
            for seed in range(TABLES):
                table = random_table(space, seed)

                def down_only(space: SearchSpace, limits: dict[str, float], table: Table) -> IntArray:
                    return moves.improve(space, limits, table, moves.descend(space, limits, table))

                for way in (down_only, moves.start):
                    begin = time.process_time()
                    loss = float(table.predict(way(space, limits, table)[None])[0])
                    seconds = time.process_time() - begin
                    with patch("autoprune.agents.kbest.start", way):
                        search = KBest(space, limits, table, max_nodes=options.nodes)
                        next(iter(search))
                    rows.append((loss, search.best, 1 - search.bound / search.best, seconds))
            down, both = np.array(rows[::2]), np.array(rows[1::2])
            ratio = both[:, :2] / down[:, :2]
            better = (ratio[:, 0] < 1 - 1e-9).sum()
            (_, _, old_gap, old_seconds), (_, _, gap, seconds) = down.mean(axis=0), both.mean(axis=0)
            print(
                f"| {name} | {', '.join(budget)} | {ratio[:, 0].mean():.3f} | {better} of {TABLES} "
                f"| {ratio[:, 1].mean():.3f} | {old_gap:.3f}, {gap:.3f} | {old_seconds:.3f}, {seconds:.3f} |",
                flush=True,
            )


def random_table(space: SearchSpace, seed: int) -> Table:
    rng = np.random.default_rng(seed)
    losses = []
    for num_levels in space.num_levels.tolist():
        cut = 1 - np.linspace(1 / num_levels, 1, num_levels)
        each = rng.lognormal(0, 1.2) * cut ** rng.uniform(0.5, 4) * np.exp(rng.normal(0, 0.15, num_levels))
        losses.append(np.append(np.minimum.accumulate(each)[:-1], 0.0))
    return Table(losses)


if __name__ == "__main__":
    main()
