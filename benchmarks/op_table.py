"""Predict the latency of a candidate: a table of its ops at several widths, calibrated on whole subnets.

Every distinct op of the trace is timed on this device at a small grid of widths. A candidate's ops are looked up by
interpolation and added; a table alone is off by 7-40 % (ops are faster or slower inside a network than alone), so
``latency = intercept + slope * sum`` is fitted on whole subnets that were measured, and the leave-one-out error of
that fit is stated. Predictions are vectorised over candidates and cost microseconds.

Unit: milliseconds for one forward pass at the batch size of the traced example, eager mode.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import nnls

from autoprune.files import atomic_write, read_json
from autoprune.latency.features import is_work
from autoprune.measure import measure
from autoprune.measure.device import device_fingerprint, device_info
from autoprune.progress import NO_PROGRESS, Progress
from autoprune.search_spaces import Candidate, SearchSpace, UserError
from autoprune.search_spaces.costs import Products, spec_numel
from autoprune.search_spaces.tracer import Op
from autoprune.search_spaces.types import FloatArray, IntArray
from benchmarks.op_replay import Widths, make_call, scaled, scaled_shape, signature, time_call, widths_of

FORMAT = 1
SHARES = (0.125, 0.375, 0.75, 1.0)
"""Shares of the dense width at which ops are timed."""


@dataclass(frozen=True, slots=True)
class OpTimes:
    """Times of one distinct op.

    Attributes:
        inputs, outputs: shares of the dense widths that were measured, ascending, one per entry of `SHARES`.
        ms: [inputs, outputs] milliseconds; made monotone, since a wider op is no faster but for noise.
    """

    inputs: tuple[float, ...]
    outputs: tuple[float, ...]
    ms: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True)
class Sample:
    """A whole subnet that was measured: predicted is by the fit on all samples."""

    candidate: Candidate
    sum_ms: float
    measured_ms: float
    predicted_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyTable:
    """What was learnt about one network on one device; `predictor` makes it a cost of the search space.

    Attributes:
        error: mean absolute relative error of leave-one-out predictions over `samples`, 0.05 = 5 %.
        fingerprint: of the device; predictions hold only there.
    """

    times: Mapping[str, OpTimes]
    intercept_ms: float
    slope: float
    error: float
    samples: tuple[Sample, ...]
    threads: int
    batch: int
    device: Mapping[str, Any]
    fingerprint: str

    @classmethod
    def measure(
        cls,
        space: SearchSpace,
        *,
        threads: int = 1,
        repeats: int = 15,
        subnets: int = 10,
        seed: int = 0,
        progress: Progress = NO_PROGRESS,
    ) -> LatencyTable:
        """Time the ops of `space` and `subnets` whole networks on the device of the model."""
        times = time_ops(space, threads, progress)
        candidates = _calibration_candidates(space, subnets, seed)
        models = {str(i): space.materialise(c, share=True) for i, c in enumerate(candidates)}
        latencies = measure(models, space.example_inputs, repeats=repeats, threads=threads, progress=progress)
        measured = np.array([latency.median_ms for latency in latencies.values()])
        sums = Interpolation(space, times)(space.units(candidates))
        intercept, slope = _fit(sums, measured)
        return cls(
            times=times,
            intercept_ms=intercept,
            slope=slope,
            error=_leave_one_out_error(sums, measured),
            samples=tuple(
                Sample(c, round(float(s), 5), round(float(m), 5), round(float(intercept + slope * s), 5))
                for c, s, m in zip(candidates, sums, measured, strict=True)
            ),
            threads=threads,
            batch=next(iter(latencies.values())).batch,
            device=device_info(),
            fingerprint=device_fingerprint(),
        )

    def predictor(self, space: SearchSpace) -> _Predictor:
        """The predicted latency as a function of kept units [n, G] -> milliseconds [n].

        Raises:
            UserError: the table was made for another network.
        """
        return _Predictor(Interpolation(space, self.times), self.intercept_ms, self.slope)

    def save(self, path: Path) -> None:
        """Write as JSON, whole or not at all."""
        content = {"format": FORMAT, **asdict(self)}
        atomic_write(path, json.dumps(content, indent=1))

    @classmethod
    def load(cls, path: Path) -> LatencyTable:
        """Read what `save` wrote.

        Raises:
            UserError: missing, damaged, of another format, or measured on another device.
        """
        content = read_json(path)
        try:
            if content.pop("format") != FORMAT:
                raise UserError(f"{path} has another format than this release writes; measure it again.")
            content["times"] = {
                key: OpTimes(tuple(v["inputs"]), tuple(v["outputs"]), tuple(map(tuple, v["ms"])))
                for key, v in content["times"].items()
            }
            content["samples"] = tuple(
                Sample(**{**sample, "candidate": tuple(sample["candidate"])}) for sample in content["samples"]
            )
            table = cls(**content)
        except (AttributeError, KeyError, TypeError) as error:
            raise UserError(f"{path} is damaged ({error}); delete it to measure again.") from error
        if table.fingerprint != device_fingerprint():
            raise UserError(
                f"{path} was measured on another device ({table.device.get('cpu')}, torch {table.device.get('torch')})."
                " Measure again on this one."
            )
        return table


class _Predictor:
    """`CostModel`: calibrated sum of interpolated op times."""

    def __init__(self, interpolation: Interpolation, intercept_ms: float, slope: float) -> None:
        self._interpolation, self._intercept_ms, self._slope = interpolation, intercept_ms, slope

    def __call__(self, units: IntArray) -> FloatArray:
        return self._intercept_ms + self._slope * self._interpolation(units)


class Interpolation:
    """Sum over the ops of a space of their times, bilinear in the shares of their two widths.

    Letters: n candidates, K ops, P = len(SHARES).
    """

    def __init__(self, space: SearchSpace, times: Mapping[str, OpTimes]) -> None:
        ops = [op for op in space.ops if is_work(op)]
        missing = [op for op in ops if signature(op) not in times]
        if missing:
            raise UserError(
                f"The latency table knows nothing of {missing[0].func} in {missing[0].module!r}: it was made for "
                "another network. Measure it again."
            )
        entries = [times[signature(op)] for op in ops]
        inputs, outputs = [], []
        for op in ops:
            widths = widths_of(op)
            inputs.append([widths.inputs] if widths and widths.inputs else [])
            outputs.append(([widths.outputs] if widths.outputs else []) if widths else spec_numel(op.outputs[0]))
        self._positions = space.positions
        self._inputs, self._outputs = Products(space.counts, inputs), Products(space.counts, outputs)
        dense = self._positions(space.units([space.dense]))
        self._dense = self._inputs(dense)[0].astype(np.float64), self._outputs(dense)[0].astype(np.float64)
        self._grid_in = np.array([e.inputs for e in entries])  # [K, P]
        self._grid_out = np.array([e.outputs for e in entries])
        self._ms = np.array([e.ms for e in entries])  # [K, P, P]

    def __call__(self, units: IntArray) -> FloatArray:
        positions = self._positions(units)
        i, u = _place(self._grid_in, self._inputs(positions) / self._dense[0])
        j, v = _place(self._grid_out, self._outputs(positions) / self._dense[1])
        k = np.arange(len(self._ms))
        low = (1 - v) * self._ms[k, i, j] + v * self._ms[k, i, j + 1]
        high = (1 - v) * self._ms[k, i + 1, j] + v * self._ms[k, i + 1, j + 1]
        total: FloatArray = ((1 - u) * low + u * high).sum(1)
        return total


def _place(grid: FloatArray, share: FloatArray) -> tuple[IntArray, FloatArray]:
    """Interval of `grid` [K, P] in which each share [n, K] lies, and the position inside it, clipped to [0, 1]."""
    index = np.clip((share[:, :, None] >= grid).sum(2) - 1, 0, grid.shape[1] - 2)
    k = np.arange(len(grid))
    low, high = grid[k, index], grid[k, index + 1]
    return index, np.clip((share - low) / (high - low), 0.0, 1.0)


def time_ops(space: SearchSpace, threads: int, progress: Progress) -> dict[str, OpTimes]:
    """Times of every distinct op; the process's number of threads is put back."""
    distinct = {signature(op): op for op in space.ops if is_work(op)}
    device = next(space.model.parameters()).device
    before = torch.get_num_threads()
    times = {}
    with progress.task("Measuring ops", total=len(distinct), unit="ops") as task:
        try:
            torch.set_num_threads(threads)
            for key, op in distinct.items():
                times[key] = _time_op(op, device)
                task.advance(1)
        finally:
            torch.set_num_threads(before)
    return times


