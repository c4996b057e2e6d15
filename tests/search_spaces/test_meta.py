"""The oracle is torch: shapes, strides, types and errors of the quick meta kernels are those of its own."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from autoprune.search_spaces import meta

aten = torch.ops.aten


def _variants(shape: tuple[int, ...]) -> list[Tensor]:
    """One shape in several types and memory orders."""
    x = torch.empty(shape, device="meta")
    found = [x, x.double(), x.half(), x.bfloat16(), x.long(), x.bool()]
    if len(shape) > 1:
        found += [x.transpose(0, 1).contiguous().transpose(0, 1), torch.empty(shape[1:], device="meta").expand(shape)]
        found.append(torch.empty(*shape[:-1], 2 * shape[-1], device="meta")[..., ::2])
    if len(shape) == 4:
        found.append(x.to(memory_format=torch.channels_last))
    return found


def _calls() -> Iterator[tuple[Any, tuple[Any, ...], dict[str, Any]]]:
    shapes = [(), (3,), (2, 3), (1, 3, 1, 1), (2, 3, 4, 3), (0, 3)]
    some = [t for shape in shapes for t in _variants(shape)]
    for x in some:
        for name in ("relu", "gelu", "silu", "sigmoid", "tanh", "hardtanh", "hardswish", "hardsigmoid", "elu", "exp",
                     "leaky_relu", "relu_", "silu_", "hardtanh_", "hardswish_", "leaky_relu_", "elu_"):  # fmt: skip
            yield getattr(aten, name).default, (x,), {}
        for number in (2, 0.5, 1j, True):
            yield aten.add.Tensor, (x, number), {}
            yield aten.mul.Scalar, (x, number), {}
            yield aten.pow.Tensor_Scalar, (x, number), {}
            yield aten.add_.Tensor, (x, number), {}
        yield aten.gelu.default, (x,), {"approximate": "tanh"}
        yield aten.hardtanh.default, (x, 0, 6), {}
        for dim in (-1, 0, 1, 7):
            yield aten._safe_softmax.default, (x, dim), {}
    for a, b in itertools.product(some, some):
        yield aten.mul.Tensor, (a, b), {}
        yield aten.add_.Tensor, (a, b), {}
        yield aten.sub.Tensor, (a, b), {"alpha": 2}
    for bias, a, b in itertools.product(_variants((4,)), _variants((2, 3)), _variants((3, 4)) + _variants((4, 3))):
        yield aten.addmm.default, (bias, a, b), {}
        yield aten.addmm.default, (bias, a, b.t()), {"beta": 2}
        yield aten.addmm.default, (bias[:1], a, b), {}
    for x, c in itertools.product(some, [*_variants((3,)), torch.empty(4, device="meta")]):
        for training in (False, True):
            yield aten.native_batch_norm.default, (x, c, c, c, c, training, 0.1, 1e-5), {}
        yield aten.native_batch_norm.default, (x, None, None, c, c, False, 0.1, 1e-5), {}
        yield aten.native_layer_norm.default, (x, [3], c, None, 1e-5), {}
        yield aten.native_layer_norm.default, (x, list(x.shape[1:]), None, None, 1e-5), {}
        for groups in (1, 3, 2):
            batch, channels = (*x.shape, 1, 1)[:2]
            pixels = x.numel() // max(batch * channels, 1)
            yield aten.native_group_norm.default, (x, c, c, batch, channels, pixels, groups, 1e-5), {}
            yield aten.native_group_norm.default, (x, None, None, 1, 3, 4, groups, 1e-5), {}


def _seen(out: Any) -> Any:
    """Shapes, types and strides; that of a dimension of size 1 means nothing."""
    tensors = out if isinstance(out, tuple) else (out,)
    return [(t.shape, t.dtype, [s for s, n in zip(t.stride(), t.shape, strict=True) if n > 1]) for t in tensors]


def test_every_answer_is_that_of_torch() -> None:
    answered: Counter[str] = Counter()
    for func, args, kwargs in _calls():
        out = meta.answer(func, args, kwargs)
        if out is not None:
            answered[func.overloadpacket.__name__] += 1
            assert _seen(out) == _seen(func(*args, **kwargs)), (func, args, kwargs)  # raises where torch does
            assert (out is args[0]) == func.overloadpacket.__name__.endswith("_")
    expected = {func.overloadpacket.__name__ for func, _, _ in _calls()}
    assert answered.keys() == expected


def test_real_tensors_are_computed() -> None:
    assert torch.equal(meta.call(aten.relu.default, (torch.tensor([-1.0, 2.0]),), {}), torch.tensor([0.0, 2.0]))
