"""Find out where the time of a network goes on a runtime, and what cuts of each group would save.

Every number is of the whole network as the runtime runs it: the share of a layer is the runtime's own view, and what a
cut saves is found by timing the subnet in turn with the dense network.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from autoprune.align import DEFAULT, worthwhile_steps
from autoprune.export_graph import as_inputs
from autoprune.latency_tool.profile import LatencyProfile, Saving, describe_inputs, layers_of
from autoprune.latency_tool.savings import find_savings
from autoprune.measure import Stopwatch
from autoprune.measure.device_profile import DeviceProfile
from autoprune.measure.energy import EnergyMeter
from autoprune.measure.stopwatch import precision_of
from autoprune.progress import NO_PROGRESS, Progress
from autoprune.running import evaluation_mode
from autoprune.runtimes import Runtime, make_runtime
from autoprune.search_spaces import SearchSpace, UserError, trace
from autoprune.search_spaces.tracer import tensors

CUTS = (0.1, 0.25, 0.5)


def profile_latency(
    model: nn.Module,
    inputs: Any,
    *,
    runtime: str | Runtime = "eager",
    threads: int = 1,
    device: str = "cpu",
    cuts: Sequence[float] = CUTS,
    align: int | str = DEFAULT,
    seconds: float = 120.0,
    accuracy: float = 0.01,
    device_profile: str | Path | None = None,
    network: str | None = None,
    progress: Progress = NO_PROGRESS,
) -> LatencyProfile:
    """Time a dense network, its layers, and subnets in which one group is cut.

    Args:
        model: not changed.
        inputs: a tensor, a tuple of positional or a dict of keyword arguments, at the batch size to measure.
        runtime: a runtime, or how one is written: ``"onnxruntime"``, ``"eager:precision=bf16"``.
        threads, device: of the runtime; not used where `runtime` is no text.
        cuts: shares of a group's units to cut, each in (0, 1).
        align: channels are kept in multiples of this where a layer is wide enough; ``"auto"`` finds the step of the
            runtime first, which takes about half a minute; it is 8 for compile, commands and narrow networks.
        seconds: about how long cuts are measured, the deepest first; the others are predicted. 0 predicts all.
        accuracy: half-width of the interval of a latency at which measuring stops, as a share of it.
        device_profile: file of what is known of devices: subnets in it are not measured again, new ones are added.
        network: what to call the model; None for the name of its class.

    Raises:
        UserError: the model does not run on the inputs, an unknown runtime or one that is not installed, a machine too
            noisy to measure, or a value out of range. A model that cannot be traced is no error: see
            `LatencyProfile.refusal`.
    """
    if not cuts or any(not 0 < cut < 1 for cut in cuts):
        raise UserError(f"A cut is a share of the units between 0 and 1, but got {list(cuts)}. Write 25 % as 0.25.")
    if align != "auto" and not (isinstance(align, int) and align >= 1):
        raise UserError(f"`align` must be a whole number of at least 1, or 'auto', but got {align!r}.")
    cuts = tuple(sorted(set(cuts)))
    runtime = make_runtime(runtime, threads=threads, device=device) if isinstance(runtime, str) else runtime
    known = None if device_profile is None else DeviceProfile(device_profile, progress=progress)
    _check_runs(model, inputs)
    space, refusal = _traced(model, inputs, DEFAULT if align == "auto" else align)
    if space is not None and align == "auto":
        align = max(worthwhile_steps(space, [runtime], known, progress).values(), default=DEFAULT)
        space, refusal = _traced(model, inputs, align)
    energy, no_energy = _energy_meter(runtime)
    with Stopwatch(runtime, model, inputs, accuracy=accuracy, energy=energy) as stopwatch:
        dense = stopwatch.measure({}, progress=progress)["dense"]
        layers, timeless = layers_of(stopwatch.layers() or {}, model)
        savings: tuple[Saving, ...] = ()
        predictor = ""
        if space is not None:
            savings, predictor = find_savings(
                space,
                stopwatch,
                cuts,
                dense=dense,
                seconds=seconds,
                accuracy=accuracy,
                profile=known,
                progress=progress,
            )
    costs = {} if space is None else space.cost_dict(space.dense)
    return LatencyProfile(
        network=network or type(model).__name__,
        inputs=tuple(tuple(tensor.shape) for tensor in tensors(inputs)),
        runtime=_describe(runtime, model),
        dense=dense,
        macs=costs.get("macs"),
        params=costs.get("params"),
        layers=layers,
        timeless=timeless if layers else {},
        align=int(align) if space is not None else None,
        cuts=cuts,
        savings=savings,
        refusal=refusal,
        predictor=predictor,
        no_energy=no_energy,
    )


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


def _traced(model: nn.Module, inputs: Any, align: int | str) -> tuple[SearchSpace | None, str]:
    """The search space, or why there is none."""
    try:
        return trace(model, inputs, align=int(align)), ""
    except UserError as error:
        return None, str(error)
    except Exception as error:  # whatever a model that runs may do to the tracer: its latency is still of use
        return None, f"{type(model).__name__} cannot be traced: {type(error).__name__}: {error}"


def _describe(runtime: Runtime, model: nn.Module) -> str:
    """`Runtime.describe`, with the precision of the weights where the runtime takes that."""
    return runtime.describe().replace(f" {runtime.precision},", f" {precision_of(runtime, model)},", 1)


def _energy_meter(runtime: Runtime) -> tuple[EnergyMeter | None, str]:
    """What reads the energy of a run, or why nothing can."""
    if runtime.clock in ("reported", "cuda events"):  # elsewhere, or on a graphics processor, which RAPL leaves out
        return None, "Energy is only measured on the processor of this machine."
    try:
        return EnergyMeter(), ""
    except UserError as error:
        return None, str(error)


__all__ = ["CUTS", "profile_latency"]