def _time_op(op: Op, device: torch.device) -> OpTimes:
    widths = widths_of(op)
    inputs, outputs = _grids(op, widths)
    ms = np.zeros((len(SHARES), len(SHARES)))
    dense = _time_share(op, (1.0, 1.0), device, otherwise=0.0)
    timed: dict[tuple[float, float], float] = {(1.0, 1.0): dense}
    for i, input_share in enumerate(SHARES):
        for j, output_share in enumerate(SHARES):
            # a width that cannot shrink is measured once
            share = (input_share if inputs else 1.0, output_share if outputs else 1.0)
            if share not in timed:
                timed[share] = _time_share(op, share, device, otherwise=dense)
            ms[i, j] = timed[share]
    monotone = np.maximum.accumulate(np.maximum.accumulate(ms, axis=0), axis=1)
    return OpTimes(
        inputs or SHARES, outputs or SHARES, tuple(tuple(round(float(v), 6) for v in row) for row in monotone)
    )


def _time_share(op: Op, share: tuple[float, float], device: torch.device, *, otherwise: float) -> float:
    """Milliseconds at these shares; `otherwise` for an op that does not run alone at other sizes (its arguments hold
    sizes of their own): then it counts as in the dense network, or as nothing, and calibration makes up for it.
    """
    try:
        return time_call(make_call(op, share, device), device)
    except (RuntimeError, IndexError, ValueError, TypeError):
        return otherwise


