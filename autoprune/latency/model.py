"""Predict the latency of subnets of one network on one runtime.

Learns from whole subnets that were measured, and goes on learning. All samples count as ratios to the dense network:
give paired ones where you can.

Shape letters: n candidates, G groups.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from scipy.stats import norm, spearmanr

from autoprune.documents import parsing, read_document, write_document
from autoprune.latency.bayes import Posterior, Prior, fit
from autoprune.latency.features import Features
from autoprune.latency.samples import Sample, measure_samples
from autoprune.measure.device import device_fingerprint, device_info
from autoprune.measure.device_profile import DeviceProfile
from autoprune.measure.stopwatch import Stopwatch, batch_size
from autoprune.progress import NO_PROGRESS, Progress
from autoprune.search_spaces import Candidate, CostModel, SearchSpace, UserError
from autoprune.search_spaces.types import FloatArray, IntArray

FORMAT = 2
SMALLEST = 0.01
"""No subnet is predicted to cost less than this share of the dense network."""
STEPS = (1, 8, 16, 32)
"""Widths may count as rounded up to one of these: the device's blocks of channels, where samples show them."""
CLEARLY = 3.0
"""By how much the log evidence for steps must exceed that for none: e^3 is strong evidence (Kass & Raftery 1995)."""
LEAST_SD = 0.01
"""No subnet but the dense one is known to less than this share of its latency."""
INTERVAL = 0.9
"""Probability of the interval whose coverage `Error` states."""


@dataclass(frozen=True, slots=True)
class Error:
    """How good predictions are, each subnet predicted from all others.

    Attributes:
        mape: mean absolute relative error, 0.05 = 5 %; NaN for fewer than three subnets, as all of these.
        spearman: rank correlation of predicted and measured.
        coverage: share of subnets inside their two-sided 90 % interval.
        subnets: how many distinct ones were measured.
    """

    mape: float
    spearman: float
    coverage: float
    subnets: int

    def __str__(self) -> str:
        return (
            f"off by {self.mape:.1%} on average (leave-one-out over {self.subnets} measured subnets; rank correlation "
            f"{self.spearman:.3f}; {self.coverage:.0%} inside their {INTERVAL:.0%} interval)"
        )


