"""Find out where the time of a network goes on a runtime, and what cuts of each group would save.

Every number is of the whole network as the runtime runs it: the share of each layer is the runtime's own view, and what
a cut saves is found by timing the subnet in turn with the dense network. Where that would take too long, the smaller
cuts are predicted by a `LatencyModel` that knows the larger ones, and marked as predicted.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import nn

from autoprune.energy import EnergyMeter
from autoprune.export_graph import as_inputs
from autoprune.latency import LatencyModel
from autoprune.latency_profile import Cut, LatencyProfile, Saving, describe_inputs, layers_of
from autoprune.measure import Latency, Stopwatch
from autoprune.progress import NO_PROGRESS, Progress
from autoprune.running import evaluation_mode
from autoprune.runtimes import Runtime, make_runtime
from autoprune.search_spaces import Candidate, SearchSpace, UserError, trace
from autoprune.search_spaces.tracer import tensors

CUTS = (0.1, 0.25, 0.5)
TOGETHER = 8
"""Subnets that are timed in turn with each other and the dense network: more would hold too much memory."""
MODEL_SUBNETS = 15
"""Whole subnets, next to the measured cuts, from which the cuts that were not measured are predicted."""
_Z = 1.96


def profile_latency(
    model: nn.Module,
    inputs: Any,
    *,
    runtime: str | Runtime = "eager",
    threads: int = 1,
    cuts: Sequence[float] = CUTS,
    align: int = 8,
    seconds: float = 120.0,
    accuracy: float = 0.005,
    network: str | None = None,
    progress: Progress = NO_PROGRESS,
) -> LatencyProfile:
    """Time a dense network, its layers, and subnets in which one group is cut.

    Args:
        model: not changed.
        inputs: a tensor, a tuple of positional or a dict of keyword arguments, at the batch size to measure.
        runtime: a runtime, or how one is written: ``"onnxruntime"``, ``"eager:precision=bf16"``.
        threads: that work on one run; not used where `runtime` is no text.
        cuts: shares of a group's units to cut, each in (0, 1).
        align: channel counts are multiples of this where a layer is wide enough.
        seconds: about how long subnets are measured, the deepest cuts first; the others are predicted. 0 predicts all.
        accuracy: half-width of the interval of a latency at which measuring stops, as a share of it.
        network: what to call the model; None for the name of its class.

    Raises:
        UserError: the model does not run on the inputs, an unknown runtime or one that is not installed, a machine too
            noisy to measure, or a value out of range. A model that cannot be traced is no error: see
            `LatencyProfile.refusal`.
    """
    if not cuts or any(not 0 < cut < 1 for cut in cuts):
        raise UserError(f"A cut is a share of the units between 0 and 1, but got {list(cuts)}. Write 25 % as 0.25.")
    runtime = make_runtime(runtime, threads=threads) if isinstance(runtime, str) else runtime
    _check_runs(model, inputs)
    space, refusal = _traced(model, inputs, align)
    energy, no_energy = _energy_meter()
    with Stopwatch(runtime, model, inputs, accuracy=accuracy, energy=energy) as stopwatch:
        dense = stopwatch.measure({}, progress=progress)["dense"]
        layers, timeless = layers_of(stopwatch.layers() or {}, model)
        savings, predictor = _savings(space, stopwatch, tuple(sorted(cuts)), seconds, progress) if space else ((), "")
    costs = space.cost_dict(space.dense) if space else {}
    return LatencyProfile(
        network=network or type(model).__name__,
        inputs=tuple(tuple(tensor.shape) for tensor in tensors(inputs)),
        runtime=runtime.describe(),
        dense=dense,
        macs=costs.get("macs"),
        params=costs.get("params"),
        layers=layers,
        timeless=timeless if layers else {},
        cuts=tuple(sorted(cuts)),
        savings=savings,
        refusal=refusal,
        predictor=predictor,
        no_energy=no_energy,
    )


def cut_candidates(space: SearchSpace, cuts: Sequence[float]) -> list[list[Candidate | None]]:
    """For each group, the subnets with that group alone cut to the level nearest to each cut.

    None where the nearest level is the whole group: it has no level there.
    """
    table: list[list[Candidate | None]] = []
    for index, group in enumerate(space.groups):
        row: list[Candidate | None] = []
        for cut in cuts:
            level = int(np.argmin(np.abs(np.array(group.levels) - (1 - cut) * group.num_units)))
            dense = level == len(group.levels) - 1
            row.append(None if dense else (*space.dense[:index], level, *space.dense[index + 1 :]))
        table.append(row)
    return table


def _savings(
    space: SearchSpace, stopwatch: Stopwatch, cuts: Sequence[float], seconds: float, progress: Progress
) -> tuple[tuple[Saving, ...], str]:
    """What the cuts save, and what predicted those that were not measured."""
    table = cut_candidates(space, cuts)
    deepest_first = [row[column] for column in reversed(range(len(cuts))) for row in table]
    wanted = list(dict.fromkeys(candidate for candidate in deepest_first if candidate is not None))
    measured = _measure(space, stopwatch, wanted, seconds, progress)
    dense_ms = stopwatch.dense_ms
    ratios = {candidate: _ratio(latency) for candidate, latency in measured.items()}
    missing = [candidate for candidate in wanted if candidate not in measured]
    predictor = ""
    if missing:
        latency_model = LatencyModel.measure(space, stopwatch, subnets=MODEL_SUBNETS, seed=0, progress=progress)
        for candidate in measured:
            ratio, low, high = ratios[candidate]
            latency_model.learn(candidate, ratio * dense_ms, (high - low) / (2 * _Z) * dense_ms)
        ms, sd = latency_model.predict(space.units(missing))
        ms, sd = ms / latency_model.dense_ms, sd / latency_model.dense_ms
        for candidate, mean, deviation in zip(missing, ms.tolist(), sd.tolist(), strict=True):
            ratios[candidate] = mean, mean - _Z * deviation, mean + _Z * deviation
        predictor = str(latency_model.error)
    params, macs = (space.cost(name, [space.dense, *wanted]) for name in ("params", "macs"))
    saved = {
        candidate: (1 - float(m / macs[0]), 1 - float(p / params[0]))
        for candidate, m, p in zip(wanted, macs[1:], params[1:], strict=True)
    }

    def cut(group: int, candidate: Candidate) -> Cut:
        ratio, low, high = ratios[candidate]
        return Cut(
            kept=space.groups[group].levels[candidate[group]],
            saved_ms=(1 - ratio) * dense_ms,
            low_ms=(1 - high) * dense_ms,
            high_ms=(1 - low) * dense_ms,
            saved=1 - ratio,
            macs=saved[candidate][0],
            params=saved[candidate][1],
            measured=candidate in measured,
        )

    return tuple(
        Saving(
            group=group.name,
            units=group.num_units,
            cuts=tuple(None if candidate is None else cut(index, candidate) for candidate in row),
        )
        for index, (group, row) in enumerate(zip(space.groups, table, strict=True))
    ), predictor


def _measure(
    space: SearchSpace, stopwatch: Stopwatch, wanted: Iterable[Candidate], seconds: float, progress: Progress
) -> dict[Candidate, Latency]:
    """Time subnets in turn, a few at a time, for as long as the next ones are likely to be done within `seconds`."""
    found: dict[Candidate, Latency] = {}
    queue = list(wanted)
    start, slowest = time.monotonic(), 0.0
    with progress.task("Measuring cuts", total=len(queue), unit="subnets") as task:
        rest = iter(queue)
        while block := list(islice(rest, TOGETHER)):
            before = time.monotonic()
            if seconds <= 0 or before + slowest > start + seconds:
                break
            models = {str(i): space.materialise(candidate, share=True) for i, candidate in enumerate(block)}
            latencies = stopwatch.measure(models)
            found |= {candidate: latencies[str(i)] for i, candidate in enumerate(block)}
            slowest = max(slowest, time.monotonic() - before)
            task.advance(len(block))
    return found


def _ratio(latency: Latency) -> tuple[float, float, float]:
    """Latency / that of the dense network beside it, and its 95 % interval."""
    ratio, low, high = latency.ratio, latency.ratio_low, latency.ratio_high
    if ratio is None or low is None or high is None:
        raise AssertionError("a stopwatch compares every network with the dense one")
    return ratio, low, high


def _traced(model: nn.Module, inputs: Any, align: int) -> tuple[SearchSpace | None, str]:
    """The search space, or why there is none."""
    try:
        return trace(model, inputs, align=align), ""
    except UserError as error:
        return None, str(error)
    except Exception as error:  # whatever a model that runs may do to the tracer: its latency is still of use
        return None, f"{type(model).__name__} cannot be traced: {type(error).__name__}: {error}"


def _energy_meter() -> tuple[EnergyMeter | None, str]:
    """What reads the energy of a run, or why nothing can."""
    try:
        return EnergyMeter(), ""
    except UserError as error:
        return None, str(error)


def _check_runs(model: nn.Module, inputs: Any) -> None:
    """Raise a UserError where the model does not run: each runtime and the tracer would say so in its own way."""
    args, kwargs = as_inputs(inputs)
    try:
        with evaluation_mode(model), torch.inference_mode():
            model(*args, **kwargs)
    except Exception as error:  # whatever the user's model raises
        shapes = describe_inputs([tensor.shape for tensor in tensors(inputs)])
        raise UserError(
            f"{type(model).__name__} does not run on an input of {shapes}: {type(error).__name__}: {error}. "
            "Give inputs that fit it (--input-shape, --data)."
        ) from error


__all__ = ["CUTS", "cut_candidates", "profile_latency"]
