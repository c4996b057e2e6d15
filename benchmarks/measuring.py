"""How to measure latency on this machine: which statistic repeats best, whether intervals hold, what makes it quieter.

    OMP_NUM_THREADS=1 python benchmarks/measuring.py --collect alone
    OMP_NUM_THREADS=1 python benchmarks/measuring.py

The first collects the samples of one scenario (see `SCENARIOS`) into --work; the second prints tables of all that was
collected. resnet18 and mobilenet_v2 at 224 px, batch 1, each beside a subnet of it with about 60 % of the units in
every group, one thread. Blocks of rounds (dense, subnet; next round the other way round) of all networks and runtimes
take turns, so that the blocks of one network are seconds apart and spread over minutes. At its turn a network runs
twice; all tables but the first are of second runs. A neighbour is a process that multiplies matrices without end.
"""

from __future__ import annotations

import argparse
import gc
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision

from autoprune.measure.quiet import PRIORITY
from autoprune.measure.race import GROWTH
from autoprune.measure.robust import estimate, ranks, spread
from autoprune.runtimes import Runnable, make_runtime
from autoprune.search_spaces import trace
from autoprune.search_spaces.types import FloatArray

NETWORKS = ("resnet18", "mobilenet_v2")
RUNTIMES = ("onnxruntime", "eager:layout=channels_last")
MOST_ROUNDS = 200
NEIGHBOUR = """
import os
import numpy as np
matrix, parent = np.random.rand(1200, 1200), os.getppid()
while os.getppid() == parent:  # also where this benchmark is killed
    matrix @ matrix
"""

SCENARIOS = {
    "alone": (0, ()),
    "1 neighbour": (1, ()),
    "2 neighbours": (2, ()),
    "alone, affinity": (0, ("affinity",)),
    "alone, priority": (0, ("priority",)),
    "1 neighbour, affinity": (1, ("affinity",)),
    "2 neighbours, affinity": (2, ("affinity",)),
    "2 neighbours, priority": (2, ("priority",)),
    "2 neighbours, affinity, priority": (2, ("affinity", "priority")),
}
"""Name -> neighbours, and what the measuring process does about them."""


def mean_of_middle(samples: FloatArray) -> float:
    """Without the lowest and the highest fifth."""
    ordered = np.sort(samples)
    cut = len(ordered) // 5
    return float(ordered[cut : len(ordered) - cut].mean())


def hodges_lehmann(samples: FloatArray) -> float:
    """Median of the means of all pairs."""
    i, j = np.triu_indices(len(samples))
    return float(np.median((samples[i] + samples[j]) / 2))


STATISTICS: dict[str, Callable[[FloatArray], Any]] = {
    "minimum": np.min,
    "p10": lambda samples: np.quantile(samples, 0.1),
    "p25": lambda samples: np.quantile(samples, 0.25),
    "median": np.median,
    "trimmed mean": mean_of_middle,
    "Hodges-Lehmann": hodges_lehmann,
    "mean": np.mean,
}


def collect(scenario: str, blocks: int, rounds: int, limit_s: float) -> dict[str, FloatArray]:
    """Samples "network/runtime" -> [blocks, rounds, (dense, subnet), (first, second run), (wall, cpu)] in ms."""
    neighbours, measures = SCENARIOS[scenario]
    with ExitStack() as stack:
        pairs = {f"{net}/{spec}": loaded(net, spec, stack) for net in NETWORKS for spec in RUNTIMES}
        stack.enter_context(busy(neighbours))
        if "affinity" in measures:
            os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        if "priority" in measures:
            os.setpriority(os.PRIO_PROCESS, 0, PRIORITY)
        samples: dict[str, list[Any]] = {name: [] for name in pairs}
        for pair in pairs.values():
            block(pair, 10)
        start = time.monotonic()
        gc.disable()
        while len(samples[next(iter(samples))]) < blocks and time.monotonic() - start < limit_s:
            for name, pair in pairs.items():
                samples[name].append(block(pair, rounds))
            gc.collect()
    return {name: np.array(found) for name, found in samples.items()}


