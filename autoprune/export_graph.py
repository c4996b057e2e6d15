"""Write a model as ONNX or as a `torch.export` program, with a free batch size.

Each file is read back and run at three batch sizes beside the PyTorch model; only a file that agrees takes the
target's name. The model and the example are copied to the CPU in float as they are; neither is changed.

A ``.pt2`` file can carry code that runs when it is loaded: `export_program` reads back only the bytes that it wrote
itself, and autoprune never takes such a file as input.
"""

from __future__ import annotations

import copy
import inspect
import io
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from autoprune.files import atomic_write
from autoprune.search_spaces.errors import UserError
from autoprune.search_spaces.tracer import tensors

Inputs: TypeAlias = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments of a forward call."""

TOLERANCE = 1e-4
"""Largest difference to PyTorch that a written graph may have, as a share of the largest output."""

_HINT = (
    " (A graph needs code without Python branches on tensor values or on the batch size; the folder format does not.)"
)
_CHATTY = ("torch", "torch.onnx", "torch.export", "torch.fx", "onnxscript", "onnx_ir")


def as_inputs(example: Any) -> Inputs:
    """Read a tensor, a tuple of arguments, a dict of keyword arguments, or ``(tuple, dict)`` as a forward call."""
    if isinstance(example, dict):
        return (), example
    if not isinstance(example, (tuple, list)):
        return (example,), {}
    if len(example) == 2 and isinstance(example[0], tuple) and isinstance(example[1], dict):
        return example[0], example[1]
    return tuple(example), {}


def max_difference(found: Any, expected: Any) -> float:
    """Largest absolute difference between two outputs of any nesting; inf where their shapes or structure differ."""
    ours, theirs = pytree.tree_leaves(found), pytree.tree_leaves(expected)
    if len(ours) != len(theirs):
        return float("inf")
    return max((_leaf_difference(a, b) for a, b in zip(ours, theirs, strict=True)), default=0.0)


def largest_output(outputs: Any) -> float:
    """Largest finite absolute value in outputs of any nesting; 0 where there is none."""
    finite = (leaf[leaf.isfinite()].abs() for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor))
    return max((float(leaf.max()) for leaf in finite if leaf.numel()), default=0.0)


def export_onnx(model: nn.Module, example: Any, path: Path) -> float:
    """Write `model` to `path` as ONNX and return its largest absolute difference to PyTorch in ONNX Runtime.

    Args:
        model: any module; exported in eval mode, on the CPU.
        example: inputs whose first dimension is the batch (see `as_inputs`).
        path: the file to write, usually ``model.onnx``.

    Raises:
        UserError: the extra is missing, the model cannot be exported, or the file does not compute the same.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  (what torch.onnx.export needs)
    except ImportError as error:
        raise UserError(f"ONNX export needs {error.name}. Install it: pip install 'autoprune[onnx]'.") from None

    def write(program: torch.export.ExportedProgram, file: Path) -> None:
        torch.onnx.export(program, (), file, dynamo=True, verbose=False, external_data=False)

    def read(file: Path) -> Callable[[Inputs], Any]:
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        names = [node.name for node in session.get_inputs()]

        def run(inputs: Inputs) -> Any:
            given = list(tensors(inputs))
            if len(given) != len(names):
                raise UserError(f"The ONNX graph takes {len(names)} inputs, the model's example has {len(given)}.")
            feed = {name: tensor.numpy() for name, tensor in zip(names, given, strict=True)}
            return [torch.from_numpy(output) for output in session.run(None, feed)]

        return run

    return _export(model, example, path, "ONNX", write, read)


def export_program(model: nn.Module, example: Any, path: Path) -> float:
    """Write `model` to `path` as a `torch.export` program (``.pt2``); arguments, result and errors as `export_onnx`."""

    def write(program: torch.export.ExportedProgram, file: Path) -> None:
        torch.export.save(program, file)

    def read(file: Path) -> Callable[[Inputs], Any]:
        module = torch.export.load(file).module()
        return lambda inputs: module(*inputs[0], **inputs[1])

    return _export(model, example, path, "torch.export", write, read)


