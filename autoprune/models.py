"""Where dense models come from: torchvision, timm or the user's function, and their weights.

A `ModelSource` is what a study and an exported folder remember of a model: plain text from which the same module is
built again. Nothing is downloaded, and weights are read from safetensors or with `torch.load(weights_only=True)` only.
"""

from __future__ import annotations

import difflib
import inspect
import json
import pickle
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from autoprune.importing import call, import_function
from autoprune.search_spaces.errors import UserError

_TORCH_ENDINGS = (".pt", ".pth", ".bin", ".ckpt")
_SHOWN = 5  # names listed in a message about weights that do not fit


@dataclass(frozen=True)
class ModelSource:
    """How to build a dense model.

    Attributes:
        spec: ``torchvision:NAME``, ``timm:NAME`` or ``package.module:function``.
        kwargs: arguments of the constructor; values that JSON can hold.
        weights: file with the state_dict, ``.safetensors`` or ``.pt``; None keeps the seeded initial weights.
    """

    spec: str
    kwargs: dict[str, Any] = field(default_factory=dict)
    weights: str | None = None

    def build(self, *, seed: int = 0) -> nn.Module:
        """Return a new dense model in eval mode, its weights loaded; the same at every call.

        The constructor runs with the global CPU generator seeded by `seed`; afterwards that is as it was before.

        Raises:
            UserError: an unknown name, a constructor that fails or gives no module, or weights that do not fit.
        """
        constructor, extra = _constructor(self.spec)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would reach the CUDA generators too
            model = call(self.spec, "model", constructor, **(extra | self.kwargs))
        if not isinstance(model, nn.Module):
            raise UserError(f"{self.spec} must return a torch.nn.Module, but returned a {type(model).__name__}.")
        if self.weights is not None:
            load_weights(model, self.weights)
        return model.eval()

    def to_dict(self) -> dict[str, Any]:
        """Return a dict for JSON or TOML; `from_dict` reads it.

        Raises:
            UserError: an argument that JSON cannot hold.
        """
        for name, value in self.kwargs.items():
            try:
                json.dumps(value)
            except TypeError as error:
                raise UserError(
                    f"The model argument {name}={value!r} cannot be stored: use numbers, strings, booleans, None, "
                    "lists or dicts of them, or a function of your own that sets it."
                ) from error
        stored = {"spec": self.spec, "kwargs": dict(self.kwargs)}
        return stored if self.weights is None else {**stored, "weights": self.weights}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> ModelSource:
        """Read what `to_dict` gave."""
        return cls(stored["spec"], dict(stored.get("kwargs", {})), stored.get("weights"))


def parse_model_args(texts: Iterable[str]) -> dict[str, Any]:
    """Read ``["num_classes=10", "widths=[8, 16]", "bias=false", "activation=relu"]``.

    A value is read as JSON (also True, False and None as Python writes them) and, where it is none, as text.

    Raises:
        UserError: no ``=``, a name that is none, or a name given twice.
    """
    arguments: dict[str, Any] = {}
    for text in texts:
        name, equals, value = (part.strip() for part in text.partition("="))
        if not equals or not name.isidentifier():
            raise UserError(f"A model argument is written NAME=VALUE, for example num_classes=10, but got {text!r}.")
        if name in arguments:
            raise UserError(f"The model argument {name!r} is given twice: {arguments[name]!r} and {value!r}.")
        try:
            arguments[name] = json.loads({"True": "true", "False": "false", "None": "null"}.get(value, value))
        except json.JSONDecodeError:
            arguments[name] = value
    return arguments