class LatencyModel:
    """Predicted latency of the subnets of one network on one runtime at one batch size.

    Args:
        layers: what each module of the dense network takes, by path, in any unit, where a runtime tells.

    Attributes:
        dense_ms: of the dense network; predictions there are exactly this.
        samples: everything learnt from, in order.
        runtime: what was measured, for people, as `Runtime.describe` says it.
        batch: size of the batch that is timed.
        fingerprint: of the device; predictions hold only there.
    """

    def __init__(
        self,
        space: SearchSpace,
        dense_ms: float,
        samples: tuple[Sample, ...] = (),
        *,
        batch: int | None = None,
        layers: Mapping[str, float] | None = None,
        runtime: str = "",
    ) -> None:
        self.runtime = runtime
        self.fingerprint = device_fingerprint()
        self.dense_ms = _positive("latency of the dense network", dense_ms)
        self.batch = batch_size(space.example_inputs) if batch is None else batch
        self._space_fingerprint, self._dense, self._num_levels = space.fingerprint, space.dense, space.num_levels
        self._units, self._dense_units = space.units, space.units([space.dense])
        self._layers = dict(layers or {})
        self._stepped = [Features(space, step=step, layers=self._layers) for step in STEPS]
        self._prior = Prior(self._stepped[0].amounts)
        self.samples: tuple[Sample, ...] = ()
        for sample in samples:
            self._check(sample)
        self.samples = tuple(samples)
        self._fit()

    @classmethod
    def measure(
        cls,
        space: SearchSpace,
        stopwatch: Stopwatch,
        *,
        subnets: int = 28,
        seed: int = 0,
        accuracy: float | None = None,
        profile: DeviceProfile | None = None,
        progress: Progress = NO_PROGRESS,
    ) -> LatencyModel:
        """Measure `subnets` informative subnets, all interleaved with the dense network, and fit.

        What the profile of the device holds of this network is not measured again, and what is measured is kept there.

        Args:
            accuracy: of each ratio to the dense network; None for that of the stopwatch.

        Raises:
            UserError: the runtime cannot run one.
            TooNoisy: the device is too noisy for the accuracy.
        """
        dense_ms, samples = measure_samples(space, stopwatch, subnets, seed, accuracy, profile, progress)
        layers, runtime = stopwatch.layers(), stopwatch.runtime.describe()
        return cls(space, dense_ms, samples, batch=stopwatch.batch, layers=layers, runtime=runtime)

    # -- predictions ------------------------------------------------------------------------------------------------

    def predict(self, units: IntArray) -> tuple[FloatArray, FloatArray]:
        """Kept units [n, G] -> predicted ms [n], and the standard deviation of a new measurement around it [n].

        Exact at the dense network: (`dense_ms`, 0). The deviation grows with the distance from what was measured.
        """
        ratio, sd = self._posterior.predict(self._features(units))
        # widths that round up to the dense ones cost what those do, as far as is known, which is not all
        ratio = np.maximum(ratio, SMALLEST)
        sd = np.where((units == self._dense_units).all(axis=1), 0.0, np.maximum(self._inflation * sd, LEAST_SD * ratio))
        return ratio * self.dense_ms, sd * self.dense_ms

    def cost(self, *, confidence: float = INTERVAL) -> CostModel:
        """What a budget should reckon with: kept units [n, G] -> ms [n] that a measurement stays below this often.

        The upper end of the one-sided prediction interval; `dense_ms` at the dense network. 0.5 is the prediction
        itself. Later samples change it.

        Raises:
            UserError: a confidence outside [0.5, 1).
        """
        if not 0.5 <= confidence < 1:
            raise UserError(f"`0.5 <= confidence < 1` must hold, but got {confidence!r}. Write 90 % as 0.9.")
        quantile = float(norm.ppf(confidence))

        def upper(units: IntArray) -> FloatArray:
            ms, sd = self.predict(units)
            return ms + quantile * sd

        return upper

    # -- learning ---------------------------------------------------------------------------------------------------

    def learn(self, candidate: Candidate, ms: float, se: float = 0.0) -> None:
        """Add a sample measured later: a trial, a finalist. Best as its ratio to the dense network times `dense_ms`.

        The same samples in the same order give the same model, bit for bit. Repeats of a candidate are averaged.

        Raises:
            UserError: not a candidate of this space, or not a positive time.
        """
        sample = Sample(tuple(int(level) for level in candidate), float(ms), float(se))
        self._check(sample)
        self.samples = (*self.samples, sample)
        self._fit()

    def _check(self, sample: Sample) -> None:
        _positive("latency", sample.ms)
        if not (math.isfinite(sample.se) and sample.se >= 0):
            raise UserError(f"A standard error is a number of at least 0, but got {sample.se!r}.")
        levels = np.array(sample.candidate)
        if levels.shape != self._num_levels.shape or (levels < 0).any() or (levels >= self._num_levels).any():
            raise UserError(
                f"A candidate holds one level for each of {len(self._num_levels)} groups, below the group's number of "
                f"levels, but got {sample.candidate}."
            )

    def _fit(self) -> None:
        repeats: dict[Candidate, list[Sample]] = {}
        for sample in self.samples:
            if sample.candidate != self._dense:
                repeats.setdefault(sample.candidate, []).append(sample)
        ms = np.array([sum(s.ms for s in same) / len(same) for same in repeats.values()])
        errors = np.array([math.sqrt(sum(s.se**2 for s in same)) / len(same) for same in repeats.values()])
        units = self._units(list(repeats))
        posteriors = [fit(f(units), ms / self.dense_ms, errors / self.dense_ms, self._prior) for f in self._stepped]
        best = max(range(len(STEPS)), key=lambda i: posteriors[i].evidence - (CLEARLY if i else 0.0))
        self._features, self._posterior = self._stepped[best], posteriors[best]
        z = (ms / self.dense_ms - self._posterior.left_out) / self._posterior.left_out_sd
        # intervals are never narrower than the model says, and wider where left-out subnets say so
        self._inflation = max(1.0, float(np.sqrt(np.mean(z**2)))) if len(z) >= 3 else 1.0
        self.error = _error(ms / self.dense_ms, self._posterior, self._inflation)

    # -- files ------------------------------------------------------------------------------------------------------

    def save(self, path: Path) -> None:
        """Write as JSON, whole or not at all."""
        content = {
            "runtime": self.runtime,
            "device": device_info(),
            "fingerprint": self.fingerprint,
            "space": self._space_fingerprint,
            "batch": self.batch,
            "dense_ms": self.dense_ms,
            "layers": self._layers,
            "samples": [asdict(sample) for sample in self.samples],
        }
        write_document(path, FORMAT, content)

    @classmethod
    def load(cls, path: Path, space: SearchSpace) -> LatencyModel:
        """Read what `save` wrote.

        Raises:
            Damaged: missing, of an old format, or it cannot be read.
            Newer: of a format to come.
            UserError: of another network, or measured on another device.
        """
        content = read_document(path, FORMAT, oldest=FORMAT)
        with parsing(path):
            samples = tuple(Sample(tuple(s["candidate"]), s["ms"], s["se"]) for s in content["samples"])
            further = {name: content[name] for name in ("batch", "layers", "runtime")}
            space_then, device_then, dense_ms = content["space"], content["fingerprint"], content["dense_ms"]
            device = f"{content['device']['cpu']}, torch {content['device']['torch']}"
        if space_then != space.fingerprint:
            raise UserError(f"{path} was made for another network or other levels. Measure it again.")
        if device_then != device_fingerprint():
            raise UserError(f"{path} was measured on another device ({device}). Measure again on this one.")
        with parsing(path):
            return cls(space, dense_ms, samples, **further)


def _positive(what: str, value: float) -> float:
    if not (math.isfinite(value) and value > 0):
        raise UserError(f"The {what} must be a positive number, but got {value!r}.")
    return value


def _error(ratios: FloatArray, posterior: Posterior, inflation: float) -> Error:
    if len(ratios) < 3:
        return Error(math.nan, math.nan, math.nan, len(ratios))
    off = np.abs(posterior.left_out - ratios)
    inside = off <= norm.ppf(0.5 + INTERVAL / 2) * inflation * posterior.left_out_sd
    flat = np.ptp(posterior.left_out) == 0 or np.ptp(ratios) == 0  # no order to agree with
    correlation = math.nan if flat else spearmanr(posterior.left_out, ratios).statistic
    return Error(float((off / ratios).mean()), float(correlation), float(inside.mean()), len(ratios))