def loaded(net: str, spec: str, stack: ExitStack) -> tuple[Runnable, Runnable]:
    """The dense network and its subnet on a runtime."""
    torch.manual_seed(0)
    inputs = torch.randn(1, 3, 224, 224)
    model = getattr(torchvision.models, net)(weights=None).eval()
    space = trace(model, inputs)
    subnet = space.materialise(space.candidate({group.name: 0.6 for group in space.groups})).eval()
    session = stack.enter_context(make_runtime(spec).open(model, inputs))
    return session.load(model), session.load(subnet)


def block(pair: tuple[Runnable, Runnable], rounds: int) -> list[Any]:
    """Times [rounds, (dense, subnet), (first, second run), (wall, cpu)]."""
    times = []
    for number in range(rounds):
        order = (0, 1) if number % 2 == 0 else (1, 0)
        turns = {index: (pair[index](), pair[index]()) for index in order}
        times.append((turns[0], turns[1]))
    return times


@contextmanager
def busy(neighbours: int) -> Iterator[None]:
    """Run so many processes that never rest."""
    quiet = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    processes = [subprocess.Popen([sys.executable, "-c", NEIGHBOUR], env=quiet) for _ in range(neighbours)]
    try:
        if processes:
            time.sleep(2)
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def first_runs(scenario: str, samples: dict[str, FloatArray]) -> None:
    """Median processor time after another network, after the same one in the round before, and in second runs."""
    print(
        f"\n{scenario}: median processor ms of first runs after the other network, after itself, and of second runs\n"
    )
    print("| network, runtime | dense | subnet | ratio |\n|---|---:|---:|---:|")
    for name, blocks in samples.items():
        cpu = blocks[..., 1]  # [blocks, rounds, (dense, subnet), (first, second run)]
        kinds = [
            (
                cpu[:, 1::2, 0, 0],
                cpu[:, 0::2, 1, 0],
            ),  # in odd rounds the dense network is last, in even ones the subnet
            (cpu[:, 2::2, 0, 0], cpu[:, 1::2, 1, 0]),
            (cpu[..., 0, 1], cpu[..., 1, 1]),
        ]
        medians = [(float(np.median(dense)), float(np.median(subnet))) for dense, subnet in kinds]
        columns = zip(*((f"{d:.2f}", f"{s:.2f}", f"{s / d:.3f}") for d, s in medians), strict=True)
        print(f"| {name.split(':')[0]} | {' | '.join(' / '.join(column) for column in columns)} |")


def repeatability(scenario: str, samples: dict[str, FloatArray]) -> None:
    """Standard deviation between tens of rounds, in percent, of the dense time and of the subnet's ratio to it."""
    print(f"\n{scenario}: standard deviation between tens of rounds, of times / ratio of times / paired ratios (%)\n")
    print(f"| network, runtime | clock | {' | '.join(STATISTICS)} |\n|---|---|{'---:|' * len(STATISTICS)}")
    for name, found in samples.items():
        blocks = found.reshape(-1, 10, *found.shape[2:])
        for clock, label in enumerate(("wall", "cpu")):
            cells = []
            for statistic in STATISTICS.values():
                dense = np.array([statistic(b[:, 0, clock]) for b in blocks])
                apart = np.array([statistic(b[:, 1, clock]) / statistic(b[:, 0, clock]) for b in blocks])
                paired = np.array([statistic(b[:, 1, clock] / b[:, 0, clock]) for b in blocks])
                cells.append(" / ".join(f"{100 * v.std(ddof=1) / v.mean():.1f}" for v in (dense, apart, paired)))
            print(f"| {name.split(':')[0]} | {label} | {' | '.join(cells)} |")


def coverage(scenario: str, samples: dict[str, FloatArray]) -> None:
    """How often the interval of a block contains the ratio over all blocks (processor time)."""
    print(f"\n{scenario}: share of blocks whose 95 % interval of the ratio holds that of all blocks; its half width\n")
    print("| network, runtime | rounds | of independent samples | widened |\n|---|---:|---:|---:|")
    for name, blocks in samples.items():
        ratios = blocks[:, :, 1, 1] / blocks[:, :, 0, 1]  # [blocks, rounds]
        truth = float(np.median(ratios))
        for rounds in (10, 20, 40):
            cells = []
            for widened in (False, True):
                intervals = [interval(some, widened) for some in ratios[:, :rounds]]
                covers = np.mean([low <= truth <= high for low, high in intervals])
                half = np.mean([(high - low) / 2 for low, high in intervals]) / truth
                cells.append(f"{covers:.0%} (±{half:.1%})")
            print(f"| {name.split(':')[0]} | {rounds} | {' | '.join(cells)} |")


