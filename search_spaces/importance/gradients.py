"""Criteria that read gradients: how much the loss would change without a unit.

Both take the weights S that read a unit (input channels of the next convolutions, columns of the next linear layers).
Setting them to zero is what cutting the unit does, and the loss then changes, to first order, by the sum over S of
weight x gradient. For layers that multiply their input by these weights as they are, that sum is also the derivative
by a gate on the unit, placed where it is read (behind norm, nonlinearity and residual sum) and shared by all readers:
so tied layers, heads and depthwise channels need no rule of their own. Where no weight reads a unit (channels
of queries and keys, which meet each other), the weights that make it stand in.

The model is run in evaluation mode: norms use their running statistics, dropout is off.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from operator import itemgetter
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from autoprune.search_spaces.errors import UserError
from autoprune.search_spaces.importance.base import (
    Batch,
    Criterion,
    Loss,
    Place,
    arguments,
    group_sums,
    instead,
    on_device,
)
from autoprune.search_spaces.importance.reading import reading_places
from autoprune.search_spaces.runs import without_own_storage
from autoprune.search_spaces.tracer import map_tensors, plain_kernels, tensors
from autoprune.search_spaces.types import FloatArray

if TYPE_CHECKING:
    from autoprune.search_spaces.space import SearchSpace


class GradientCriterion(Criterion):
    """Mean over batches or samples of the squared first-order change of the loss."""

    needs: ClassVar[Literal["gradients"]] = "gradients"
    per_sample: ClassVar[bool]

    def scores(self, space: SearchSpace, batches: Iterable[Batch], loss: Loss) -> list[FloatArray]:
        """One forward and backward pass a batch, or a sample."""
        model = without_own_storage(space.model).eval()
        weights = dict(model.named_parameters())
        for weight in weights.values():
            weight.requires_grad_(weight.is_floating_point())
        places = [
            [place for place in group if weights[place[0]].requires_grad]
            for group in scored_places(space, weights.keys())
        ]
        units = {(i, *place): space.unit_positions(*place, i) for i, group in enumerate(places) for place in group}
        wanted = list(dict.fromkeys(place for group in places for place in group))
        totals = [np.zeros(group.num_units) for group in space.groups]
        num = 0
        for inputs, targets in _steps(batches, one_by_one=self.per_sample):
            change = _changes(model, weights, wanted, on_device(inputs, model), on_device(targets, model), loss)
            for index, group in enumerate(space.groups):
                sums = sum(group_sums(change[p], units[(index, *p)], group.num_units) for p in places[index])
                totals[index] += np.square(sums)
            num += 1
        if not num:
            raise UserError(f"The importance {self.name!r} needs at least one batch of data, but got none.")
        found = [total / num if total.any() else None for total in totals]
        return instead(space, self.name, found, "the loss does not depend on them in evaluation mode")


class Taylor(GradientCriterion):
    """Squared change of a batch's mean loss, averaged over batches (Molchanov et al. 2019, arXiv:1906.10771, sec. 3).

    Differs: the weights that read the unit, where the paper takes those that make it or a gate behind the batch norm;
    ranked once, not between steps of training.
    """

    name = "taylor"
    summary = "squared first-order change of a batch's loss"
    per_sample = False


class Fisher(GradientCriterion):
    """Squared change of the loss of one sample, averaged over samples (Theis et al. 2018, arXiv:1801.05787, sec. 2).

    With the gate shared by all layers that a unit ties, as in group Fisher (Liu et al. 2021, arXiv:2108.00708, sec. 3).

    Differs: no division by the memory that a unit takes, which is the same for all units of a group; ranked once.
    """

    name = "fisher"
    summary = "squared first-order change of each sample's loss"
    per_sample = True


def scored_places(space: SearchSpace, parameters: Iterable[str]) -> list[list[Place]]:
    """For each group the parameter dimensions that read its units, or make them where none reads them."""
    names = set(parameters)
    reading = [place for place in reading_places(space) if place[0] in names]
    found = []
    for index in range(len(space.groups)):
        mine = [place for place in reading if bool((space.unit_positions(*place, index) >= 0).any())]
        found.append(mine or [place for place in space.producing_places(index) if place[0] in names])
    return found


def _changes(
    model: nn.Module, weights: dict[str, nn.Parameter], wanted: list[Place], inputs: Any, targets: Any, loss: Loss
) -> dict[Place, Tensor]:
    """Sum of weight x gradient over all other dimensions, [positions] for each place, float64."""
    args, kwargs = arguments(inputs)
    names = list(dict.fromkeys(name for name, _ in wanted))
    with torch.enable_grad(), plain_kernels(model):
        value = loss(model(*args, **kwargs), targets)
        if value.numel() != 1 or not bool(value.isfinite().all()):
            shown = value.detach().item() if value.numel() == 1 else f"a tensor {list(value.shape)}"
            raise UserError(f"The loss of every batch must be one finite number, but got {shown}.")
        gradients = torch.autograd.grad(value.sum(), [weights[name] for name in names], allow_unused=True)
    products: dict[str, Tensor] = {}
    for name, gradient in zip(names, gradients, strict=True):
        weight = weights[name].detach()
        wide = torch.promote_types(weight.dtype, torch.float32)
        products[name] = torch.zeros_like(weight) if gradient is None else weight.to(wide) * gradient.to(wide)
    result = {}
    for name, dim in wanted:
        others = [d for d in range(products[name].dim()) if d != dim]
        result[name, dim] = products[name].sum(others, dtype=torch.float64) if others else products[name].double()
    return result


def _steps(batches: Iterable[Batch], *, one_by_one: bool) -> Iterator[Batch]:
    """The batches, or their samples as batches of one: exact for every model, whatever it does to its batch."""
    for inputs, targets in batches:
        if not one_by_one:
            yield inputs, targets
            continue
        for i in range(len(next(tensors(inputs)))):
            index = slice(i, i + 1)
            yield map_tensors(inputs, itemgetter(index)), map_tensors(targets, itemgetter(index))
