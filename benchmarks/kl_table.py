"""The KL table: what it costs, what cheaper ways lose, and how well its sum predicts many cuts at once.

    OMP_NUM_THREADS=1 python benchmarks/kl_table.py --rungs recalibrate --candidates 40 --reuse
    OMP_NUM_THREADS=1 python benchmarks/kl_table.py --rungs repair --candidates 10

Fashion-MNIST, the residual net of `autoprune.nets`, trained for 3 epochs and kept in --work, or --weights. For every
rung: processor seconds of the full table, as a multiple of one pass of the dense network over the search split; the
same with levels chosen by an estimate ("auto") or evenly spread, as many, and their error; the predicted against the
measured KL of random candidates at four shares of the MACs; then the candidate that the table thinks best. With
--reuse, the seconds that shared activations save for a larger network (ResNet-18 at 64 x 64, random weights), where no
bit may differ.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr

from autoprune.agents import make_agent
from autoprune.agents.table import Table
from autoprune.data import load_data
from autoprune.estimate import estimate
from autoprune.evaluate import Evaluator
from autoprune.importance import collect, reads_data
from autoprune.kl_table import KLTable, bends, spread
from autoprune.models import ModelSource
from autoprune.profiling import MEMORY, Meter, measure_table
from autoprune.progress import RichProgress
from autoprune.reuse import Shared
from autoprune.search_spaces import Budget, SearchSpace, trace
from autoprune.train import train_dense

SPEC = "autoprune.nets:fashion_resnet"
DATA = "fashion-mnist"
SHARES = (0.75, 0.5, 0.25, 0.1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--candidates", type=int, default=40, help="at each share of the MACs")
    parser.add_argument("--samples", type=int, default=1024)
    parser.add_argument("--calibration-samples", type=int, default=500)
    parser.add_argument("--rungs", nargs="*", default=["recalibrate", "repair"])
    parser.add_argument("--reuse", action="store_true", help="time shared activations as well")
    parser.add_argument("--importance", default="l2")
    parser.add_argument("--work", type=Path, default=Path("runs/kl_table"))
    options = parser.parse_args()
    weights = options.weights or options.work / "dense.safetensors"
    if not weights.exists():
        print(train_dense(ModelSource(SPEC), DATA, weights, settings={"epochs": 3, "lr": 0.1}, progress=RichProgress()))
    data = load_data(DATA)
    space = trace(ModelSource(SPEC, weights=str(weights)).build(), data.example())
    if reads_data(options.importance):
        collect(space, options.importance, data, num_samples=options.samples)
    for rung in options.rungs:
        evaluator = Evaluator(
            space, data, recovery=rung, importance=options.importance, calibration_samples=options.calibration_samples
        )
        start = time.process_time()
        print(f"\n{rung}: dense accuracy {evaluator.score_dense:.4f} on the search split", end="")
        epoch = time.process_time() - start
        print(f", one pass over its {data.search.num_samples:,} samples takes {epoch:.2f} s")
        cost_and_truth(evaluator, space, epoch, options)
    if options.reuse:
        reuse()


def cost_and_truth(evaluator: Evaluator, space: SearchSpace, epoch: float, options: argparse.Namespace) -> None:
    """Print cost and error of the table on one rung."""
    batches = list(evaluator.data.train.draw(options.samples, evaluator.data.seed + 1))
    start = time.process_time()
    full = measure_table(evaluator, samples=options.samples)
    seconds = time.process_time() - start
    print(f"full table: {count(full)} levels, {seconds:.1f} s = {seconds / epoch:.0f} passes")
    risen = sum(int((np.diff(raw) > 0).sum()) for raw in full.raw)
    print(f"levels where keeping more hurt more: {risen}")
    start = time.process_time()
    curves = estimate(evaluator, space, batches, "classes")
    extra = time.process_time() - start
    auto = part(full, [bends(*both) for both in zip(full.levels, curves, strict=True)], curves)
    some = max(1, round(count(auto) / len(space.groups)))
    even = part(full, [spread(len(levels), some) for levels in full.levels], None)
    for name, table, more in (("auto", auto, extra), ("even", even, 0.0)):
        share = count(table) / count(full)
        print(
            f"{name}: {count(table)} levels, {more:.1f} + {share * seconds:.1f} s = "
            f"{(more + share * seconds) / epoch:.0f} passes; {error(table, full)}",
            flush=True,
        )
    meter = Meter(evaluator, space, batches, "auto", share=False)
    print("| MACs | true KL, median | predicted / true, median (10 to 90 %) | Spearman | auto | even |\n|" + "---|" * 6)
    for share in SHARES:
        agent = make_agent("random", space, Budget.parse(f"macs={share}x"), seed=0)
        candidates = [agent.ask(number) for number in range(options.candidates)]
        true = np.array(meter.measure(candidates))
        predicted = full.predict(candidates)
        low, middle, high = np.quantile(predicted / true, [0.1, 0.5, 0.9])
        ranks = [spearmanr(table.predict(candidates), true).statistic for table in (full, auto, even)]
        macs = space.cost("macs", candidates).mean() / space.cost("macs", [space.dense])[0]
        print(
            f"| {share:g}x ({macs:.2f}) | {np.median(true):.3f} | {middle:.2f} ({low:.2f} to {high:.2f}) | "
            + " | ".join(f"{rank:.2f}" for rank in ranks)
            + " |",
            flush=True,
        )
    optimum(evaluator, space, full, meter, options.candidates)


def optimum(evaluator: Evaluator, space: SearchSpace, full: KLTable, meter: Meter, num_random: int) -> None:
    """Print what the table's own best candidate is worth, against uniform ratios and the best of random candidates."""
    table = Table.measured(full.raw)
    print("\n| MACs | candidate | predicted KL | true KL | accuracy, search split |\n" + "|---" * 5 + "|")
    for share in SHARES:
        budget = Budget.parse(f"macs={share}x")
        drawn = make_agent("random", space, budget, seed=0)
        random = [drawn.ask(number) for number in range(num_random)]
        chosen = {
            "best by the table": make_agent("bnb", space, budget, seed=0, table=table).ask(0),
            "uniform": make_agent("uniform", space, budget, seed=0).ask(0),
            f"best of {num_random} random": max(random, key=evaluator.evaluate),
        }
        for name, candidate in chosen.items():
            (true,), (predicted,) = meter.measure([candidate]), full.predict([candidate])
            score = evaluator.evaluate(candidate)
            print(f"| {share:g}x | {name} | {predicted:.3f} | {true:.3f} | {100 * score:.2f} |", flush=True)


