"""What happens to the output of a layer before the next one reads it: norm, sum with a stream, clamp.

Found by watching which op takes which value, in a run of the dense network; no module class is looked at.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from torch import Tensor, nn

from autoprune.search_spaces.layers import Call, Layer, LayerWatch, aten
from autoprune.search_spaces.tracer import tensors

Key: TypeAlias = tuple[int, int]
"""A value of a run: number of the op that made it, number among its outputs."""

_KEY = "_autoprune_key"
_NORMS = (aten.native_batch_norm, aten._native_batch_norm_legit_no_training, aten.cudnn_batch_norm)
_SAME = (aten.view, aten._unsafe_view, aten.clone, aten.alias, aten.detach)


@dataclass(frozen=True)
class Norm:
    """A batch norm in evaluation mode: names of its tensors, and epsilon."""

    weight: str | None
    bias: str | None
    mean: str
    variance: str
    eps: float

    def affine(self, named: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """What it multiplies every channel by, and what it then adds."""
        scale = (named[self.variance] + self.eps).rsqrt()
        if self.weight is not None:
            scale = scale * named[self.weight]
        shift = -named[self.mean] * scale
        return scale, shift if self.bias is None else shift + named[self.bias]


@dataclass(frozen=True)
class Behind:
    """``clamp(norm(output) + other)``; every part may be missing.

    Attributes:
        total: op that adds; None without a sum.
        other: what is added.
        is_known: whether `other` is computed before the layer runs.
        low, high: of the clamp.
    """

    norm: Norm | None = None
    total: int | None = None
    other: Key | None = None
    is_known: bool = False
    low: float | None = None
    high: float | None = None


class Surroundings(LayerWatch):
    """Watches one run; afterwards `behind` knows what stands behind a layer.

    Attributes:
        layers: by number of the op.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.layers: dict[int, Layer] = {}
        self._takers: dict[Key, list[int]] = {}
        self._ops: dict[int, tuple[Any, tuple[Any, ...]]] = {}

    def on_layer(self, call: Call) -> Any:
        """Note the layer."""
        self.layers[call.index] = call.layer
        return self.on_op(call.func, call.args, dict(call.kwargs))

    def on_op(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Note who takes what."""
        for tensor in tensors((args, kwargs)):
            key = getattr(tensor, _KEY, None)
            if key is not None:
                self._takers.setdefault(key, []).append(self.index)
        self._ops[self.index] = func.overloadpacket, tuple(map(self._noted, args))
        out = func(*args, **kwargs)
        for position, tensor in enumerate(out if isinstance(out, tuple | list) else (out,)):
            if isinstance(tensor, Tensor):
                setattr(tensor, _KEY, (self.index, position))
        return out

    def once(self) -> dict[int, Layer]:
        """Layers that run once, and whose weight nothing else takes."""
        calls = Counter(layer.name for layer in self.layers.values())
        return {i: layer for i, layer in self.layers.items() if calls[layer.name] == self.uses[layer.name] == 1}

    def behind(self, index: int) -> Behind:
        """Follow the output of the layer `index` as long as one op takes it."""
        found = Behind()
        key: Key = (index, 0)
        while True:
            takers = self._takers.get(key, [])
            packet, args = self._ops[takers[0]] if takers else (None, ())
            if packet in (aten.relu, aten.relu_, aten.hardtanh, aten.hardtanh_):  # others may take the stream as well
                low, high = (0.0, None) if len(args) == 1 else args[1:3]
                return replace(found, low=low, high=high)
            if len(takers) != 1:
                return found
            if packet in (aten.add, aten.add_) and len(args) == 2 and found.total is None:
                other = args[1] if args[0] == key else args[0]
                if not isinstance(other, tuple) or other == key:
                    return found
                found = replace(found, total=takers[0], other=other, is_known=other[0] < index)
            elif packet in _NORMS and found.norm is None and found.total is None and args[0] == key:
                norm = _norm(args)
                if norm is None:
                    return found
                found = replace(found, norm=norm)
            elif packet not in _SAME:
                return found
            key = (takers[0], 0)

    def _noted(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return getattr(value, _KEY, None) or self.names.get(id(value))
        return value if isinstance(value, int | float) else None


def _norm(args: tuple[Any, ...]) -> Norm | None:
    """The norm that an op with these arguments is; None where it takes statistics of the batch."""
    weight, bias, mean, variance = args[1:5]
    training, eps = (False, args[6]) if len(args) == 7 else (args[5], args[7])
    if training or not isinstance(mean, str) or not isinstance(variance, str):
        return None
    return Norm(weight, bias, mean, variance, eps)
