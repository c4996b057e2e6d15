"""Read an exported folder back: `load`.

It builds the dense model (whose weights are not needed), copies the module tree around the stored tensors, and sets
the attributes that surgery changed. The result is a plain module of the user's own class. Nothing is unpickled; the
only code that a folder can name is the function that builds the dense model, and one outside torchvision, timm and
`autoprune.nets` is imported only where the caller trusts the folder.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from autoprune.architecture import FILE as ARCHITECTURE
from autoprune.architecture import Architecture, dtype_name
from autoprune.search_spaces.errors import UserError
from autoprune.search_spaces.surgery import named_tensors, replace_tensors
from autoprune.trust import describe_call, is_harmless_model

WEIGHTS = "model.safetensors"


def load(
    folder: str | Path, *, model: nn.Module | Callable[[], nn.Module] | None = None, trust: bool = False
) -> nn.Module:
    """Load an exported model: a plain module of the original class, on the CPU, in eval mode.

    Args:
        folder: one point of a front, for example ``runs/first/front/0``.
        model: the dense model (not changed; its weights are not read) or a function that builds it; needed where the
            search was given a module in Python.
        trust: import the function that the folder names as builder of the dense model, which runs its module's code.
            Builders of torchvision, timm and `autoprune.nets` need no trust.

    Raises:
        UserError: a file is missing, damaged or of a newer version; the dense model does not fit; trust is needed.
    """
    folder = Path(folder)
    if not (folder / ARCHITECTURE).is_file():
        inner = sorted(folder.glob(f"front/*/{ARCHITECTURE}"))
        hint = f" Its front does: {', '.join(str(path.parent) for path in inner)}." if inner else ""
        raise UserError(f"{folder} does not hold an exported model: there is no {ARCHITECTURE} in it.{hint}")
    architecture = Architecture.read(folder)
    tensors = read_tensors(folder / WEIGHTS, architecture)
    dense = _dense(folder, architecture, model, trust)
    try:
        loaded = _with_tensors(dense, architecture, tensors)
        _set_attributes(loaded, architecture)
    except _MismatchError as error:
        raise UserError(f"The dense model does not fit {folder}: {error}") from None
    return loaded.eval()


class _MismatchError(Exception):
    """The folder and the dense model disagree."""


def read_tensors(path: Path, architecture: Architecture) -> dict[str, Tensor]:
    """Read the weights that `architecture` describes.

    Raises:
        UserError: they are missing, damaged, or of another model.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"There is no file {path}. Restore it from a copy, or export the point again.") from None
    if hashlib.sha256(data).hexdigest() != architecture.sha256:
        raise UserError(f"{path} is damaged, or belongs to another {ARCHITECTURE}. Export the point again.")
    try:
        loaded = safetensors.torch.load(data)
    except Exception as error:  # safetensors raises its own type, and ValueError or KeyError on odd headers
        raise UserError(f"{path} cannot be read: {error}. Export the point again.") from error
    found = {name: (tuple(tensor.shape), dtype_name(tensor)) for name, tensor in loaded.items()}
    if found != {name: (record.shape, record.dtype) for name, record in architecture.tensors.items()}:
        raise UserError(f"{path} holds other tensors than {ARCHITECTURE} beside it says. Export the point again.")
    return {name: tensor.clone() for name, tensor in loaded.items()}  # aligned memory of their own


def _dense(
    folder: Path, architecture: Architecture, model: nn.Module | Callable[[], nn.Module] | None, trust: bool
) -> nn.Module:
    """The dense model, built or given; its weights do not matter."""
    if isinstance(model, nn.Module):
        return model
    if model is None and architecture.source is None:
        raise UserError(
            f"{folder} was cut out of a module given in Python (of class {architecture.model}). Load it with "
            "model=... : the dense module, or a function that builds it."
        )
    with torch.random.fork_rng(devices=[]):  # initial weights are thrown away, the caller's random state is not
        if model is not None:
            built = model()
        else:
            assert architecture.source is not None
            source = architecture.source
            if not trust and not is_harmless_model(source["spec"], source["kwargs"]):
                raise UserError(
                    f"Loading {folder} would call {describe_call(source['spec'], source['kwargs'])}, which runs code "
                    "or reads files that the folder chose. Pass trust=True if you trust where the folder comes from, "
                    "or model=... with the dense model."
                )
            from autoprune.models import ModelSource

            built = ModelSource(spec=source["spec"], kwargs=source["kwargs"], weights=None).build()
    if not isinstance(built, nn.Module):
        raise UserError(f"The dense model must be a torch.nn.Module, but got {type(built).__name__}.")
    return built


def _set_attributes(model: nn.Module, architecture: Architecture) -> None:
    for path, name, value in architecture.attributes:
        try:
            module = model.get_submodule(path)
        except AttributeError:
            raise _MismatchError(f"it has no module {path!r}.") from None
        old = vars(module).get(name)
        if isinstance(old, tuple | list) and isinstance(value, tuple):
            setattr(module, name, type(old)(value))  # JSON knows lists only; torch.Size and list stay what they are
        elif isinstance(old, int | float) and isinstance(value, int | float):
            setattr(module, name, value)
        else:
            raise _MismatchError(f"module {path!r} has no number or tuple {name!r} to set to {value!r}.")


def _with_tensors(dense: nn.Module, architecture: Architecture, tensors: Mapping[str, Tensor]) -> nn.Module:
    """A copy of the module tree with `tensors` in place of the dense ones, which are neither copied nor changed."""
    old = named_tensors(dense)
    if tensors.keys() != old.keys():
        lacking, extra = sorted(tensors.keys() - old.keys()), sorted(old.keys() - tensors.keys())
        raise _MismatchError("; ".join(_name_lists(lacking, extra)) + ".")
    new: dict[int, Tensor] = {}
    for name, place in old.items():
        tensor, record = tensors[name], architecture.tensors[name]
        if tuple(place.shape) != record.dense:
            raise _MismatchError(f"{name!r} has the shape {tuple(place.shape)}, expected is {record.dense}.")
        if place.is_floating_point() != tensor.is_floating_point():
            raise _MismatchError(f"{name!r} is {dtype_name(place)}, the stored one {record.dtype}.")
        is_parameter = isinstance(place, nn.Parameter)
        new[id(place)] = nn.Parameter(tensor, requires_grad=place.requires_grad) if is_parameter else tensor
    try:
        return replace_tensors(dense, new)
    except RuntimeError as error:  # e.g. an activation that the module keeps with its graph
        raise _MismatchError(f"it cannot be copied ({error}).") from error


def _name_lists(lacking: list[str], extra: list[str]) -> Iterator[str]:
    for what, names in (("it lacks", lacking), ("it has besides", extra)):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            yield f"{what} {', '.join(map(repr, names[:3]))}{more}"
