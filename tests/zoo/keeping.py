"""What a cut must leave as it was: the dense network bit for bit, and of the subnet all that is not a size."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def state(model: nn.Module) -> dict[str, Any]:
    """Everything of a network that can be compared: bits of tensors, flags, plain attributes."""
    found: dict[str, Any] = {}
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        found[f"{name} (bits)"] = hashlib.blake2b(_bytes(tensor)).hexdigest()
        found[f"{name} (flags)"] = (tensor.requires_grad, tuple(tensor.shape), sorted(vars(tensor)))
    for path, module in model.named_modules():
        for key, value in vars(module).items():
            if isinstance(value, int | float | str | tuple):
                found[f"{path}.{key}"] = repr(value)
    return found


def _bytes(tensor: Tensor) -> memoryview:
    array: Any = tensor.detach().contiguous().view(-1).view(torch.uint8).numpy()
    return memoryview(array)


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Keys whose values differ."""
    return [key for key in {**before, **after} if before.get(key) != after.get(key)]


def mark(model: nn.Module) -> None:
    """Flags and a hook that are not the same everywhere, so that losing them is seen."""
    model.train()
    leaf = next(m for m in model.modules() if not any(m.children()))
    leaf.eval()
    leaf.register_forward_hook(_nothing)
    next(model.parameters()).requires_grad_(False)


def _nothing(module: nn.Module, args: Any, output: Any) -> None:
    """A hook that can be copied with its module."""


def lost(dense: nn.Module, subnet: nn.Module) -> Iterator[str]:
    """What the subnet should have kept of the dense network and has not."""
    for what, describe in _KEPT.items():
        if describe(dense) != describe(subnet):
            yield what


def _tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]


def _ties(model: nn.Module) -> list[list[str]]:
    names: dict[int, list[str]] = {}
    for name, tensor in _tensors(model):
        names.setdefault(id(tensor), []).append(name)
    return list(names.values())


_KEPT: dict[str, Callable[[nn.Module], Any]] = {
    "names of parameters and buffers": lambda m: [name for name, _ in _tensors(m)],
    "which of them are parameters": lambda m: [isinstance(t, nn.Parameter) for _, t in _tensors(m)],
    "dtypes": lambda m: [t.dtype for _, t in _tensors(m)],
    "requires_grad": lambda m: [t.requires_grad for _, t in _tensors(m)],
    "ties": _ties,
    "classes and paths of modules": lambda m: [(path, type(each)) for path, each in m.named_modules()],
    "training flags": lambda m: [each.training for each in m.modules()],
    "hooks": lambda m: [[list(getattr(each, kind).values()) for kind in _HOOKS] for each in m.modules()],
}


def structure(tree: Any, sizes_vary: bool) -> Any:
    """Nesting, types, keys, shapes and dtypes of an output; the first sizes left out where they depend on the data."""
    if isinstance(tree, Tensor):
        return (*tree.shape[int(sizes_vary and tree.dim() > 0) :], tree.dim(), tree.dtype)
    if isinstance(tree, Mapping):
        return type(tree), {key: structure(value, sizes_vary) for key, value in tree.items()}
    if isinstance(tree, tuple | list):
        return type(tree), [structure(value, sizes_vary) for value in tree]
    if dataclasses.is_dataclass(tree):
        fields = [field.name for field in dataclasses.fields(tree)]
        return type(tree), {name: structure(getattr(tree, name), sizes_vary) for name in fields}
    return type(tree)
