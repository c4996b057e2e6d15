"""How well the latency of subnets is predicted, by what, and from how many measurements.

    OMP_NUM_THREADS=1 python benchmarks/latency_model.py --plot docs/latency-model.svg

Measures, per network and runtime, subnets to learn from (informative ones, and as many uniform ones to compare with)
and held-out random mixed subnets; every measured subnet is a line of the results file, and what is there is not
measured again. Then fits all predictors offline and prints them. ``--seconds`` stops measuring after a while: run it
again to go on, or with ``--offline`` to look at what is there.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import nn

from autoprune.latency import LatencyModel, Sample, informative, mixed
from autoprune.measure.stopwatch import Stopwatch
from autoprune.progress import NO_PROGRESS
from autoprune.runtimes import make_runtime
from autoprune.search_spaces import Candidate, SearchSpace, trace
from autoprune.search_spaces.types import FloatArray
from benchmarks.op_table import Interpolation, OpTimes, time_ops

NETWORKS = ("resnet18", "mobilenet_v2", "resnet50", "deit_tiny_patch16_224")
RUNTIMES = ("eager", "onnxruntime")
SIZE = 224
TOGETHER = 9
FEW = 15
"""Subnets that our model is also fitted to, to see what more are worth."""
ACCURACY, ROUNDS = 0.08, (14, 24)
"""Wanted half width of the 95 % interval of each ratio (three times that is refused), least and most rounds."""


@dataclass(frozen=True)
class Measured:
    """Subnets of one set: ratios to the dense network [n], their standard errors, and what measuring them took."""

    candidates: list[Candidate]
    ratios: FloatArray
    errors: FloatArray
    dense_ms: float
    evaluations: float


def main() -> None:
    options = _options()
    stop = time.monotonic() + options.seconds
    panels = []
    print("| network | runtime | predictor | subnets | other measurements | held out | MAPE | Spearman | inside 90 % |")
    print("|---|---|---|---|---|---|---|---|---|")
    costs = []
    for name in options.networks:
        torch.manual_seed(0)
        space = trace(build(name), torch.randn(1, 3, SIZE, SIZE))
        for runtime in options.runtimes:
            sets = {
                "informative": informative(space, options.subnets, options.seed),
                "held out": mixed(space, options.held_out, options.seed + 1),
                "uniform": uniform(space, options.subnets if options.uniform is None else options.uniform),
            }
            if not options.offline:
                measure(space, name, runtime, sets, options.results, stop)
            found = {kind: read(options.results, name, runtime, kind, wanted) for kind, wanted in sets.items()}
            if min(len(found[kind].candidates) for kind in ("informative", "held out")) < FEW:
                continue
            table = read_table(options.results, name)
            rows, panel = compare(space, table, read_layers(options.results, name, runtime), found)
            for row in rows:
                print(f"| {name} | {runtime} | {' | '.join(row)} |")
            panels.append((f"{name}, {runtime}", *panel))
            build_s = found["informative"].evaluations
            costs.append((name, runtime, found["informative"].dense_ms, build_s))
    print("\n| network | runtime | dense, ms | to build the model, in evaluations of the dense network |")
    print("|---|---|---|---|")
    for name, runtime, dense_ms, evaluations in costs:
        print(f"| {name} | {runtime} | {dense_ms:.1f} | {evaluations:.0f} |")
    if options.plot is not None:
        options.plot.write_text(picture(panels))


def build(name: str) -> nn.Module:
    """The network, without pretrained weights: they do not change how long it takes."""
    if name.startswith("deit"):
        import timm

        model: nn.Module = timm.create_model(name, pretrained=False)
        return model.eval()
    import torchvision

    built: nn.Module = torchvision.models.get_model(name, weights=None)
    return built.eval()


def uniform(space: SearchSpace, count: int) -> list[Candidate]:
    """Distinct subnets with one keep ratio for all groups."""
    every = list(dict.fromkeys(space.candidate(float(r)) for r in np.linspace(0.08, 0.99, 10 * count)))
    every = [c for c in every if c != space.dense]
    return [every[i] for i in np.unique(np.linspace(0, len(every) - 1, count).round().astype(int))]


# -- measuring ------------------------------------------------------------------------------------------------------


def measure(
    space: SearchSpace, name: str, runtime: str, sets: dict[str, list[Candidate]], path: Path, stop: float
) -> None:
    """Measure what the results file lacks, until it is time to stop."""
    lines = read_lines(path)
    if not any(line["kind"] == "table" and line["network"] == name for line in lines) and time.monotonic() < stop:
        start = time.perf_counter()
        times = {key: [t.inputs, t.outputs, t.ms] for key, t in time_ops(space, 1, NO_PROGRESS).items()}
        write(path, {"kind": "table", "network": name, "seconds": time.perf_counter() - start, "times": times})
    done = {kind: set(read(path, name, runtime, kind, wanted).candidates) for kind, wanted in sets.items()}
    # the sets take turns: ratios to the dense network drift by a few percent from one quarter of an hour to the next
    turns = [(kind, turn[i]) for turn in zip_longest(*sets.values()) for i, kind in enumerate(sets)]
    missing = [(kind, candidate) for kind, candidate in turns if candidate is not None and candidate not in done[kind]]
    if not missing or time.monotonic() > stop:
        return
    with Stopwatch(
        make_runtime(runtime), space.model, space.example_inputs, min_rounds=ROUNDS[0], max_rounds=ROUNDS[1]
    ) as stopwatch:
        if not any((line["kind"], line["network"], line.get("runtime")) == ("layers", name, runtime) for line in lines):
            write(path, {"kind": "layers", "network": name, "runtime": runtime, "layers": stopwatch.layers()})
        for part in batched(missing, TOGETHER):
            if time.monotonic() > stop:
                return
            start = time.perf_counter()
            models = {str(i): space.materialise(candidate, share=True) for i, (_, candidate) in enumerate(part)}
            latencies = stopwatch.measure(models, accuracy=ACCURACY)
            seconds = (time.perf_counter() - start) / len(part)
            for i, (kind, candidate) in enumerate(part):
                it = latencies[str(i)]
                line: dict[str, Any] = {
                    "network": name, "runtime": runtime, "kind": kind, "candidate": candidate,
                    "ratio": it.ratio, "se": it.ratio_se,
                    "dense_ms": latencies["dense"].ms, "seconds": seconds, "ms": it.samples_ms,
                }  # fmt: skip
                write(path, line)


def batched(items: Sequence[tuple[str, Candidate]], size: int) -> Iterator[Sequence[tuple[str, Candidate]]]:
    """Parts that are measured together."""
    return (items[start : start + size] for start in range(0, len(items), size))


def write(path: Path, line: dict[str, Any]) -> None:
    """Add a line to the results."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """All results so far."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def read(path: Path, name: str, runtime: str, kind: str, wanted: Sequence[Candidate]) -> Measured:
    """What was measured of a set."""
    lines = [
        line
        for line in read_lines(path)
        if (line["network"], line.get("runtime"), line["kind"]) == (name, runtime, kind)
        and tuple(line["candidate"]) in wanted
    ]
    dense_ms = float(np.median([line["dense_ms"] for line in lines])) if lines else float("nan")
    return Measured(
        [tuple(line["candidate"]) for line in lines],
        np.array([line["ratio"] for line in lines]),
        np.array([line["se"] for line in lines]),
        dense_ms,
        sum(line["seconds"] for line in lines) * 1e3 / dense_ms,
    )