def _grids(op: Op, widths: Widths | None) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Shares that are really measured for the two widths, empty where one cannot shrink: sizes are whole numbers."""
    if widths is not None:
        first, second = (
            tuple(scaled(f.atoms.size, s) / f.atoms.size for s in SHARES) if f else ()
            for f in (widths.inputs, widths.outputs)
        )
        return _ascending(first), _ascending(second)
    spec = op.outputs[0]
    if not spec.labels:
        return (), ()
    full = np.prod(spec.shape)
    return (), _ascending(tuple(float(np.prod(scaled_shape(spec, s)) / full) for s in SHARES))


def _ascending(shares: tuple[float, ...]) -> tuple[float, ...]:
    """Narrow layers round two shares to one width: keep the grid strictly ascending for the interpolation."""
    return tuple(s + 1e-9 * i for i, s in enumerate(shares))


def _calibration_candidates(space: SearchSpace, count: int, seed: int) -> list[Candidate]:
    """The dense network, the smallest, and between them random ones around a uniform ratio that differs for each."""
    rng = np.random.default_rng((seed, count))
    candidates = [space.dense, space.smallest]
    for ratio in np.linspace(0.9, 0.2, max(count - 2, 0)):
        wishes = np.clip(ratio + rng.uniform(-0.3, 0.3, len(space.groups)), 0, 1)
        candidates.append(space.candidate({g.name: float(w) for g, w in zip(space.groups, wishes, strict=True)}))
    return list(dict.fromkeys(candidates))


def _fit(sums: FloatArray, measured: FloatArray) -> tuple[float, float]:
    """Non-negative intercept and slope with the least relative squared error."""
    weights = 1 / measured
    solution, _ = nnls(np.stack([weights, sums * weights], axis=1), np.ones(len(sums)))
    return float(solution[0]), float(solution[1])


def _leave_one_out_error(sums: FloatArray, measured: FloatArray) -> float:
    errors = []
    for i in range(len(sums)):
        rest = np.arange(len(sums)) != i
        if rest.sum() >= 2:
            intercept, slope = _fit(sums[rest], measured[rest])
            errors.append(abs(intercept + slope * sums[i] - measured[i]) / measured[i])
    return float(np.mean(errors)) if errors else float("nan")


def describe(table: LatencyTable) -> str:
    """One line for people: how good the predictor is and what it was measured on."""
    threads = "1 thread" if table.threads == 1 else f"{table.threads} threads"
    return (
        f"predicted latency is off by {table.error:.1%} on average (leave-one-out over {len(table.samples)} measured "
        f"subnets; eager, batch {table.batch}, {threads}, {table.device.get('cpu')})"
    )


__all__ = ["FORMAT", "LatencyTable", "OpTimes", "Sample", "describe"]
