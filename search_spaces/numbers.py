"""Numbers among an op's arguments: code may compute them from a width (``x / math.sqrt(q.shape[-1])``).

Sizes and dimensions are not meant: they follow the labels, and the proof looks at shapes. What is meant is what ATen
takes as a number to calculate with, and small tensors made from Python numbers (``torch.tensor(2.0)``).
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

_NUMBERS = (torch._C.NumberType, torch._C.FloatType)


@cache
def _places(func: torch._ops.OpOverload) -> tuple[tuple[int, str], ...]:
    """Position and name of the arguments that may be numbers; a tensor may be one (``x * 2`` is `mul.Tensor`)."""
    places = []
    for position, argument in enumerate(func._schema.arguments):
        kind = argument.type
        if isinstance(kind, torch._C.OptionalType):
            kind = kind.getElementType()
        if isinstance(kind, (*_NUMBERS, torch._C.TensorType)):
            places.append((position, argument.name))
    return tuple(places)


def numbers(func: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """The numbers that an op is called with, in the order of its arguments."""
    if func is torch.ops.aten.lift_fresh.default and args[0].numel() == 1 and args[0].device.type == "cpu":
        return (args[0].item(),)
    values = (args[i] if i < len(args) else kwargs.get(name) for i, name in _places(func))
    return tuple(v for v in values if isinstance(v, int | float | complex))


def with_numbers(
    func: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any], new: tuple[Any, ...]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments with their numbers replaced by `new`, as `numbers` returned them from another call of this op."""
    if func is torch.ops.aten.lift_fresh.default:
        return (torch.full_like(args[0], new[0]),), kwargs
    values, given, named = iter(new), list(args), dict(kwargs)
    for i, name in _places(func):
        if isinstance(args[i] if i < len(args) else kwargs.get(name), int | float | complex):
            if i < len(args):
                given[i] = next(values)
            else:
                named[name] = next(values)
    return tuple(given), named
