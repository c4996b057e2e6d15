"""The phases of a run that faults are injected into: how to start or go on, and what must come out.

What a phase calls is what a user calls: `search`, `resume`, `profile`, `fine_tune`, the command line. A phase is called
again in the same way after every fault; only whether there is a run folder tells it whether to start or to go on.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import nn

import autoprune as ap
from autoprune import cli
from autoprune.config import SearchConfig
from autoprune.data.base import Batches
from autoprune.finished import Finished
from autoprune.models import ModelSource
from autoprune.points import fine_tune
from autoprune.profiling import TABLE, profile
from autoprune.proxies import proxy
from autoprune.proxy_file import FILE as PROXY
from autoprune.scores import accuracy
from autoprune.storage.address import VARIABLE
from autoprune.study import Study
from autoprune.train import train_dense
from tests.autoprune.runs import SETTINGS, loaders, tiny_net

RUN = "r"
PLAIN = ("macs", "params")
"""Costs that no clock is needed for."""


@dataclass(frozen=True)
class Phase:
    """Something long that can be interrupted.

    Attributes:
        name: as in the table.
        go_on: (folder) -> start it, or go on with it.
        outcome: (folder) -> what must not depend on interruptions.
        start: name of what is in the folder before, see `STARTS`; None for nothing.
        imports: modules that only this phase needs.
    """

    name: str
    go_on: Callable[[Path], object]
    outcome: Callable[[Path], Any]
    start: str | None = None
    imports: tuple[str, ...] = ()


def go_on(name: str, folder: str) -> None:
    """What the process that is interrupted runs."""
    phase = ON_A_SERVER if name == ON_A_SERVER.name else PHASES[name]
    phase.go_on(Path(folder))


def begin(name: str, folder: str) -> None:
    """Make what a phase starts from."""
    STARTS[name](Path(folder))


def searching(**settings: Any) -> Callable[[Path], None]:
    """A search, or its resumption."""

    def call(folder: Path) -> None:
        if is_begun(folder):
            ap.resume(folder / RUN, **given())
        else:
            search(folder, **settings)

    return call


def is_begun(folder: Path) -> bool:
    return (folder / RUN / "config.toml").exists()


def search(folder: Path, **settings: Any) -> None:
    defaults = {**SETTINGS, "budget": ["macs=0.5x", "params=0.6x"], "latency_repeats": 1, "trials": 2, "points": 1}
    ap.search(tiny_net(), **loaders(), **{**defaults, **settings}, run=folder / RUN)


def given() -> dict[str, Any]:
    """What was handed over in Python, to be handed over again."""
    return {"model": tiny_net(), **loaders()}


def trials(folder: Path) -> list[tuple[Any, ...]]:
    """The trials of a run as far as they go, without seconds and measured costs."""
    if not is_begun(folder):
        return []
    found = Study.read(folder / RUN).trials
    assert [t.number for t in found] == list(range(len(found)))
    return [(t.number, t.candidate, t.state, t.score, plain(t.costs), t.share, t.pruning, t.message) for t in found]


def plain(costs: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in costs.items() if name in PLAIN}


def outcome(folder: Path) -> tuple[Any, ...]:
    """Everything of a finished run that must not depend on interruptions."""
    run = folder / RUN
    finished = Finished.read(run)
    assert finished is not None
    points = [
        (p.trial, p.candidate, plain(p.costs), p.score, p.repaired, p.finetuned, p.test_before, p.test_after)
        for p in finished.points
    ]
    # The bytes of the files differ: safetensors writes its header in an order that changes from process to process.
    weights = [weights_digest(run / "front" / str(k) / "model.safetensors") for k in range(len(points))]
    beside = sorted(str(path.relative_to(run)) for path in (run / "front").rglob("*"))
    assert (run / "report.html").read_text().rstrip().endswith("</html>")
    assert not [path for path in beside if path.endswith(".tmp")], "a leftover of a killed process is in the front"
    return trials(folder), points, weights, beside


def weights_digest(path: Path) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(load_file(path).items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def with_file(name: str | Path) -> Callable[[Path], Any]:
    """The outcome, and a JSON file of the run without its seconds and the digest of all that is in it."""
    return lambda folder: (outcome(folder), timeless(json.loads((folder / RUN / name).read_text())))


def timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: timeless(part) for key, part in value.items() if key not in ("seconds", "digest")}
    return [timeless(part) for part in value] if isinstance(value, list) else value


def on_a_server(folder: Path) -> None:
    """A search whose trials are on the server that the file ``server`` beside the folder names."""
    shown, secret = (folder.parent / "server").read_text().split()
    os.environ[VARIABLE] = secret
    # a new name each time: a kill while the run is made leaves one on the server, without a trial
    name = f"{folder.name}-{time.time_ns()}"
    searching(storage=shown, study=name, trials=10, agent="ddpg", prior="off")(folder)


def measured_file(folder: Path) -> Any:
    """The outcome, and what the device profile holds, without what a clock said."""
    content = json.loads((folder / "device.json").read_text())
    return outcome(folder), sorted(content)


def measuring(folder: Path) -> None:
    """A search that measures on a device without a clock: `phone.sh`, which writes down what it was asked."""
    searching(
        budget=["macs=0.5x", "latency@phone=9s"],
        runtimes=[f"phone=command:sh {Path(__file__).with_name('phone.sh')} {folder / 'asked'}"],
        measure_trials="off",
        latency_subnets=8,
    )(folder)


def measured(folder: Path) -> Any:
    """The outcome with all costs: there is no clock in them."""
    return outcome(folder), [trial.costs for trial in Study.read(folder / RUN).trials]


def asked(folder: Path) -> int:
    """How often the device has measured."""
    return len((folder / "asked").read_text().split())


def go_on_with_more(folder: Path) -> None:
    """Add trials to a finished run once."""
    planned = SearchConfig.read(folder / RUN).trials
    ap.resume(folder / RUN, trials=3 if planned == FINISHED["trials"] else None, **given())


def fine_tune_again(folder: Path) -> None:
    fine_tune(folder / RUN, ap.FineTune(epochs=4, lr=0.1), point=0, **given())


def train(folder: Path) -> None:
    if not (folder / "dense.safetensors").exists():
        source = ModelSource("autoprune.nets:small_resnet", {"widths": [8, 16], "blocks": [1, 1]})
        train_dense(source, "digits", folder / "dense.safetensors", settings={"epochs": 3, "lr": 0.1}, search_size=100)


def go_on_under_a_wild_clock(name: str, folder: str) -> None:
    """`go_on` while the wall clock of this process jumps between years, back as often as forward."""
    clock = ctypes.CDLL(None).faults_clock
    rng, before = random.Random(0), time.time()

    def jump() -> None:
        while True:
            clock(ctypes.c_double(rng.choice([-1e8, -86400, -3600, -60, -1, 0, 1, 60, 3600, 86400, 1e8])))
            time.sleep(0.02)

    clock(ctypes.c_double(-86400))
    assert time.time() < before - 80000
    threading.Thread(target=jump, daemon=True).start()
    go_on(name, folder)


def add_when_told(folder: str, at: float = 0.0) -> None:
    """Add two trials to the run as soon as the clock says `at`; scoring waits at the gate."""
    while time.time() < at:
        pass
    ap.resume(Path(folder) / RUN, trials=2, **given(), score=Gated(Path(folder)))


class Gated:
    """A score that tells that it is asked for, and then waits as long as there is the file ``gate``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(self, model: nn.Module, batches: Batches) -> float:
        while (self._folder / "gate").exists():
            (self._folder / f"waits-{os.getpid()}").touch()
            time.sleep(0.01)
        return accuracy(model, batches)


