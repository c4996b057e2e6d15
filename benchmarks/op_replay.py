"""Run one recorded ATen op again, at other widths: what a layer costs after a cut, without building the network.

An op's *widths* are the sizes a cut changes: of a convolution or matrix product the input and the output channels,
each on its own; of any other op all labelled dimensions together.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from autoprune.search_spaces.labels import Field
from autoprune.search_spaces.tracer import Op, TensorSpec

STEP = 8
"""Widths above 64 are measured at multiples of this, as the levels are."""


@dataclass(frozen=True, slots=True)
class Widths:
    """Fields of a weight's two widths; None where it cannot shrink. Depthwise convolutions have one, their groups."""

    inputs: Field | None
    outputs: Field | None


def widths_of(op: Op) -> Widths | None:
    """The two widths of a convolution or matrix product with a weight; None for other ops."""
    name = op.func.overloadpacket.__name__
    if name == "convolution":
        weight, (into, out) = op.args[1], (0, 1) if op.args[6] else (1, 0)
    elif name in ("mm", "addmm"):
        weight, (into, out) = op.args[2 if name == "addmm" else 1], (0, 1)
    else:
        return None
    by_dim = {f.dims[0]: f for f in weight.labels if len(f.dims) == 1}
    return Widths(by_dim.get(into), by_dim.get(out))


def signature(op: Op) -> str:
    """Ops with the same signature take the same time: function, shapes, and which dimensions can shrink."""

    def describe(value: Any) -> str:
        if isinstance(value, TensorSpec):
            dims = sorted(d for f in value.labels for d in f.dims)
            return f"{'x'.join(map(str, value.shape))}:{str(value.dtype).removeprefix('torch.')}/{dims}"
        if isinstance(value, tuple | list):
            return f"[{','.join(map(describe, value))}]"
        return str(value)

    return f"{op.func}({','.join(map(describe, (*op.args, *op.kwargs.items())))})"


def scaled_shape(spec: TensorSpec, share: float) -> list[int]:
    """A shape with every labelled dimension at `share`; of a grid the first shrinks (whole heads)."""
    sizes = list(spec.shape)
    for f in spec.labels:
        sizes[f.dims[0]] = scaled(sizes[f.dims[0]], share)
    return sizes


def scaled(size: int, share: float) -> int:
    """A width at `share` of `size`: a whole number, aligned where wide enough."""
    step = STEP if size >= 64 else 1
    return size if share >= 1 else max(step, round(size * share / step) * step)


def make_call(op: Op, share: tuple[float, float], device: torch.device) -> Callable[[], Any]:
    """A call of the op on random tensors, its (input, output) widths at these shares; others shrink by the second."""
    generator = torch.Generator().manual_seed(0)

    def tensor(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        if dtype.is_floating_point:  # positive, so that variances are valid
            return torch.rand(tuple(shape), generator=generator).add_(0.5).to(device, dtype)
        return torch.zeros(tuple(shape), dtype=dtype, device=device)

    widths = widths_of(op)
    if op.func.overloadpacket.__name__ == "bmm":
        args = _batched_product(op, share[1], tensor)
    elif widths is None:
        args = _all_scaled(op, share[1], tensor)
    elif op.func.overloadpacket.__name__ == "convolution":
        args = _convolution(op, widths, share, tensor)
    else:
        args = _product(op, widths, share, tensor)
    return lambda: op.func(*args, **op.kwargs)


_MakeTensor = Callable[[Sequence[int], torch.dtype], Tensor]


def _all_scaled(op: Op, share: float, tensor: _MakeTensor) -> list[Any]:
    result = scaled_shape(op.outputs[0], share)
    pointwise = torch.Tag.pointwise in op.func.tags

    def scale(value: Any) -> Any:
        if isinstance(value, TensorSpec):
            sizes = scaled_shape(value, share)
            if pointwise:  # an operand that was expanded to the full size has no labels, and shrinks all the same
                behind = result[len(result) - len(sizes) :]
                sizes = [size if size == 1 else new for size, new in zip(sizes, behind, strict=True)]
            return tensor(sizes, value.dtype)
        return type(value)(map(scale, value)) if isinstance(value, tuple | list) else value

    args = list(map(scale, op.args))
    name = op.func.overloadpacket.__name__
    if name == "native_layer_norm":
        args[1] = list(args[0].shape[-len(args[1]) :])
    elif name == "native_group_norm":
        args[4] = args[0].shape[1]
    return args


def _convolution(op: Op, widths: Widths, share: tuple[float, float], tensor: _MakeTensor) -> list[Any]:
    x, weight, bias, *settings = op.args
    transposed, groups = settings[3], settings[5]
    channels, width = x.shape[1] // groups, op.outputs[0].shape[1] // groups
    if groups > 1 and channels == 1:
        groups = scaled(groups, share[1] if widths.outputs else share[0])
    else:
        channels = scaled(channels, share[0]) if widths.inputs else channels
        width = scaled(width, share[1]) if widths.outputs else width
    into, out = channels * groups, width * groups
    return [
        tensor([x.shape[0], into, *scaled_shape(x, share[1])[2:]], x.dtype),
        tensor([*([into, width] if transposed else [out, channels]), *weight.shape[2:]], weight.dtype),
        None if bias is None else tensor([out], bias.dtype),
        *settings[:5],
        groups,
    ]


def _product(op: Op, widths: Widths, share: tuple[float, float], tensor: _MakeTensor) -> list[Any]:
    *added, a, b = op.args
    inner = scaled(b.shape[0], share[0]) if widths.inputs else b.shape[0]
    columns = scaled(b.shape[1], share[1]) if widths.outputs else b.shape[1]
    return [
        *(tensor([*t.shape[:-1], columns], t.dtype) for t in added),
        tensor([scaled_shape(a, share[1])[0], inner], a.dtype),
        tensor([columns, inner], b.dtype).t(),  # as nn.Linear keeps its weight
    ]


def _batched_product(op: Op, share: float, tensor: _MakeTensor) -> list[Any]:
    """The batch shrinks where that of one operand does (heads), and so does the width that is summed over."""
    a, b = (scaled_shape(spec, share) for spec in op.args)
    batch, inner = min(a[0], b[0]), min(a[2], b[1])
    return [tensor([batch, a[1], inner], op.args[0].dtype), tensor([batch, inner, b[2]], op.args[1].dtype)]


def time_call(call: Callable[[], Any], device: torch.device, *, repeats: int = 7) -> float:
    """Fastest of `repeats` runs after two more, in milliseconds: what the op takes when nothing else interferes."""
    on_gpu = device.type == "cuda"
    times = []
    with torch.inference_mode():
        for _ in range(repeats + 2):
            if on_gpu:
                torch.cuda.synchronize(device)
            start = time.perf_counter()
            call()
            if on_gpu:
                torch.cuda.synchronize(device)
            times.append(time.perf_counter() - start)
    return min(times[2:]) * 1e3
