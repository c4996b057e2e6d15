"""Watch the layers of a running network: every op that multiplies its input by a weight of the model and sums.

Convolutions of any kind (not transposed ones) and matrix products, found by the ATen op and the identity of the weight,
not by module class: a `Linear`, a call of `F.linear` with a raw parameter and a packed projection look alike. As for
the tracer, nothing is known of the network beside what it runs.

Letters: N samples, R rows (places of the output: pixels, tokens), g groups, I inputs and O outputs a group, k taps of
the kernel, D = I k unknowns of one output.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from autoprune.search_spaces.surgery import named_tensors
from autoprune.search_spaces.tracer import plain_kernels, tensors

aten = torch.ops.aten


@dataclass(frozen=True)
class Layer:
    """How a weight is laid out: a matrix [g, O, D] per output group.

    Attributes:
        name, bias: parameters of the model; no bias: None.
        groups: g.
        is_transposed: the weight is stored as [inputs, outputs].
    """

    name: str
    bias: str | None
    groups: int = 1
    is_transposed: bool = False

    @property
    def in_dim(self) -> int:
        """The dimension of the weight that is summed over."""
        return 0 if self.is_transposed else 1

    def matrix(self, weight: Tensor) -> Tensor:
        """The weight as [g, O, I, k]; a view."""
        weight = weight.t() if self.is_transposed else weight
        return weight.reshape(self.groups, weight.shape[0] // self.groups, weight.shape[1], -1)

    def shaped(self, matrix: Tensor, like: Tensor) -> Tensor:
        """[g, O, I, k] in the layout of the weight `like`."""
        if self.is_transposed:
            return matrix.reshape(like.shape[1], like.shape[0]).t()
        return matrix.reshape(like.shape)


@dataclass(frozen=True)
class Call:
    """One call of a layer, before its output is there.

    Attributes:
        index: number of the op in the run.
        x: [N, channels, *places] of a convolution, [R, inputs] of a product.
    """

    layer: Layer
    index: int
    func: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    x: Tensor

    @property
    def is_convolution(self) -> bool:
        """Whether rows are windows of an image."""
        return self.x.dim() > 2

    @cached_property
    def places(self) -> tuple[int, ...]:
        """Output places of one sample; none of a product."""
        if not self.is_convolution:
            return ()
        weight, stride, padding, dilation = self.args[1], *self.args[3:6]
        sizes = zip(self.x.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True)
        return tuple((size + 2 * p - d * (kernel - 1) - 1) // s + 1 for size, kernel, s, p, d in sizes)

    @property
    def num_inputs(self) -> int:
        """D of the whole weight."""
        weight: Tensor = self.args[1] if self.is_convolution else self.x
        return math.prod(weight.shape[1:])

    @property
    def num_rows(self) -> int:
        """R of the whole batch."""
        return self.x.shape[0] * math.prod(self.places)

    def channels(self) -> Tensor:
        """Every place of the input: [g, rows, I]."""
        x = self.x.movedim(1, -1) if self.is_convolution else self.x
        return x.reshape(-1, self.layer.groups, x.shape[-1] // self.layer.groups).movedim(1, 0)

    def windows(self, rows: Tensor) -> Tensor:
        """What the outputs `rows` [R] are computed from: [g, R, D], the taps of one input side by side."""
        if not self.is_convolution:
            return self.x[rows].unsqueeze(0)
        stride, padding, dilation = self.args[3:6]
        kernel, groups = self.args[1].shape[2:], self.layer.groups
        x = self.x
        if any(padding):
            x = F.pad(x, [p for pad in reversed(padding) for p in (pad, pad)])
        dims = len(kernel)
        where: list[Tensor] = []
        left = rows
        for axis in reversed(range(dims)):
            start = (left % self.places[axis]) * stride[axis]
            left = left // self.places[axis]
            taps = torch.arange(kernel[axis], device=rows.device) * dilation[axis]
            shape = [1] * dims
            shape[axis] = -1
            where.insert(0, start.reshape(-1, *[1] * dims) + taps.reshape(1, *shape))
        found = x.movedim(1, -1)[(left.reshape(-1, *[1] * dims), *where)]  # [R, *kernel, channels]
        found = found.reshape(len(rows), math.prod(kernel), groups, -1)
        return found.permute(2, 0, 3, 1).reshape(groups, len(rows), -1)

    def fits(self, tensor: Tensor, channels: int) -> bool:
        """Is a tensor of the layout of the layer's output, with so many channels?"""
        if self.is_convolution:
            return tuple(tensor.shape) == (self.x.shape[0], channels, *self.places)
        return tensor.shape[-1] == channels and tensor.numel() == self.num_rows * channels

    def outputs(self, out: Tensor, rows: Tensor) -> Tensor:
        """`out`, an output of the layer or a tensor of its layout, at `rows`: [R, g O]."""
        if not self.is_convolution:
            return out.reshape(-1, out.shape[-1])[rows]
        num_places = math.prod(self.places)
        return out.flatten(2)[rows // num_places, :, rows % num_places]

    def run(self) -> Any:
        """The output."""
        return self.func(*self.args, **self.kwargs)


class LayerWatch(TorchDispatchMode):
    """Sees every op of a run, and hands calls of layers to `on_layer`; run it inside `watching`.

    Attributes:
        uses: per parameter name, the ops that took it so far.
        index: number of the running op.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names = {id(tensor): name for name, tensor in named_tensors(model).items()}
        self.uses: Counter[str] = Counter()
        self.index = -1
        self._views: dict[int, tuple[Tensor, str]] = {}  # transposed weights, held so that their ids stay theirs

    def on_layer(self, call: Call) -> Any:
        """Run a layer; returns its output."""
        return call.run()

    def on_op(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run any other op; returns its output."""
        return func(*args, **kwargs)

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        self.index += 1
        packet = func.overloadpacket
        if packet in (aten.t, aten.transpose) and args[0].dim() == 2 and id(args[0]) in self.names:
            out = func(*args, **kwargs)
            self._views[id(out)] = out, self.names[id(args[0])]
            return out
        call = self._call(func, packet, args, kwargs)
        for name in {n for t in tensors((args, kwargs)) if (n := self._name(t)) is not None}:
            self.uses[name] += 1
        return self.on_op(func, args, kwargs) if call is None else self.on_layer(call)

    def _name(self, tensor: Any) -> str | None:
        name = self.names.get(id(tensor))
        return self._views[id(tensor)][1] if name is None and id(tensor) in self._views else name

    def _call(self, func: Any, packet: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | None:
        if packet is aten.convolution:
            x, weight, bias = args[:3]
            if bool(args[6]) or self._name(weight) is None:
                return None
            groups = int(args[8])
        elif packet in (aten.mm, aten.addmm):
            bias, x, weight = (None, *args[:2]) if packet is aten.mm else args[:3]
            groups = 1
            if kwargs or self._name(weight) is None or self._name(x) is not None:
                return None
        else:
            return None
        name = self._name(weight)
        assert name is not None
        is_transposed = packet is not aten.convolution and id(weight) not in self._views
        bias_name = None if bias is None else self._name(bias)
        if bias is not None and bias_name is None:
            return None
        return Call(Layer(name, bias_name, groups, is_transposed), self.index, func, args, kwargs, x)


def watching(watch: LayerWatch, model: nn.Module, run: Callable[[], Any]) -> Any:
    """Call `run` under `watch`, without gradients, with attention and recurrent layers spelled out."""
    with plain_kernels(model), torch.no_grad(), watch:
        return run()
