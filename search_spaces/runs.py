"""The runs behind a trace: evaluation mode on the meta device, training mode where that reaches more parameters."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from autoprune.search_spaces import surgery
from autoprune.search_spaces.errors import UserError
from autoprune.search_spaces.labels import Labels, Ties
from autoprune.search_spaces.tracer import ParameterLabels, Trace, Tracer, map_tensors, run, tensors


class TraceWarning(UserWarning):
    """A part of the model could not be traced; what was done instead is in the message."""


@dataclass(frozen=True, slots=True)
class Run:
    """One call of the model, and what its trace recorded."""

    training: bool
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    trace: Trace

    @staticmethod
    @contextmanager
    def seeded() -> Iterator[None]:
        """The same random numbers in every run, for code whose path depends on them."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            yield


@dataclass(frozen=True, slots=True)
class Traced:
    """What the runs left.

    Attributes:
        model: a copy like the one that ran, on the meta device or sharing the parameters of the real model.
        runs: evaluation mode first; training mode where it was run.
    """

    model: nn.Module
    ties: Ties
    parameters: Mapping[str, Labels]
    runs: list[Run]

    @property
    def traces(self) -> list[Trace]:
        """What each run recorded."""
        return [run.trace for run in self.runs]


def trace_model(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Traced:
    """Run the model on the meta device, or on its own where that fails (data-dependent control flow)."""
    try:
        return _trace(lambda: surgery.to_meta(model), *map_tensors((args, kwargs), lambda t: t.to("meta")))
    except Exception:  # whatever the model raises on meta tensors: the real run below decides, and reports
        pass
    try:
        return _trace(lambda: without_own_storage(model), args, kwargs)
    except UserError:
        raise
    except Exception as error:
        shapes = [tuple(t.shape) for t in tensors((args, kwargs))]
        raise UserError(
            f"{type(model).__name__} does not run on the example inputs {shapes}: {type(error).__name__}: {error}"
        ) from error


def without_own_storage(model: nn.Module) -> nn.Module:
    """A copy that shares parameters with `model`, and has buffers of its own, so that running it changes nothing."""
    return surgery.cut(model, {}, share=True)


def _trace(copied: Callable[[], nn.Module], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Traced:
    model = copied()
    ties = Ties()
    parameters = ParameterLabels(ties)
    named = surgery.named_tensors(model)
    tracer = Tracer(ties, parameters, named)
    with Run.seeded():
        _pin_outputs(tracer, run(tracer, model.eval(), args, kwargs))
    runs = [Run(False, args, kwargs, tracer.trace)]
    if any(name not in parameters.by_name and p.numel() > 1 for name, p in model.named_parameters()):
        runs += _train_run(model, args, kwargs, ties, parameters, named)
    # another copy: what the code kept for its next call (anchors, masks) may have sent that another way
    return Traced(copied().eval(), ties, parameters.by_name, runs)


def _train_run(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    ties: Ties,
    parameters: ParameterLabels,
    named: dict[str, Tensor],
) -> list[Run]:
    """Heads that run only in training: at the given batch, else at twice it (BatchNorm refuses one value)."""
    model.train()
    for inputs in ((args, kwargs), map_tensors((args, kwargs), _doubled)):
        tracer = Tracer(ties, parameters, named)
        try:
            with Run.seeded():
                _pin_outputs(tracer, run(tracer, model, *inputs))
        except Exception as error:
            failure = error
        else:
            return [Run(True, inputs[0], inputs[1], tracer.trace)]
    warnings.warn(
        f"{type(model).__name__} does not run in training mode on the example inputs ({failure}): "
        "layers that run only there were not traced, and a cut model may fail in training mode.",
        TraceWarning,
        stacklevel=4,
    )
    return []


def _doubled(tensor: Tensor) -> Tensor:
    return torch.cat([tensor, tensor]) if tensor.dim() else tensor


def _pin_outputs(tracer: Tracer, outputs: Any) -> None:
    tracer.ties.module, tracer.ties.op = "", ""
    tracer.use(tensors(outputs))
    for tensor in tensors(outputs):
        tracer.ties.pin_fields(tracer.labels(tensor), "an output of the model")