def input_channels(model: nn.Module) -> int | None:
    """Channels of the images a model takes: those of its first convolution; None where it has none."""
    convolutions = (layer for layer in model.modules() if isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d)))
    return next((layer.in_channels for layer in convolutions), None)


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Copy the tensors of a file into `model`.

    A checkpoint may wrap its state_dict as ``{"state_dict": ...}`` or ``{"model": ...}``; the prefixes ``module.``
    and ``_orig_mod.`` that DistributedDataParallel and torch.compile add are taken off. Missing are allowed:
    tensors tied to one that is there, and BatchNorm's counters of batches.

    Raises:
        UserError: the file cannot be read safely, or names or shapes differ from the model's.
    """
    given = _unwrapped(_read_weights(Path(path).expanduser()), path)
    own = model.state_dict()
    tied = {own[name].data_ptr() for name in given.keys() & own.keys() if own[name].numel()}
    missing = [
        name
        for name, tensor in own.items()
        if name not in given and tensor.data_ptr() not in tied and not name.endswith("num_batches_tracked")
    ]
    problems = _listed("missing", missing) + _listed(
        "unknown to the model", [name for name in given if name not in own]
    )
    differ = [
        f"{name} is {list(tensor.shape)} in the file, {list(own[name].shape)} in the model"
        for name, tensor in given.items()
        if name in own and tensor.shape != own[name].shape
    ]
    problems += _listed("of another shape", differ)
    if problems:
        raise UserError(
            f"The weights {path} do not fit the model ({len(own)} tensors): {'; '.join(problems)}. Give the file that "
            "belongs to this model, or the model's arguments (such as num_classes) that belong to this file."
        )
    broken = [
        name for name, tensor in given.items() if tensor.is_floating_point() and not bool(tensor.isfinite().all())
    ]
    if broken:
        raise UserError(f"The weights {path} hold NaN or infinite values in {', '.join(broken[:_SHOWN])}.")
    model.load_state_dict(given, strict=False)


def _constructor(spec: str) -> tuple[Callable[..., Any], dict[str, Any]]:
    """The function that `spec` names and the arguments that keep it from downloading."""
    family, _, name = spec.partition(":")
    if family == "torchvision" and name:
        from torchvision import models

        if name not in models.list_models():
            raise _unknown_model("torchvision", name, models.list_models(), "torchvision.models.list_models()")
        builder = models.get_model_builder(name)
        # Detection and segmentation models fetch a pretrained backbone unless told not to.
        names = [n for n in ("weights", "weights_backbone") if n in inspect.signature(builder).parameters]
        return builder, dict.fromkeys(names)
    if family == "timm" and name:
        try:
            import timm
        except ImportError as error:
            raise UserError(
                f"The model {spec!r} needs timm, which is not installed. Run: pip install 'autoprune[timm]'"
            ) from error
        if not timm.is_model(name):
            raise _unknown_model("timm", name, timm.list_models(), "timm.list_models()")
        return timm.create_model, {"model_name": name, "pretrained": False}
    if family and name:
        try:
            return import_function(spec, "model"), {}
        except UserError as error:
            near = difflib.get_close_matches(family, ("torchvision", "timm", "autoprune.nets"), n=1, cutoff=0.8)
            if not near or not isinstance(error.__cause__, ModuleNotFoundError):
                raise
            raise UserError(f"{error} Did you mean {near[0]}:{name}?") from error
    from torchvision import models

    hint = f" Did you mean torchvision:{spec}?" if spec in models.list_models() else ""
    raise UserError(
        f"Cannot read the model {spec!r}.{hint} Write torchvision:NAME (torchvision:resnet18), timm:NAME "
        "(timm:resnet26), or package.module:function (autoprune.nets:digits_resnet) for a function of your own."
    )


def _unknown_model(family: str, name: str, names: list[str], command: str) -> UserError:
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    return UserError(f"Unknown {family} model {name!r}.{hint} {command} names all {len(names)}.")


def _read_weights(path: Path) -> Any:
    if not path.is_file():
        raise UserError(f"The weights {path} do not exist, or are not a file.")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise UserError(f"The weights {path} are not a complete safetensors file: {error}.") from error
    if path.suffix not in _TORCH_ENDINGS:
        raise UserError(f"Weights are read from .safetensors, {', '.join(_TORCH_ENDINGS)}, but got {path}.")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"The weights {path} hold more than tensors (or are damaged), and opening them could run code that came "
            "with the file. Save the state_dict alone where you trust it: torch.save(model.state_dict(), path)."
        ) from error
    except (RuntimeError, OSError, EOFError, ValueError, TypeError, LookupError, AttributeError, MemoryError) as error:
        raise UserError(f"The weights {path} cannot be read: {' '.join(str(error).split())}") from error


def _unwrapped(state: Any, path: str | Path) -> dict[str, Tensor]:
    for wrapper in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not (isinstance(state, dict) and state and all(isinstance(value, Tensor) for value in state.values())):
        holds = f" of {', '.join(map(repr, list(state)[:_SHOWN]))}" if isinstance(state, dict) and state else ""
        raise UserError(
            f"The weights {path} must be a state_dict, a dict of tensors (bare, or under 'state_dict' or 'model'), but "
            f"are a {type(state).__name__}{holds}."
        )
    weights: dict[str, Tensor] = state
    for prefix in ("module.", "_orig_mod."):
        if all(name.startswith(prefix) for name in weights):
            weights = {name[len(prefix) :]: value for name, value in weights.items()}
    return weights


def _listed(what: str, names: list[str]) -> list[str]:
    if not names:
        return []
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return [f"{len(names)} {what}: {', '.join(names[:_SHOWN])}{more}"]
