"""What budgets on measured costs are held against: a gauge for each device and batch size that a budget names.

Throughput is the latency of a gauge read the other way round; energy is measured along with it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from types import TracebackType

from torch import nn

from autoprune import stopping
from autoprune.agents.base import Reading
from autoprune.config import SearchConfig
from autoprune.documents import Unreadable, parsing, read_document, usable, write_document
from autoprune.export_graph import with_batch
from autoprune.front import Measured
from autoprune.gauge import Gauge, cost_model, held, measured_cost
from autoprune.latency import LatencyModel
from autoprune.measure import Latency, batch_size
from autoprune.measure.device_profile import DeviceProfile
from autoprune.progress import Progress
from autoprune.runtimes import RUNTIMES, make_runtime
from autoprune.search_spaces import Budget, Candidate, SearchSpace, UserError, parse_cost
from autoprune.search_spaces.errors import unknown
from autoprune.search_spaces.quantities import WORST, is_measured

FOLDER = Path("profile") / "latency"
"""Where a run folder keeps what its gauges have learnt, one file for each."""

WATTS = "watts.json"

FORMAT = 1


class Gauges:
    """The gauges of a search, and the costs that are read from them.

    Attributes:
        gauges: the first is the one that front points are shown with.
        lend: holds a device, by its name, while something is measured on it: for one worker at a time.
        measuring: whether anything is measured by this process; a worker that only predicts needs no such device.
        mend: what to do where `load` finds that this is another device; None: measure it.
        costs: cost name -> (quantity, its gauges): one, or for `WORST` all that measure latency.
    """

    def __init__(self, gauges: Iterable[Gauge], costs: Mapping[str, tuple[str, tuple[Gauge, ...]]]) -> None:
        self.gauges = tuple(gauges)
        self.lend: Callable[[str], AbstractContextManager[object]] = nullcontext
        self.measuring = True
        self.mend: str | None = None
        self.costs = dict(costs)

    @property
    def budgeted(self) -> tuple[Gauge, ...]:
        """Those that a limit is held against: these have a model."""
        return tuple(dict.fromkeys(gauge for _, gauges in self.costs.values() for gauge in gauges))

    def __enter__(self) -> Gauges:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for gauge in self.gauges:
            gauge.close()

    def learn_devices(
        self,
        gauges: Iterable[Gauge],
        space: SearchSpace,
        config: SearchConfig,
        run: Path,
        profile: DeviceProfile,
        progress: Progress,
    ) -> None:
        """Measure what the models of some gauges need, as far as the profile does not hold it; write each to `run`."""
        for gauge in gauges:
            with self.lend(gauge.place):
                gauge.model = LatencyModel.measure(
                    space,
                    gauge.stopwatch,
                    subnets=config.latency_subnets,
                    seed=config.seed,
                    profile=profile,
                    progress=progress,
                )
            progress.say(f"Latency on {gauge.device}, batch {gauge.batch}: {gauge.model.error}.")
            if gauge.metered:
                dense = gauge.stopwatch.measure({})["dense"]
                gauge.watts = (dense.energy_mj or 0.0) / dense.ms
            self.save(run)
            stopping.check()

    def slowdown(self, cost: str) -> float:
        """How much longer the dense network takes now than when the models were made, by `recheck`; at least 1."""
        return max(gauge.slowdown for gauge in self.costs[cost][1])

    def recheck(self, found: Mapping[str, Mapping[str, Latency]], progress: Progress) -> None:
        """Compare the dense latency of a measurement with that of the models, for limits in absolute units."""
        for gauge in self.budgeted:
            now, then = found[gauge.name]["dense"].ms, gauge.predictor.dense_ms
            if now / then > gauge.slowdown:
                gauge.slowdown = now / then
                if gauge.slowdown > 1.1:
                    progress.say(
                        f"{gauge.device}: the dense network takes {now:.3g} ms now and took {then:.3g} ms when the "
                        "search began. Points are held to limits in the slower milliseconds of now."
                    )

    def save(self, run: Path) -> None:
        """Write what was learnt before the first trial into a run folder."""
        learnt = [gauge for gauge in self.budgeted if gauge.model is not None]
        watts = {gauge.name: gauge.watts for gauge in learnt if gauge.metered}
        if watts:
            write_document(run / FOLDER / WATTS, FORMAT, watts)
        for gauge in learnt:
            gauge.predictor.save(run / FOLDER / f"{gauge.name}.json")

    def load(self, space: SearchSpace, run: Path, progress: Progress) -> list[Gauge]:
        """Read what `save` wrote; return the gauges of which it is missing or damaged.

        Raises:
            UserError: it is of another device or network, or written by a newer release.
        """
        loads = [(gauge, partial(self._load, gauge, space, run)) for gauge in self.budgeted]
        return [gauge for gauge, load in loads if usable(load, progress, "it is measured again") is None]

    def _load(self, gauge: Gauge, space: SearchSpace, run: Path) -> LatencyModel:
        again = f"Measure again on this device: autoprune resume {run} --measure-latency."
        path = run / FOLDER / f"{gauge.name}.json"
        try:
            model = LatencyModel.load(path, space)
        except Unreadable:
            raise
        except UserError as error:
            raise UserError(f"{error} {again}") from None
        if self.measuring and model.runtime != gauge.runtime.describe():
            raise UserError(
                f"{path.name} was measured on {model.runtime}, this is {gauge.runtime.describe()}. {self.mend or again}"
            )
        if gauge.metered:
            watts = read_document(run / FOLDER / WATTS, FORMAT)
            with parsing(run / FOLDER / WATTS):
                gauge.watts = float(watts[gauge.name])
        gauge.model = model
        return model

    def add_costs(self, space: SearchSpace, confidence: float) -> None:
        """Let the space tell the costs: upper ends of prediction intervals, which move as the models learn."""
        for cost, (quantity, gauges) in self.costs.items():
            space.add_cost(cost, cost_model(quantity, gauges, confidence, space.units([space.smallest])))

    def measure(
        self,
        models: Mapping[str, nn.Module],
        *,
        accuracy: float | None = None,
        min_rounds: int | None = None,
        progress: Progress | None = None,
    ) -> dict[str, dict[str, Latency]]:
        """Measure networks on every gauge, interleaved with the dense one: gauge name -> network name -> latency."""
        found = {}
        for gauge in self.gauges:
            with self.lend(gauge.place):
                found[gauge.name] = gauge.stopwatch.measure(
                    models, accuracy=accuracy, min_rounds=min_rounds, progress=progress
                )
        return found

    def values(self, found: Mapping[str, Latency]) -> dict[str, float]:
        """What limits are held against: costs of a measured network, from its latency by gauge name.

        Upper ends of their intervals, in the milliseconds of the time when the models were made.
        """
        return {
            cost: max(held(quantity, gauge, found[gauge.name]) for gauge in gauges)
            for cost, (quantity, gauges) in self.costs.items()
        }

    def measured(self, found: Mapping[str, Latency]) -> dict[str, Measured]:
        """The same costs, for people, in the milliseconds of the measurement.

        Without a limit on one, the latency of the first gauge.
        """
        costs = self.costs or {"latency": ("latency", self.gauges[:1])}
        return {
            cost: max(measured_cost(quantity, gauge, found[gauge.name]) for gauge in gauges)
            for cost, (quantity, gauges) in costs.items()
        }

    def readings(self, candidate: Candidate, found: Mapping[str, Latency]) -> tuple[Reading, ...]:
        """What the models will learn from a measured candidate."""
        return tuple(gauge.reading(candidate, found[gauge.name]) for gauge in self.budgeted)

    def learn(self, readings: Iterable[Reading]) -> None:
        """Let the models learn, in the order given."""
        by_name = {gauge.name: gauge for gauge in self.budgeted}
        for reading in readings:
            if reading.gauge in by_name:
                by_name[reading.gauge].learn(reading)


def make_gauges(config: SearchConfig, budget: Budget, space: SearchSpace) -> Gauges:
    """The gauges that a budget needs; where it limits nothing measured, one of the first runtime, to show points with.

    Raises:
        UserError: an unknown device or runtime, or one that is not installed.
    """
    devices = named_devices(config)
    own_batch = batch_size(space.example_inputs)
    made: dict[str, Gauge] = {}

    def gauge(device: str | None, batch: int) -> Gauge:
        name = next(iter(devices)) if device is None else device
        if name not in devices and name not in RUNTIMES:
            raise unknown("device in the budget:", name, [*devices, *RUNTIMES, WORST])
        spec = devices.get(name, name)
        on = config.device if spec.partition(":")[0] in ("eager", "compile") else "cpu"
        make = partial(make_runtime, spec, threads=config.latency_threads, device=on)
        inputs = space.example_inputs if batch == own_batch else with_batch(space.example_inputs, own_batch, batch)
        new = Gauge(name, make, space.model, inputs, batch, config.latency_accuracy)
        return made.setdefault(new.name, new)

    costs: dict[str, tuple[str, tuple[Gauge, ...]]] = {}
    for cost in budget.costs:
        if not is_measured(cost):
            continue
        quantity, device = parse_cost(cost)
        if device == WORST:
            costs[cost] = WORST, tuple(gauge(name, own_batch) for name in devices)
        else:
            batch = config.throughput_batch if quantity == "throughput" else own_batch
            costs[cost] = quantity, (gauge(device, batch),)
            if quantity == "energy":
                costs[cost][1][0].metered = True
    if not costs:
        gauge(None, own_batch)
    return Gauges(made.values(), costs)


def named_devices(config: SearchConfig) -> dict[str, str]:
    """Device name -> runtime: of ``phone=command:./time.sh`` what was given, of ``onnxruntime`` the runtime's own."""
    devices = {}
    for text in config.runtimes:
        name, equals, spec = text.partition("=")
        if not equals or ":" in name:  # a setting of a runtime, not a name
            name, spec = text.partition(":")[0], text
        name = name.strip().lower()  # as in budgets
        if name == WORST or not re.fullmatch(r"[a-z0-9_-]+", name):
            raise UserError(
                f"A device is named with letters, digits, - and _, and not {WORST!r}, but got {text!r}. "
                "Write NAME=RUNTIME, for example phone=command:./time.sh."
            )
        if name in devices:
            raise UserError(
                f"The device {name!r} is given twice. Give one of them another name: --runtime NAME={spec}."
            )
        devices[name] = spec
    return devices