def read_table(path: Path, name: str) -> dict[str, OpTimes]:
    """Times of the ops of a network alone, in eager mode."""
    line = next(line for line in read_lines(path) if line["kind"] == "table" and line["network"] == name)
    return {key: OpTimes(tuple(i), tuple(o), tuple(map(tuple, ms))) for key, (i, o, ms) in line["times"].items()}


def read_layers(path: Path, name: str, runtime: str) -> dict[str, float] | None:
    """Times of modules inside the dense network, where the runtime tells."""
    found = (line for line in read_lines(path) if line["kind"] == "layers")
    return next((line["layers"] for line in found if (line["network"], line["runtime"]) == (name, runtime)), None)


# -- predictors -----------------------------------------------------------------------------------------------------


def compare(
    space: SearchSpace, table: dict[str, OpTimes], layers: dict[str, float] | None, found: dict[str, Measured]
) -> tuple[list[list[str]], tuple[FloatArray, FloatArray, FloatArray]]:
    """Rows of the table of predictors, and (measured, predicted, sd) of ours on the held-out subnets, in ms."""
    learn, test = found["informative"], found["held out"]
    interpolation = Interpolation(space, table)
    macs, macs_test = (space.cost("macs", part.candidates) for part in (learn, test))
    sums, sums_test = (interpolation(space.units(part.candidates)) for part in (learn, test))
    ops = f"{len(table)} ops x 16 widths"
    rows = [
        row("affine in MACs", len(learn.candidates), "", affine(macs, macs_test, learn), test),
        row("table of ops, raw", 0, ops, sums_test / test.dense_ms, test),
        row("table of ops, calibrated", len(learn.candidates), ops, affine(sums, sums_test, learn), test),
    ]
    for label, part in (("ours, uniform subnets", found["uniform"]), ("ours, few subnets", first(learn, FEW))):
        if len(part.candidates) >= FEW:
            ratio, sd = predict(space, layers, part, test)
            rows.append(row(label, len(part.candidates), "", ratio, test, sd))
    ratio, sd = predict(space, layers, learn, test)
    rows.append(row("**ours**", len(learn.candidates), "", ratio, test, sd))
    return rows, (test.ratios * test.dense_ms, ratio * test.dense_ms, sd * test.dense_ms)