def _export(
    model: nn.Module,
    example: Any,
    path: Path,
    form: str,
    write: Callable[[torch.export.ExportedProgram, Path], None],
    read: Callable[[Path], Callable[[Inputs], Any]],
) -> float:
    model = copy.deepcopy(model).cpu().eval()
    args, kwargs = as_inputs(pytree.tree_map_only(torch.Tensor, lambda tensor: tensor.detach().cpu(), example))
    batch = batch_size((args, kwargs))
    # A batch of 1 would be taken for a constant by broadcasting code: the graph would then run at batch 1 only.
    args, kwargs = with_batch((args, kwargs), batch, max(batch, 2))
    with tempfile.TemporaryDirectory(prefix="autoprune-") as folder, torch.no_grad(), silent():
        file = Path(folder) / path.name
        with explained(f"This model cannot be written as {form}", hint=_HINT):
            write(torch.export.export(model, args, kwargs, dynamic_shapes=free_batch(model, (args, kwargs))), file)
        with explained(f"The {form} file of this model failed its check"):
            run = read(file)
            difference = max(_compare(run, model, (args, kwargs), size) for size in (1, max(batch, 2), 5))
        atomic_write(path, file.read_bytes())
    return difference


def _compare(run: Callable[[Inputs], Any], model: nn.Module, inputs: Inputs, batch: int) -> float:
    """Run both at `batch` samples; return the largest difference, or raise where it is above the tolerance."""
    args, kwargs = with_batch(inputs, batch_size(inputs), batch)
    expected = pytree.tree_leaves(model(*args, **kwargs))
    found = pytree.tree_leaves(run((args, kwargs)))
    difference = max_difference(found, expected)
    largest = largest_output(expected)
    if not difference <= TOLERANCE * max(largest, 1e-6):
        raise UserError(
            f"At batch {batch} its outputs differ from PyTorch's by {difference:.2g}, allowed is {TOLERANCE:g} of the"
            f" largest output ({largest:.2g}). Nothing was written."
        )
    return difference


def batch_size(inputs: Inputs) -> int:
    """First dimension of the first tensor that has one."""
    batch = next((tensor.shape[0] for tensor in tensors(inputs) if tensor.ndim), None)
    if not batch:
        raise UserError("An export needs example inputs with at least one tensor whose first dimension is the batch.")
    return int(batch)


def with_batch(inputs: Inputs, old: int, new: int) -> Inputs:
    """Repeat or cut every tensor that has `old` rows so that it has `new`."""

    def resize(tensor: Tensor) -> Tensor:
        if tensor.ndim == 0 or tensor.shape[0] != old:
            return tensor
        return tensor.repeat(-(-new // old), *[1] * (tensor.ndim - 1))[:new].contiguous()

    resized: Inputs = pytree.tree_map_only(Tensor, resize, inputs)
    return resized


def free_batch(model: nn.Module, inputs: Inputs) -> dict[str, Any]:
    """The `dynamic_shapes` of `torch.export.export`: by argument name, dimension 0 free where it is the batch."""
    batch, dim = batch_size(inputs), torch.export.Dim("batch")

    def shape(leaf: Any) -> Any:
        return {0: dim} if isinstance(leaf, Tensor) and leaf.ndim and leaf.shape[0] == batch else None

    arguments = inspect.signature(model.forward).bind(*inputs[0], **inputs[1]).arguments
    return {name: pytree.tree_map(shape, value) for name, value in arguments.items()}


def _leaf_difference(found: Any, expected: Any) -> float:
    if not isinstance(expected, Tensor):
        return 0.0 if found == expected else float("inf")
    if not isinstance(found, Tensor) or found.shape != expected.shape:
        return float("inf")
    found, expected = (
        t.detach().cpu().to(torch.complex128 if t.is_complex() else torch.float64) for t in (found, expected)
    )
    # Equal infinities, and NaN in the same places, are no difference.
    same = (found == expected) | (found.isnan() & expected.isnan())
    difference = torch.where(same, torch.zeros_like(found), found - expected).abs()
    return float(difference.nan_to_num(nan=float("inf"), posinf=float("inf")).max()) if difference.numel() else 0.0


@contextmanager
def explained(what: str, hint: str = "") -> Iterator[None]:
    """Turn whatever an exporter or runtime raises (they share no base class) into one message with the cause."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{what}: {error}") from error
    except OSError:
        raise
    except Exception as error:
        cause = error.__cause__ or error
        first = next((line.strip() for line in str(cause).splitlines() if line.strip()), "")
        raise UserError(f"{what}: {type(cause).__name__}: {first}{hint}") from error


@contextmanager
def silent() -> Iterator[None]:
    """Drop the exporters' log lines, warnings and dumps of half-made graphs: what goes wrong comes as an exception."""
    loggers = [logging.getLogger(name) for name in _CHATTY]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
