"""Second moments of what every layer of the dense model reads: what a cut loses, and what the rest can rebuild.

Collected once, on a few batches; every candidate afterwards is algebra. With inputs x split into kept K and cut P, the
linear estimate of x_P from x_K that is best on average is ``B x_K + c``, ``B = S_PK (S_KK + lambda I)^-1``: it folds
into the layer, ``W'_K = W_K + W_P B``, and its constant into the bias where there is one.

Letters as in `layers`: g groups, I inputs a group.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from autoprune.search_spaces.errors import UserError
from autoprune.search_spaces.importance.base import arguments, on_device
from autoprune.search_spaces.layers import Call, Layer, LayerWatch, watching
from autoprune.search_spaces.runs import without_own_storage

if TYPE_CHECKING:
    from autoprune.search_spaces.space import SearchSpace


MAX_INPUTS = 8_192
"""Inputs of one group from which on a layer is left out: its moments are of their square (half a gigabyte here)."""


@dataclass(frozen=True)
class Moments:
    """Of the inputs of one layer, averaged over all places of all samples.

    Attributes:
        second: [g, I, I], not centred; float32, since wide layers have many.
        mean: [g, I]; float64.
    """

    layer: Layer
    second: Tensor
    mean: Tensor


class _Sums(LayerWatch):
    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.found: dict[str, tuple[Layer, Tensor, Tensor, int]] = {}

    def on_layer(self, call: Call) -> Any:
        x = call.channels().float()
        if not 1 < x.shape[2] <= MAX_INPUTS:
            return call.run()
        second = x.transpose(1, 2) @ x  # rounded far below the ridge that solvers add
        mean, count = x.sum(1, dtype=torch.float64), x.shape[1]
        before = self.found.get(call.layer.name)
        if before is not None:
            second, mean, count = second.add_(before[1]), mean + before[2], count + before[3]
        self.found[call.layer.name] = (call.layer, second, mean, count)
        return call.run()


def collect_moments(space: SearchSpace, batches: Iterable[Any]) -> dict[str, Moments]:
    """Moments of every layer of the dense model by the name of its weight; one forward pass a batch.

    A layer that reads one input a group (depthwise) has none: nothing can be rebuilt there. Nor has one with more than
    `MAX_INPUTS`.

    Args:
        batches: inputs, read once.

    Raises:
        UserError: there is no batch.
    """
    model = without_own_storage(space.model).eval()
    sums = _Sums(model)
    empty = True
    for inputs in batches:
        empty = False
        args, kwargs = arguments(on_device(inputs, model))
        watching(sums, model, partial(model, *args, **kwargs))
    if empty:
        raise UserError("Moments need at least one batch of data, but got none.")
    return {
        name: Moments(layer, second / count, mean / count) for name, (layer, second, mean, count) in sums.found.items()
    }
