"""A gauge: one runtime at one batch size, which predicts what candidates cost there, measures them and learns.

Budgets in milliseconds mean the milliseconds of this device as they were when the search began. A machine that others
use is slower in one hour than in the next, but then so is the dense network: what is measured later counts as its
ratio to the dense network, measured in the same rounds, times the dense latency of the beginning.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from functools import cached_property

import numpy as np
from torch import nn

from autoprune.agents.base import Reading
from autoprune.export_graph import Inputs
from autoprune.front import Measured
from autoprune.latency import LatencyModel
from autoprune.measure import Latency, Stopwatch
from autoprune.measure.energy import EnergyMeter
from autoprune.runtimes import Runtime
from autoprune.search_spaces import Candidate, CostModel, UserError
from autoprune.search_spaces.quantities import WORST
from autoprune.search_spaces.types import FloatArray, IntArray

OCCASIONS = 0.025
"""By so much the ratio of a network to the dense one may differ on another occasion (another process, an hour later),
however many rounds each takes: caches and clocks are others. See docs/latency-budgets.md."""


class Gauge:
    """One runtime at one batch size.

    Attributes:
        name: ``onnxruntime-1``: the device's name and the batch size.
        model: predicts; None before `Gauges.learn_devices` or `Gauges.load`.
        metered: whether the energy of runs is measured, too.
        watts: what the dense network takes; where that is measured only.
        slowdown: how much longer the dense network takes now than when `model` was made, at least 1; see `Gauges`.
    """

    def __init__(
        self, device: str, make: Callable[[], Runtime], dense: nn.Module, inputs: Inputs, batch: int, accuracy: float
    ) -> None:
        self.device, self.batch = device, batch
        self.name = f"{device}-{batch}"
        self.model: LatencyModel | None = None
        self.metered = False
        self.watts = 0.0
        self._make = make
        self.slowdown = 1.0
        self._dense, self._inputs, self._accuracy = dense, inputs, accuracy
        self._stopwatch: Stopwatch | None = None

    @cached_property
    def runtime(self) -> Runtime:
        """Made when it is first needed: looking at a run does not need what measured it.

        Raises:
            UserError: it is not installed here.
        """
        return self._make()

    @property
    def place(self) -> str:
        """What is busy while it measures: this machine, or the device that a command reaches."""
        runtime = self.runtime.describe()
        return runtime if self.runtime.clock == "reported" else socket.gethostname()

    @property
    def stopwatch(self) -> Stopwatch:
        """Opened when it is first needed: an export or a compilation of the dense network may be behind it."""
        if self._stopwatch is None:
            self._stopwatch = Stopwatch(
                self.runtime, self._dense, self._inputs, accuracy=self._accuracy, energy=self._meter()
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

    def _meter(self) -> EnergyMeter | None:
        if not self.metered:
            return None
        if self.runtime.clock in ("reported", "cuda events"):
            raise UserError(
                f"Energy is measured on the processor of this machine only, but {self.device} runs elsewhere. "
                "Limit latency there instead."
            )
        return EnergyMeter()

    def held_ms(self, latency: Latency) -> float:
        """What a limit is held against: upper end of a measured latency, or what another occasion may well show.

        In the milliseconds of the time when the model was made.
        """
        ratio, _, high = _ratio(latency)
        return max(high, ratio * (1 + OCCASIONS)) * self.predictor.dense_ms

    def reading(self, candidate: Candidate, latency: Latency) -> Reading:
        """What is learnt from a measurement."""
        assert latency.ratio is not None
        return Reading(candidate, self.name, round(latency.ratio, 6), round(latency.ratio_se, 6))

    def learn(self, reading: Reading) -> None:
        """Let the model learn a reading."""
        dense_ms = self.predictor.dense_ms
        self.predictor.learn(reading.candidate, reading.ratio * dense_ms, reading.se * dense_ms)


def cost_model(quantity: str, gauges: tuple[Gauge, ...], confidence: float, smallest: IntArray) -> CostModel:
    """A cost as a function of kept units: of several gauges (`WORST`) the largest.

    That of the smallest subnet [1, G] does not rise as models learn: what kept a budget in the beginning always will,
    so no agent and no projection finds itself without a candidate in the middle of a search.
    """
    models = [gauge.predictor.cost(confidence=confidence) for gauge in gauges]
    scales = [_scale(quantity, gauge) for gauge in gauges]

    def predict(units: IntArray) -> FloatArray:
        values: FloatArray = np.max([scale * model(units) for scale, model in zip(scales, models, strict=True)], axis=0)
        return values

    most = float(predict(smallest)[0])

    def cost(units: IntArray) -> FloatArray:
        values = predict(units)
        return np.where((units == smallest).all(axis=1), np.minimum(values, most), values)

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


def held(quantity: str, gauge: Gauge, latency: Latency) -> float:
    """What a limit on a cost is held against, of a measured network."""
    if quantity == "energy" and latency.energy_mj is not None:
        return latency.energy_mj * (1 + OCCASIONS) / gauge.batch
    return _scale(quantity, gauge) * gauge.held_ms(latency)


def measured_cost(quantity: str, gauge: Gauge, latency: Latency) -> Measured:
    """A measured cost for people, in the milliseconds of the measurement."""
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