def affine(x: FloatArray, at: FloatArray, learn: Measured) -> FloatArray:
    """``a + b x`` with the least relative squared error."""
    a, b = np.linalg.lstsq(np.stack([np.ones(len(x)), x], 1) / learn.ratios[:, None], np.ones(len(x)))[0]
    predicted: FloatArray = a + b * at
    return predicted


def predict(
    space: SearchSpace, layers: dict[str, float] | None, learn: Measured, test: Measured
) -> tuple[FloatArray, FloatArray]:
    """Ratio to dense and its standard deviation, by our model."""
    samples = zip(learn.candidates, learn.ratios, learn.errors, strict=True)
    model = LatencyModel(space, 1.0, tuple(Sample(c, float(r), float(e)) for c, r, e in samples), layers=layers)
    return model.predict(space.units(test.candidates))


def first(part: Measured, count: int) -> Measured:
    """The first few of a set: informative subnets come in the order of what they tell."""
    return Measured(part.candidates[:count], part.ratios[:count], part.errors[:count], part.dense_ms, 0.0)


def row(
    label: str, subnets: int, other: str, predicted: FloatArray, test: Measured, sd: FloatArray | None = None
) -> list[str]:
    """Cells of one predictor."""
    off = np.abs(predicted - test.ratios)
    correlation = spearmanr(predicted, test.ratios).statistic
    inside = "" if sd is None else f"{np.mean(off <= 1.645 * np.hypot(sd, test.errors)):.0%}"
    return [
        label,
        str(subnets),
        other,
        str(len(test.candidates)),
        f"{np.mean(off / test.ratios):.1%}",
        f"{correlation:.3f}",
        inside,
    ]


# -- picture --------------------------------------------------------------------------------------------------------


def picture(panels: Sequence[tuple[str, FloatArray, FloatArray, FloatArray]]) -> str:
    """Predicted against measured with 90 % intervals, a panel for each network and runtime, as SVG."""
    side, columns = 210, 4
    rows = -(-len(panels) // columns)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {columns * side} {rows * side}" '
        f'width="{columns * side}" height="{rows * side}" font-family="sans-serif" font-size="10" fill="#333">',
        '<rect width="100%" height="100%" fill="#fff"/>',
    ]
    for index, (title, measured, predicted, sd) in enumerate(panels):
        left, top, size = index % columns * side + 36, index // columns * side + 22, side - 62
        most = 1.08 * float(max(measured.max(), (predicted + 1.645 * sd).max()))

        def at(x: float, y: float, left: int = left, bottom: int = top + size, k: float = size / most) -> str:
            return f"{left + k * x:.1f},{bottom - k * y:.1f}"

        parts.append(f'<text x="{left}" y="{top - 7}">{title}</text>')
        parts.append(f'<rect x="{left}" y="{top}" width="{size}" height="{size}" fill="none" stroke="#999"/>')
        parts.append(f'<path d="M{at(0, 0)}L{at(most, most)}" stroke="#bbb" fill="none"/>')
        for tick in np.linspace(0, most, 4)[1:-1]:
            x, y = at(float(tick), float(tick)).split(",")
            parts.append(f'<text x="{x}" y="{top + size + 11}" text-anchor="middle">{tick:.0f}</text>')
            parts.append(f'<text x="{left - 4}" y="{y}" text-anchor="end">{tick:.0f}</text>')
        for x_ms, y_ms, doubt in zip(measured.tolist(), predicted.tolist(), (1.645 * sd).tolist(), strict=True):
            parts.append(f'<path d="M{at(x_ms, y_ms - doubt)}L{at(x_ms, y_ms + doubt)}" stroke="#7aa6d6"/>')
            cx, cy = at(x_ms, y_ms).split(",")
            parts.append(f'<circle cx="{cx}" cy="{cy}" r="2" fill="#1f5fa8"/>')
        parts.append(f'<text x="{left + size / 2}" y="{top + size + 23}" text-anchor="middle">measured, ms</text>')
        turned = f"rotate(-90 {left - 24} {top + size / 2})"
        parts.append(
            f'<text x="{left - 24}" y="{top + size / 2}" text-anchor="middle" transform="{turned}">predicted, ms</text>'
        )
    return "\n".join([*parts, "</svg>"]) + "\n"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--runtimes", nargs="+", default=RUNTIMES)
    parser.add_argument("--results", type=Path, default=Path("runs") / "latency-model.jsonl")
    parser.add_argument("--subnets", type=int, default=28, help="to learn from, of each kind")
    parser.add_argument("--uniform", type=int, help="uniform ones, as many without this")
    parser.add_argument("--held-out", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop measuring after this long")
    parser.add_argument("--offline", action="store_true", help="measure nothing")
    parser.add_argument("--plot", type=Path, help="write predicted against measured here, as SVG")
    return parser.parse_args()


if __name__ == "__main__":
    warnings.filterwarnings("ignore", category=UserWarning)
    main()
