"""Cut a model: a new module of the same class with smaller tensors; the model given is never changed.

The module tree is copied around the tensors (`skeleton`, with the tensors already in its memo), so a parameter is
either index-selected or shared, never copied and thrown away. Which units go is decided elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from autoprune.search_spaces.collector import collector_paused
from autoprune.search_spaces.skeleton import Skeleton
from autoprune.search_spaces.types import IntArray

Kept = Mapping[str, Sequence["IntArray | None"]]
"""Per parameter or buffer name: kept indices per dimension, ascending; None keeps the dimension whole."""

Change: TypeAlias = tuple[str, str, Any]
"""Module path, attribute, new value."""


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, each tied tensor once, under its first name."""
    parameters, buffers = _named(model)
    return parameters | buffers


def _named(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """As `named_parameters` and `named_buffers`, in one walk and without their generators, several times as fast."""
    parameters: dict[str, Tensor] = {}
    buffers: dict[str, Tensor] = {}
    _walk(model, "", parameters, buffers, set())
    return parameters, buffers


def _walk(
    module: nn.Module, prefix: str, parameters: dict[str, Tensor], buffers: dict[str, Tensor], seen: set[int]
) -> None:
    # no function inside another that calls itself: it would keep itself, and all it sees, until a garbage collection
    if id(module) in seen:
        return
    seen.add(id(module))
    for own, found in ((module._parameters, parameters), (module._buffers, buffers)):
        for name, tensor in own.items():
            if tensor is not None and id(tensor) not in seen:
                seen.add(id(tensor))
                found[prefix + name] = tensor
    for name, child in module._modules.items():
        if child is not None:
            _walk(child, f"{prefix}{name}.", parameters, buffers, seen)


def replace_tensors(model: nn.Module, tensors: Mapping[int, Tensor]) -> nn.Module:
    """A copy of the module tree in which every tensor whose id is in `tensors` is that one; ties stay ties.

    What a hook made of parameters (``torch.nn.utils.weight_norm``) cannot be copied, and is made again when it is used.
    """
    smaller: nn.Module
    try:
        smaller = Skeleton(dict(tensors)).copy(model)
    except RuntimeError:  # the code keeps results with their graph deeper down: they are copied without it
        with_graph = {id(t): t.detach() for t in _with_graph(list(map(vars, model.modules())), set())}
        smaller = Skeleton(with_graph | dict(tensors)).copy(model)
    return smaller


def _with_graph(value: Any, seen: set[int]) -> Iterator[Tensor]:
    """Tensors with a graph in nested containers and plain objects."""
    if id(value) in seen or isinstance(value, nn.Module):
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        if not value.is_leaf:
            yield value
        return
    if isinstance(value, Mapping):
        inside: Iterable[Any] = value.values()
    elif isinstance(value, list | tuple | set):
        inside = value
    else:
        inside = getattr(value, "__dict__", {}).values()
    for each in inside:
        yield from _with_graph(each, seen)


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
    select = _Select()
    new = {}
    with collector_paused():  # a copy is thousands of containers, none of them garbage
        parameters, buffers = _named(model)
        with torch.no_grad():
            for named, may_share in ((parameters, share), (buffers, False)):
                for name, tensor in named.items():
                    data = select(tensor, kept[name]) if name in kept else tensor
                    new[id(tensor)] = _like(tensor, tensor.clone() if data is tensor and not may_share else data)
        smaller = replace_tensors(model, new)
    set_attributes(smaller, attributes)
    return smaller


class _Select:
    """Cuts tensors; an array of indices that several tensors share becomes a tensor once."""

    def __init__(self) -> None:
        self._indices: dict[int, Tensor] = {}

    def __call__(self, tensor: Tensor, kept: Sequence[IntArray | None]) -> Tensor:
        """The kept positions of a tensor, in its memory format; the tensor itself where nothing is cut."""
        cuts = [(d, i) for d, i in enumerate(kept) if i is not None]
        if len(cuts) > 1:  # what shrinks most first, so that the next copies less; rows before columns, which cost more
            cuts.sort(key=lambda cut: len(cut[1]) / tensor.shape[cut[0]])
        data = tensor
        if tensor.is_meta and cuts:  # without values there is nothing to select
            left = dict(cuts)
            data = tensor.new_empty([len(left[d]) if d in left else size for d, size in enumerate(tensor.shape)])
        else:
            for dim, index in cuts:
                data = data.index_select(dim, self._index(index, tensor.device))
        if cuts and tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
            data = data.contiguous(memory_format=torch.channels_last)
        return data

    def _index(self, index: IntArray, device: torch.device) -> Tensor:
        found = self._indices.get(id(index))  # the arrays outlive this object: the caller of `cut` holds them
        if found is None or found.device != device:
            found = self._indices[id(index)] = torch.as_tensor(index, device=device)
        return found


def set_attributes(model: nn.Module, changes: Iterable[Change]) -> None:
    """Set numbers that modules hold."""
    for path, attribute, value in changes:
        module = model
        for name in path.split(".") if path else ():
            child = module._modules[name]
            assert child is not None
            module = child
        vars(module)[attribute] = value  # a plain number: nothing of what `nn.Module.__setattr__` looks for


def _like(tensor: Tensor, data: Tensor) -> Tensor:
    """`data` as a parameter where `tensor` is one, trainable where it is."""
    return nn.Parameter(data, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else data
