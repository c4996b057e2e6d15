"""Meta kernels without a decomposition: shapes of the plain cases of a few common ops, at once.

On the meta device an op only tells shapes, but for norms, activations and linear layers torch does so by running a
decomposition in Python, 0.2 to 2 ms a call: most of the time of a trace. Operands that fit each other and lie in memory
in plain order are answered here; everything else, errors included, is left to torch. The tests compare the two.

Shape letters: N batch, C channels, M, K, P matrix sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def call(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run an ATen op."""
    out = answer(func, args, kwargs)
    return func(*args, **kwargs) if out is None else out


def answer(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What the op makes; None where torch must be asked."""
    name = func.overloadpacket.__name__
    kernel = _KERNELS.get(name) or _KERNELS.get(name.removesuffix("_"))
    if kernel is None or "out" in kwargs or not isinstance(args[0], Tensor) or args[0].device.type != "meta":
        return None
    out = kernel(*args, **kwargs)
    return out if out is None or name in _KERNELS else args[0]  # in place


def _plain(*tensors: Any) -> bool:
    """Are these tensors of one floating-point type on the meta device, dense, in C order and not empty?"""
    dtype = tensors[0].dtype
    return bool(dtype.is_floating_point and tensors[0].numel()) and all(
        isinstance(t, Tensor) and t.dtype == dtype and t.device.type == "meta" and t.is_contiguous() for t in tensors
    )


def _pointwise(x: Tensor, *others: Any, **options: Any) -> Tensor | None:
    """One tensor and numbers, or a second tensor that broadcasts to the first."""
    if any(isinstance(y, complex) for y in others):
        return None
    second = [y for y in others if isinstance(y, Tensor)]
    if not second:
        order = sorted(range(x.dim()), key=x.stride, reverse=True)  # the output lies in memory as x does
        return torch.empty_permuted(x.shape, order, dtype=x.dtype, device="meta") if _plain(x.permute(order)) else None
    shapes = zip(reversed(x.shape), reversed(second[0].shape), strict=False)
    fits = second[0].dim() <= x.dim() and all(b in (1, a) for a, b in shapes)
    return x.new_empty(x.shape) if fits and x.dim() and _plain(x, *second) else None


def _norm(x: Tensor, size: Sequence[int], parameters: Sequence[Tensor | None], *statistics: int) -> Any:
    """What a norm makes of x with parameters of one size; None where they do not fit, or the types are mixed."""
    given = [t for t in parameters if t is not None]
    if x.dtype.itemsize < 4 or not _plain(x, *given) or any(tuple(t.shape) != tuple(size) for t in given):
        return None
    return x.new_empty(x.shape), x.new_empty(statistics), x.new_empty(statistics)


def _batch_norm(x: Tensor, *rest: Any) -> Any:
    """X [N, C, ...] and statistics [C]; in training mode torch changes those given as well."""
    *per_channel, training, _, _ = rest
    if x.dim() < 2 or training:
        return None
    return _norm(x, x.shape[1:2], per_channel, x.shape[1])


def _layer_norm(x: Tensor, size: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float) -> Any:
    """Statistics [..., 1] over the last dimensions, of size `size`."""
    first = x.dim() - len(size)
    if not size or tuple(x.shape[first:]) != tuple(size):
        return None
    return _norm(x, size, (weight, bias), *x.shape[:first], *(1 for _ in size))


def _group_norm(x: Tensor, weight: Any, bias: Any, batch: int, channels: int, pixels: int, groups: int, _: Any) -> Any:
    """X [N, C, ...] and statistics [N, groups]."""
    if tuple(x.shape[:2]) != (batch, channels) or batch * channels * pixels != x.numel() or channels % groups:
        return None
    return _norm(x, (channels,), (weight, bias), batch, groups)


def _addmm(bias: Tensor, a: Tensor, b: Tensor, **scales: Any) -> Tensor | None:
    """Bias [P] + a [M, K] @ b [K, P], b in either order."""
    if b.dim() != 2 or a.dim() != 2 or a.shape[1] != b.shape[0] or bias.shape != b.shape[1:]:
        return None
    return a.new_empty(a.shape[0], b.shape[1]) if _plain(bias, a, b if b.is_contiguous() else b.t()) else None


def _safe_softmax(x: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor | None:
    return x.new_empty(x.shape) if _plain(x) and dtype is None and -x.dim() <= dim < x.dim() else None


_KERNELS: dict[str, Callable[..., Any]] = {
    "native_batch_norm": _batch_norm,
    "native_layer_norm": _layer_norm,
    "native_group_norm": _group_norm,
    "addmm": _addmm,
    "_safe_softmax": _safe_softmax,
    **dict.fromkeys(
        ("add", "sub", "mul", "div", "pow", "exp", "relu", "leaky_relu", "elu", "gelu", "silu", "sigmoid", "tanh",
         "hardtanh", "hardswish", "hardsigmoid"),
        _pointwise,
    ),
}  # fmt: skip
