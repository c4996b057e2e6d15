"""Cut a model: a new module of the same class with smaller tensors; the model given is never changed.

The module tree is copied around the tensors (`copy.deepcopy` with the tensors already in its memo), so a parameter is
either index-selected or shared, never copied and thrown away. Which units go is decided elsewhere.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from autoprune.search_spaces.types import IntArray

Kept = Mapping[str, Sequence["IntArray | None"]]
"""Per parameter or buffer name: kept indices per dimension, ascending; None keeps the dimension whole."""

Change: TypeAlias = tuple[str, str, Any]
"""Module path, attribute, new value."""


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, each tied tensor once, under its first name."""
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if id(tensor) not in seen:
            seen.add(id(tensor))
            found[name] = tensor
    return found


def replace_tensors(model: nn.Module, tensors: Mapping[int, Tensor]) -> nn.Module:
    """A copy of the module tree in which every tensor whose id is in `tensors` is that one; ties stay ties.

    What a hook made of parameters (``torch.nn.utils.weight_norm``) cannot be copied, and is made again when it is used.
    """
    memo = dict(tensors)
    for module in model.modules():
        for value in vars(module).values():
            if isinstance(value, Tensor) and not value.is_leaf:
                memo.setdefault(id(value), value.detach())
    return copy.deepcopy(model, memo)


def to_meta(model: nn.Module) -> nn.Module:
    """A copy without storage."""
    return replace_tensors(model, {id(t): _like(t, t.detach().to("meta")) for t in named_tensors(model).values()})


def cut(model: nn.Module, kept: Kept, attributes: Iterable[Change] = (), *, share: bool = False) -> nn.Module:
    """Return the smaller model.

    Args:
        attributes: what the modules' own numbers become.
        share: parameters that are not cut share storage with `model` instead of being cloned: right for scoring,
            wrong for training. Buffers are never shared.
    """
    parameters = {id(p) for p in model.parameters()}
    new = {}
    for name, tensor in named_tensors(model).items():
        data = tensor.detach()
        cut_dims = [(d, i) for d, i in enumerate(kept.get(name, ())) if i is not None]
        # the dimension that shrinks most first, so that the next copies less
        for dim, index in sorted(cut_dims, key=lambda pair: len(pair[1]) / data.shape[pair[0]]):
            data = data.index_select(dim, torch.as_tensor(index, device=data.device))
        if cut_dims and tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
            data = data.contiguous(memory_format=torch.channels_last)
        if not cut_dims and not (share and id(tensor) in parameters):
            data = data.clone()
        new[id(tensor)] = _like(tensor, data)
    smaller = replace_tensors(model, new)
    set_attributes(smaller, attributes)
    return smaller


def set_attributes(model: nn.Module, changes: Iterable[Change]) -> None:
    """Set numbers that modules hold."""
    for path, attribute, value in changes:
        setattr(model.get_submodule(path), attribute, value)


def _like(tensor: Tensor, data: Tensor) -> Tensor:
    """`data` as a parameter where `tensor` is one, trainable where it is."""
    return nn.Parameter(data, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else data
