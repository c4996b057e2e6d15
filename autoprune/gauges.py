"""Gauges: what budgets on measured costs are held against, one for each device and batch size that a budget names.

A gauge predicts the latency of any candidate, measures the few that matter, and learns from each. Throughput is its
latency read the other way round; energy is measured along with it.

Budgets in milliseconds mean the milliseconds of this device as they were when the search began. A machine that others
use is slower in one hour than in the next, but then so is the dense network: what is measured later counts as its
ratio to the dense network, measured in the same rounds, times the dense latency of the beginning.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType

import numpy as np
from torch import nn

from autoprune.agents.base import Reading
from autoprune.config import SearchConfig
from autoprune.device_profile import DeviceProfile
from autoprune.energy import EnergyMeter
from autoprune.export_graph import Inputs, with_batch
from autoprune.files import read_json, write_json
from autoprune.front import Measured
from autoprune.latency import LatencyModel
from autoprune.measure import Latency, Stopwatch, batch_size
from autoprune.progress import Progress
from autoprune.runtimes import RUNTIMES, Runtime, make_runtime
from autoprune.search_spaces import Budget, Candidate, CostModel, SearchSpace, UserError, parse_cost
from autoprune.search_spaces.errors import unknown
from autoprune.search_spaces.quantities import WORST, is_measured
from autoprune.search_spaces.types import FloatArray, IntArray

FOLDER = Path("profile") / "latency"
"""Where a run folder keeps what its gauges have learnt, one file for each."""

WATTS = "watts.json"


OCCASIONS = 0.025
"""By so much the ratio of a network to the dense one may differ on another occasion (another process, an hour later),
however many rounds each takes: caches and clocks are others. See docs/latency-budgets.md."""


class Gauge:
    """One runtime at one batch size.

    Attributes:
        name: ``onnxruntime-1``: the device's name and the batch size.
        model: predicts; None before `learn_device` or `load`.
        energy: reads the energy of runs; None where no budget limits it.
        watts: what the dense network takes; with `energy` only.
        slowdown: how much longer the dense network takes now than when `model` was made, at least 1; set by `recheck`.
    """

    def __init__(
        self, device: str, runtime: Runtime, dense: nn.Module, inputs: Inputs, batch: int, accuracy: float
    ) -> None:
        self.device, self.runtime, self.batch = device, runtime, batch
        self.name = f"{device}-{batch}"
        self.model: LatencyModel | None = None
        self.energy: EnergyMeter | None = None
        self.watts = 0.0
        self.slowdown = 1.0
        self._dense, self._inputs, self._accuracy = dense, inputs, accuracy
        self._stopwatch: Stopwatch | None = None

    @property
    def stopwatch(self) -> Stopwatch:
        """Opened when it is first needed: an export or a compilation of the dense network may be behind it."""
        if self._stopwatch is None:
            self._stopwatch = Stopwatch(
                self.runtime, self._dense, self._inputs, accuracy=self._accuracy, energy=self.energy
            )
        return self._stopwatch

    @property
    def predictor(self) -> LatencyModel:
        """The model, which must be there."""
        assert self.model is not None, f"gauge {self.name} has learnt nothing yet"
        return self.model

    def close(self) -> None:
        """Free what the runtime holds."""
        if self._stopwatch is not None:
            self._stopwatch.close()
            self._stopwatch = None

    def held_ms(self, latency: Latency) -> float:
        """What a limit is held against: upper end of a measured latency, or what another occasion may well show.

        In the milliseconds of the time when the model was made.
        """
        ratio, _, high = _ratio(latency)
        return max(high, ratio * (1 + OCCASIONS)) * self.predictor.dense_ms

    def reading(self, candidate: Candidate, latency: Latency) -> Reading:
        """What is learnt from a measurement, in the same milliseconds."""
        scale = self.predictor.dense_ms
        ratio, _, _ = _ratio(latency)
        return Reading(candidate, self.name, round(ratio * scale, 6), round(latency.ratio_se * scale, 6))


class Gauges:
    """The gauges of a search, and the costs that are read from them.

    Attributes:
        gauges: the first is the one that front points are shown with.
        costs: cost name -> (quantity, its gauges): one, or for `WORST` all that measure latency.
    """

    def __init__(self, gauges: Iterable[Gauge], costs: Mapping[str, tuple[str, tuple[Gauge, ...]]]) -> None:
        self.gauges = tuple(gauges)
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

    def learn_devices(self, space: SearchSpace, config: SearchConfig, progress: Progress) -> None:
        """Measure what the models need, or take it from the device profile."""
        profile = None if config.device_profile is None else DeviceProfile(config.device_profile)
        for gauge in self.budgeted:
            gauge.model = LatencyModel.measure(
                space,
                gauge.stopwatch,
                subnets=config.latency_subnets,
                seed=config.seed,
                profile=profile,
                progress=progress,
            )
            progress.say(f"Latency on {gauge.device}, batch {gauge.batch}: {gauge.model.error}.")
            if gauge.energy is not None:
                dense = gauge.stopwatch.measure({})["dense"]
                gauge.watts = (dense.energy_mj or 0.0) / dense.ms

    def slowdown(self, cost: str) -> float:
        """How much longer the dense network takes now than when the models were made, by `recheck`; at least 1."""
        return max(gauge.slowdown for gauge in self.costs[cost][1])

    def recheck(self, progress: Progress) -> None:
        """Compare the dense latency of today with that of the models, for limits in absolute units."""
        for gauge in self.budgeted:
            now, then = gauge.stopwatch.measure({})["dense"].ms, gauge.predictor.dense_ms
            gauge.slowdown = max(1.0, now / then)
            if gauge.slowdown > 1.1:
                progress.say(
                    f"{gauge.device}: the dense network takes {now:.3g} ms now and took {then:.3g} ms when the search "
                    "began. Points are held to limits in the slower milliseconds of now."
                )

    def save(self, run: Path) -> None:
        """Write what was learnt before the first trial into a run folder."""
        for gauge in self.budgeted:
            path = run / FOLDER / f"{gauge.name}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            gauge.predictor.save(path)
        watts = {gauge.name: gauge.watts for gauge in self.budgeted if gauge.energy is not None}
        if watts:
            write_json(run / FOLDER / WATTS, watts)

    def load(self, space: SearchSpace, run: Path) -> None:
        """Read what `save` wrote.

        Raises:
            UserError: it is missing, damaged, or of another device.
        """
        again = f"Measure again on this device: autoprune resume {run} --measure-latency."
        for gauge in self.budgeted:
            path = run / FOLDER / f"{gauge.name}.json"
            if not path.is_file():
                raise UserError(f"The budget limits latency, but {run} holds no latency model ({path.name}). {again}")
            try:
                gauge.model = LatencyModel.load(path, space)
            except UserError as error:
                raise UserError(f"{error} {again}") from None
            if gauge.energy is not None:
                gauge.watts = float(read_json(run / FOLDER / WATTS)[gauge.name])

    def add_costs(self, space: SearchSpace, confidence: float) -> None:
        """Let the space tell the costs: upper ends of prediction intervals, which move as the models learn."""
        for cost, (quantity, gauges) in self.costs.items():
            space.add_cost(cost, _cost_model(quantity, gauges, confidence))

    def measure(
        self,
        models: Mapping[str, nn.Module],
        *,
        accuracy: float | None = None,
        min_rounds: int | None = None,
        progress: Progress | None = None,
    ) -> dict[str, dict[str, Latency]]:
        """Measure networks on every gauge, interleaved with the dense one: gauge name -> network name -> latency."""
        return {
            gauge.name: gauge.stopwatch.measure(models, accuracy=accuracy, min_rounds=min_rounds, progress=progress)
            for gauge in self.gauges
        }

    def values(self, found: Mapping[str, Latency]) -> dict[str, float]:
        """What limits are held against: costs of a measured network, from its latency by gauge name.

        Upper ends of their intervals, in the milliseconds of the time when the models were made.
        """
        return {
            cost: max(_held(quantity, gauge, found[gauge.name]) for gauge in gauges)
            for cost, (quantity, gauges) in self.costs.items()
        }

    def measured(self, found: Mapping[str, Latency]) -> dict[str, Measured]:
        """The same costs, for people, in the milliseconds of the measurement.

        Without a limit on one, the latency of the first gauge.
        """
        costs = self.costs or {"latency": ("latency", self.gauges[:1])}
        return {
            cost: max(_measured(quantity, gauge, found[gauge.name]) for gauge in gauges)
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
                by_name[reading.gauge].predictor.learn(reading.candidate, reading.ms, reading.se)


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
        runtime = make_runtime(devices.get(name, name), threads=config.latency_threads, device=config.device)
        inputs = space.example_inputs if batch == own_batch else with_batch(space.example_inputs, own_batch, batch)
        new = Gauge(name, runtime, space.model, inputs, batch, config.latency_accuracy)
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
                costs[cost][1][0].energy = EnergyMeter()
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
        devices[name] = spec
    return devices


def _cost_model(quantity: str, gauges: tuple[Gauge, ...], confidence: float) -> CostModel:
    models = [gauge.predictor.cost(confidence=confidence) for gauge in gauges]
    scales = [_scale(quantity, gauge) for gauge in gauges]

    def cost(units: IntArray) -> FloatArray:
        values: FloatArray = np.max([scale * model(units) for scale, model in zip(scales, models, strict=True)], axis=0)
        return values

    return cost


def _scale(quantity: str, gauge: Gauge) -> float:
    """What a cost is of one predicted millisecond."""
    if quantity == WORST:
        return 1 / gauge.predictor.dense_ms
    if quantity == "energy":  # power hardly depends on the widths: millijoules of the dense network per millisecond
        return gauge.watts / gauge.batch
    return 1 / gauge.batch if quantity == "throughput" else 1.0


def _ratio(latency: Latency) -> tuple[float, float, float]:
    """Share of the dense latency, with its interval."""
    assert latency.ratio is not None
    assert latency.ratio_low is not None
    assert latency.ratio_high is not None
    return latency.ratio, latency.ratio_low, latency.ratio_high


def _held(quantity: str, gauge: Gauge, latency: Latency) -> float:
    if quantity == "energy" and latency.energy_mj is not None:
        return latency.energy_mj / gauge.batch
    return _scale(quantity, gauge) * gauge.held_ms(latency)


def _measured(quantity: str, gauge: Gauge, latency: Latency) -> Measured:
    ratio, low, high = _ratio(latency)
    if quantity == WORST:
        return Measured(ratio, low, high)
    if quantity == "energy":
        value = (latency.energy_mj or 0.0) / gauge.batch
        return Measured(value, value, value)
    if quantity == "throughput":
        return Measured(
            latency.ms / gauge.batch, latency.low_ms / gauge.batch, latency.high_ms / gauge.batch, 1 / ratio
        )
    return Measured(latency.ms, latency.low_ms, latency.high_ms, ratio)
