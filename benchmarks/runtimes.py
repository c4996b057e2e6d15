"""What networks take on each runtime, and how long a subnet takes to be made ready from the template and by export.

    python benchmarks/runtimes.py latency resnet18 mobilenet_v2
    python benchmarks/runtimes.py prepare resnet18 mobilenet_v2 resnet50 vit_b_16

Batch 1, 224 px, 1 thread, random weights. `latency` prints how long the dense network takes to be made ready, and the
median processor time of 30 interleaved runs of it; `prepare` the seconds that the template of ONNX Runtime takes for
random subnets, beside those of `autoprune.export_graph.export_onnx` and a session from its file, and the two latencies.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
import warnings
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torchvision
from torch import nn

import autoprune as ap
from autoprune.export_graph import export_onnx
from autoprune.runtimes import make_runtime
from autoprune.runtimes.clock import thread_timer
from autoprune.runtimes.onnx_template import OnnxTemplate
from autoprune.runtimes.onnxruntime import OnnxCall

SPECS = (
    "eager",
    "eager:layout=channels_last",
    "eager:layout=channels_last,precision=bf16",
    "compile",
    "onnxruntime",
    "openvino",
    "openvino:precision=bf16",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("latency", "prepare"))
    parser.add_argument("models", nargs="+")
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--subnets", type=int, default=5)
    parser.add_argument("--runtimes", nargs="+", default=SPECS)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for name in args.models:
        model = network(name)
        if args.what == "latency":
            latency(name, model, args.runtimes, args.runs)
        else:
            prepare(name, model, args.subnets, args.runs)


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = getattr(torchvision.models, name)()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return model.eval()


def latency(name: str, model: nn.Module, specs: list[str], runs: int) -> None:
    x = torch.randn(1, 3, 224, 224)
    runnables: dict[str, Any] = {}
    for spec in specs:
        runtime = make_runtime(spec)
        start = time.perf_counter()
        runnables[runtime.describe()] = runtime.open(model, x).load(model)
        print(f"{name:14} ready in {time.perf_counter() - start:.2f} s  {runtime.describe()}", flush=True)
    times = defaultdict(list)
    for number in range(runs + 5):
        for how, runnable in runnables.items():
            result = runnable()
            if number >= 5:
                times[how].append(result.cpu)
    for how, values in times.items():
        print(f"{name:14} {median(values):7.2f} ms  {how}", flush=True)


def prepare(name: str, model: nn.Module, number: int, runs: int) -> None:
    x = torch.randn(1, 3, 224, 224)
    space = ap.trace(model, (x,))
    rng = random.Random(0)
    start = time.perf_counter()
    template = OnnxTemplate(model, x)
    print(f"{name}: opened in {time.perf_counter() - start:.2f} s", flush=True)
    for _ in range(number):
        subnet = space.materialise(tuple(rng.randrange(len(group.levels)) for group in space.groups)).eval()
        before = template.exports
        start = time.perf_counter()
        _, ours = template.make(subnet, lambda graph: OnnxCall(graph, 1))
        by_template = time.perf_counter() - start
        learnt = " (exported to learn)" if template.exports > before else ""
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            export_onnx(subnet, x, Path(folder) / "model.onnx")
            own = OnnxCall((Path(folder) / "model.onnx").read_bytes(), 1)
            by_export = time.perf_counter() - start
        times: dict[str, list[float]] = defaultdict(list)
        for run in range(runs + 5):
            for who, call in (("ours", ours), ("own", own)):
                result = thread_timer(lambda call=call: call([x.numpy()]))  # type: ignore[misc]
                if run >= 5 and result.cpu is not None:
                    times[who].append(result.cpu)
        print(
            f"{name}: ready in {by_template:.2f} s{learnt}, by export {by_export:.2f} s; "
            f"latency {median(times['ours']):.2f} ms, of the export {median(times['own']):.2f} ms",
            flush=True,
        )


if __name__ == "__main__":
    main()