def interval(samples: FloatArray, widened: bool) -> tuple[float, float]:
    """Of the median; as it would be for independent samples, or as `estimate` gives it."""
    if widened:
        found = estimate(samples)
        return found.low, found.high
    low, high = ranks(len(samples), 0.5)
    ordered = np.sort(samples)
    return float(ordered[low]), float(ordered[high])


def needed(scenario: str, samples: dict[str, FloatArray]) -> None:
    """How many rounds the interval of the ratio takes to become as narrow as asked for (processor time)."""
    print(
        f"\n{scenario}: rounds until the interval of the ratio is as narrow as asked for, median over starts (most)\n"
    )
    accuracies = (0.05, 0.03, 0.02, 0.01)
    print(f"| network, runtime | {' | '.join(f'±{a:.0%}' for a in accuracies)} |\n|---|{'---:|' * len(accuracies)}")
    for name, blocks in samples.items():
        ratios = (blocks[:, :, 1, 1] / blocks[:, :, 0, 1]).ravel()
        starts = range(0, len(ratios) - MOST_ROUNDS + 1, blocks.shape[1])
        cells = []
        for accuracy in accuracies:
            taken = [rounds_until(ratios[start : start + MOST_ROUNDS], accuracy) for start in starts]
            cells.append(f"{np.median(taken):.0f} ({max(taken)})" if max(taken) <= MOST_ROUNDS else f"> {MOST_ROUNDS}")
        print(f"| {name.split(':')[0]} | {' | '.join(cells)} |")


def rounds_until(ratios: FloatArray, accuracy: float) -> int:
    """As the stopwatch counts; one more than there are where they are too few."""
    rounds = 10
    while rounds <= len(ratios):
        if estimate(ratios[:rounds]).accuracy <= accuracy:
            return rounds
        rounds = max(rounds + 1, round(rounds * GROWTH))
    return len(ratios) + 1


def circumstances(scenarios: dict[str, dict[str, FloatArray]]) -> None:
    """Median times of the dense networks in all scenarios, and how much single runs differ."""
    names = list(next(iter(scenarios.values())))
    print("\nMedian wall-clock / processor milliseconds of the dense network (interquartile range of runs, %)\n")
    print(f"| scenario | {' | '.join(name.split(':')[0] for name in names)} |\n|---|{'---:|' * len(names)}")
    for scenario, samples in scenarios.items():
        cells = []
        for name in names:
            clocks = samples[name][:, :, 0].reshape(-1, 2).T  # [(wall, cpu), runs]
            wall, cpu = (f"{np.median(runs):.1f}" for runs in clocks)
            wide, narrow = (f"{100 * spread(runs):.0f}" for runs in clocks)
            cells.append(f"{wall} / {cpu} ({wide} / {narrow})")
        print(f"| {scenario} | {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--collect", choices=SCENARIOS, help="measure one scenario; default: print the tables")
    parser.add_argument("--blocks", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--limit", type=float, default=100.0, help="seconds after which no further block begins")
    parser.add_argument("--work", type=Path, default=Path("runs/measuring"))
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    if options.collect:
        samples = collect(options.collect, options.blocks, options.rounds, options.limit)
        np.savez(options.work / f"{options.collect}.npz", **samples)  # type: ignore[arg-type]
        print(f"{options.collect}: {len(next(iter(samples.values())))} blocks of {options.rounds} rounds")
        return
    files = {name: options.work / f"{name}.npz" for name in SCENARIOS}
    found = {name: dict(np.load(path)) for name, path in files.items() if path.exists()}
    if not found:
        parser.error(f"nothing was collected in {options.work} yet: give --collect alone")
    for name, samples in found.items():
        if not SCENARIOS[name][1]:
            first_runs(name, samples)
    found = {name: {key: s[:, :, :, 1] for key, s in samples.items()} for name, samples in found.items()}
    for name, samples in found.items():
        if not SCENARIOS[name][1]:
            repeatability(name, samples)
            if len(next(iter(samples.values()))) >= 8:  # too few blocks say nothing of the minutes between them
                coverage(name, samples)
                needed(name, samples)
    circumstances(found)


if __name__ == "__main__":
    main()