def reuse() -> None:
    """Print the seconds of eight batches through the subnets of every third group, shared and not."""
    import torchvision

    torch.manual_seed(0)
    space = trace(torchvision.models.resnet18().eval(), torch.randn(1, 3, 64, 64))
    batches = [torch.randn(32, 3, 64, 64) for _ in range(8)]
    print("\n| group | subnets | seconds | shared |\n|---|---|---|---|")
    totals = [0.0, 0.0]
    for index in range(0, len(space.groups), 3):
        group = space.groups[index]
        levels = range(0, len(group.levels) - 1, max(1, len(group.levels) // 6))
        cuts = [(*space.dense[:index], level, *space.dense[index + 1 :]) for level in levels]
        networks = [space.materialise(cut, share=True).eval() for cut in cuts]
        shared = Shared(space.materialise(space.dense, share=True).eval(), networks, MEMORY)
        with torch.no_grad():
            start = time.process_time()
            plain = [network(batch) for batch in batches for network in networks]
            middle = time.process_time()
            same = [out for batch in batches for out in shared(lambda network, batch=batch: network(batch), batch)]
            end = time.process_time()
        assert all(torch.equal(a, b) for a, b in zip(plain, same, strict=True))
        totals = [totals[0] + middle - start, totals[1] + end - middle]
        print(f"| {group.name} | {len(networks)} | {middle - start:.1f} | {end - middle:.1f} |", flush=True)
    print(f"| together | | {totals[0]:.1f} | {totals[1]:.1f} |")


def part(full: KLTable, levels: list[list[int]], curves: tuple[tuple[float, ...], ...] | None) -> KLTable:
    """What a table would be with only these levels measured: every value is measured by itself."""
    measured = tuple({k: row[k] for k in chosen} for row, chosen in zip(full.measured, levels, strict=True))
    return replace(full, measured=measured, estimate=curves)


def count(table: KLTable) -> int:
    """Levels that were measured."""
    return sum(map(len, table.measured))


def error(table: KLTable, full: KLTable) -> str:
    """How far interpolated levels are from measured ones."""
    ratios = [
        abs(np.log(table.values[g][k] / full.values[g][k]))
        for g, measured in enumerate(table.measured)
        for k in range(len(table.levels[g]) - 1)
        if k not in measured
    ]
    middle, high = np.exp(np.quantile(ratios, [0.5, 0.9]))
    return f"interpolated levels off by a factor of {middle:.2f} (median), {high:.2f} (90 %)"


if __name__ == "__main__":
    main()