def command(*arguments: str) -> None:
    """What a shell runs as ``autoprune ARGUMENTS``."""
    cli.app(list(arguments))


def load_point(folder: str) -> None:
    """What somebody does who was given an exported folder."""
    ap.load(folder)


def make_everything(folder: Path) -> None:
    """A finished run with one of every file that there is, of things given by name."""
    source = ModelSource("autoprune.nets:small_resnet", {"widths": [8, 16], "blocks": [1, 1]})
    ap.search(
        source,
        data="digits",
        **{**SETTINGS, **CLOCKED, "points": 1},
        finetune=ap.FineTune(epochs=1, lr=0.1),
        importance="mean_activation",
        formats=["onnx"],
        run=folder / RUN,
        device_profile=folder / "device.json",
    )
    profile(folder / RUN, samples=100, levels=2)
    proxy(folder / RUN, candidates=5, epochs=1)


ONNX = ("onnx", "onnxscript", "onnxruntime", "networkx", "torch._dynamo", "torch.onnx._internal.exporter._core")

FINISHED: dict[str, Any] = {"trials": 3, "points": 2}
"""The run that phases start from which need a finished one."""

STARTS: dict[str, Callable[[Path], None]] = {
    "finished": lambda folder: search(folder, **FINISHED),
    "gated": lambda folder: search(folder, **FINISHED, score=Gated(folder)),
    "everything": make_everything,
}

TUNED = ap.FineTune(epochs=1, lr=0.1)
CLOCKED = {"budget": ["macs=0.5x", "latency=9s"], "measure_trials": "off", "trials": 3, "latency_subnets": 8}

PHASES = {
    phase.name: phase
    for phase in [
        Phase(
            "search to report",
            searching(trials=5, sweep=(1.0, 0.7), finetune=TUNED),
            outcome,
        ),
        Phase("search, statistical bounds", searching(trials=8, bounds="statistical", agent="evolution"), outcome),
        Phase("search, an agent that learns", searching(trials=10, agent="ddpg", prior="off"), outcome),
        Phase("search, an agent of Optuna", searching(trials=10, agent="tpe", prior="off"), outcome),
        Phase("table of the agent", searching(agent="bnb"), with_file("profile/prior.json")),
        Phase("latency model", measuring, measured, imports=ONNX),
        Phase(
            "device profile",
            lambda folder: searching(**CLOCKED, device_profile=folder / "device.json")(folder),
            measured_file,
        ),
        Phase("fine-tuning", searching(points=2, finetune=ap.FineTune(epochs=6, lr=0.1)), outcome),
        Phase("export", searching(trials=1, formats=["onnx"]), outcome, imports=ONNX),
        Phase("trials added", go_on_with_more, outcome, start="finished"),
        Phase("profile", lambda folder: profile(folder / RUN, samples=100, **given()), with_file(TABLE), "finished"),
        Phase("fine-tuning by hand", fine_tune_again, outcome, start="finished"),
        Phase(
            "proxy",
            lambda folder: proxy(folder / RUN, candidates=5, epochs=1, **given()),
            with_file(PROXY),
            start="finished",
        ),
        Phase("training", train, lambda folder: weights_digest(folder / "dense.safetensors")),
    ]
}

ON_A_SERVER = Phase("search on PostgreSQL", on_a_server, outcome)
"""Not of the others: it needs a server."""
