"""Write a pruned model as a folder: `model.safetensors`, `architecture.json`, `card.md`.

It is called written only after `load` has read it back and the copy has given the same outputs, to the last bit.
`load`, `export_onnx` and `export_program` come from `autoprune.loading` and `autoprune.export_graph`.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import autoprune
from autoprune.architecture import FILE as ARCHITECTURE
from autoprune.architecture import FORMAT, Architecture, TensorRecord, dtype_name
from autoprune.export_graph import TOLERANCE, Inputs, export_onnx, export_program, largest_output, max_difference
from autoprune.files import atomic_folder, atomic_write
from autoprune.loading import WEIGHTS, load
from autoprune.search_spaces.errors import UserError
from autoprune.search_spaces.surgery import named_tensors
from autoprune.search_spaces.types import Candidate, IntArray

if TYPE_CHECKING:
    from autoprune.models import ModelSource

__all__ = ["export_folder", "export_onnx", "export_program", "load"]

CARD = "card.md"


class Sliced(Protocol):
    """What an export asks of a search space."""

    @property
    def model(self) -> nn.Module: ...

    @property
    def example_inputs(self) -> Inputs: ...

    @property
    def fingerprint(self) -> str: ...

    def kept(self, candidate: Candidate, importance: str) -> Mapping[str, tuple[IntArray | None, ...]]: ...

    def attributes(self, candidate: Candidate) -> list[tuple[str, str, Any]]: ...


def export_folder(
    point_dir: Path,
    *,
    model: nn.Module,
    space: Sliced,
    candidate: Candidate,
    importance: str,
    source: ModelSource | None,
    card: str,
    meta: Mapping[str, Any],
) -> None:
    """Write `model` as a folder; it appears at `point_dir` only after a copy loaded from it gave the same outputs.

    Args:
        point_dir: replaced if it exists.
        model: the subnet of `candidate`, fine-tuned or not; not changed.
        space: where it was cut out; its dense model stands in where `source` is None.
        importance: the criterion that chose which units went.
        source: how the dense model can be built again; None for a module handed over in Python.
        card: text of `card.md`.
        meta: JSON values kept in `architecture.json` for the record: costs, scores, budget.

    Raises:
        UserError: the folder does not give the same model back; nothing is written then.
        OSError: the disk is full or the folder may not be written.
    """
    dense = named_tensors(space.model)
    kept = space.kept(candidate, importance)
    # Own, plainly laid out memory: safetensors takes neither shared nor strided tensors.
    stored = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in named_tensors(model).items()
    }
    data = safetensors.torch.save(stored, metadata={"format": "pt", "autoprune_format": str(FORMAT)})
    architecture = Architecture(
        model=f"{type(model).__module__}.{type(model).__qualname__}",
        source=None if source is None else _describe_source(source),
        tensors={
            name: TensorRecord(
                dense=tuple(dense[name].shape),
                shape=tuple(tensor.shape),
                dtype=dtype_name(tensor),
                kept=tuple(None if d is None else tuple(map(int, d)) for d in kept.get(name, [None] * tensor.ndim)),
            )
            for name, tensor in stored.items()
        },
        attributes=tuple(space.attributes(candidate)),
        inputs=_signature(space.example_inputs),
        importance=importance,
        candidate=tuple(candidate),
        space=space.fingerprint,
        sha256=hashlib.sha256(data).hexdigest(),
        versions={"autoprune": autoprune.__version__, "torch": str(torch.__version__)},
        meta=meta,
    )
    with atomic_folder(point_dir) as folder:
        atomic_write(folder / WEIGHTS, data)
        atomic_write(folder / ARCHITECTURE, architecture.to_json())
        atomic_write(folder / CARD, card)
        _check_copy(folder, point_dir, model, space, source)


def _check_copy(folder: Path, target: Path, model: nn.Module, space: Sliced, source: ModelSource | None) -> None:
    """Load what was written and compare outputs on the example: equal to the last bit on a CPU, or `UserError`."""
    loaded = load(folder, trust=True) if source is not None else load(folder, model=space.model)
    reference = copy.deepcopy(model).eval()
    for tensor in chain(reference.parameters(), reference.buffers()):
        # The same memory layout as the copy's: kernels for other layouts sum in another order.
        tensor.data = tensor.data.clone(memory_format=torch.contiguous_format)
    device = next(chain(reference.parameters(), reference.buffers())).device
    expected = _run(reference, space.example_inputs)
    difference = max_difference(_run(loaded.to(device), space.example_inputs), expected)
    # Some kernels of graphics processors sum in an order that changes from call to call.
    allowed = 0.0 if device.type == "cpu" else TOLERANCE * largest_output(expected)
    if not difference <= allowed:
        raise UserError(
            f"The model was not written to {target}: loaded again, its outputs differ by {difference:.3g}. Its forward "
            "pass depends on something that is neither a parameter nor a buffer nor set when the dense model is built."
        )


def _run(model: nn.Module, inputs: Inputs) -> Any:
    """One forward pass that leaves the inputs and the global random state as they are."""
    args, kwargs = pytree.tree_map_only(Tensor, torch.clone, inputs)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return model(*args, **kwargs)


def _describe_source(source: ModelSource) -> dict[str, Any]:
    try:
        kwargs = json.loads(json.dumps(source.kwargs, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise UserError(f"The arguments of model {source.spec!r} cannot be written as JSON: {error}.") from None
    weights = None if source.weights is None else Path(source.weights).name
    return {"spec": source.spec, "kwargs": kwargs, "weights": weights}


def _signature(value: Any) -> Any:
    """The example call in words: shape and dtype of each tensor, constants as they are."""
    args, kwargs = value

    def describe(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return {"shape": list(leaf.shape), "dtype": dtype_name(leaf)}
        return leaf if isinstance(leaf, str | int | float | bool | None) else type(leaf).__name__

    return {"args": pytree.tree_map(describe, list(args)), "kwargs": pytree.tree_map(describe, dict(kwargs))}
