"""Greedy selection by what compensation cannot rebuild: units that the others can stand in for go first."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from autoprune.search_spaces.importance.base import Batch, Criterion, Loss, instead
from autoprune.search_spaces.moments import Moments, collect_moments
from autoprune.search_spaces.surgery import named_tensors
from autoprune.search_spaces.types import FloatArray, IntArray

if TYPE_CHECKING:
    from autoprune.search_spaces.space import SearchSpace

_RIDGE = 1e-3
"""In units of the mean diagonal of the second moments, as for compensation."""

_ROUNDS = 64
"""Of so many units left one goes at a time, of twice as many two, and so on."""


class Rebuild(Criterion):
    """Order in which units go if each time that one goes whose loss, after the best linear rebuild of every layer that
    reads it, is least; the last to go is most important.

    The loss of a layer is the squared error of its outputs as a share of their square; a residual stream sums over all
    layers that read it. This is backward column subset selection with the update of Hassibi & Stork 1993 ("Optimal
    Brain Surgeon", eq. 5) on the second moments of the layer's inputs (as Frantar & Alistarh 2022, arXiv:2208.11580,
    for single weights).

    Differs: whole units, over all readers at once; the second moments of a convolution are those of its channels.
    """

    name = "rebuild"
    summary = "what the kept units cannot rebuild of it"
    needs: ClassVar[Literal["activations"]] = "activations"

    def scores(self, space: SearchSpace, batches: Iterable[Batch], loss: Loss) -> list[FloatArray]:
        """Place in the order, from 0. One forward pass a batch."""
        moments = collect_moments(space, (inputs for inputs, _ in batches))
        weights = named_tensors(space.model)
        found: list[FloatArray | None] = []
        for index, group in enumerate(space.groups):
            readers = []
            for name, moment in moments.items():
                unit = space.unit_positions(name, moment.layer.in_dim, index)
                if len(unit) == moment.second.shape[-1] and (unit >= 0).any():
                    readers += [_Reader(*part, unit, group.num_units) for part in _parts(moment, weights[name])]
            found.append(_order(readers, group.num_units) if readers else None)
        return instead(space, self.name, found, "no layer that sums over them reads them")


def _parts(moment: Moments, weight: Tensor) -> Iterable[tuple[Tensor, Tensor]]:
    """Weights [rows, I] and second moments [I, I] of every group of a layer."""
    matrix = moment.layer.matrix(weight.detach()).to(moment.second)  # [g, O, I, k]
    return zip(matrix.movedim(2, 3).flatten(1, 2), moment.second, strict=True)


class _Reader:
    """One layer that reads the units: what is left of its weights and of the inverse second moments."""

    def __init__(self, weight: Tensor, second: Tensor, unit: IntArray, num_units: int) -> None:
        if len(weight) > weight.shape[1]:  # only the weights' Gram matrix matters: fewer rows with the same one
            weight = torch.linalg.qr(weight, mode="r").R
        scale = ((weight @ second) * weight).sum().clamp(min=1e-30)
        diagonal = second.diagonal().mean().clamp(min=1e-30)
        self.weight = weight / scale.sqrt()
        self.inverse = torch.linalg.inv(second + _RIDGE * diagonal * torch.eye(len(second)).to(second))
        order = np.argsort(unit, kind="stable")
        order = order[unit[order] >= 0]
        self.places = torch.as_tensor(order.reshape(num_units, -1), device=second.device)  # positions of every unit

    def losses(self) -> Tensor:
        """What the error rises by if a unit goes, for every unit [U]."""
        if self.places.shape[1] == 1:
            one = self.places[:, 0]
            single: Tensor = self.weight[:, one].square().sum(0) / self.inverse.diagonal()[one]
            return single
        columns = self.weight[:, self.places].movedim(0, 2)  # [U, positions, rows]
        blocks = self.inverse[self.places.unsqueeze(2), self.places.unsqueeze(1)]
        losses: Tensor = (torch.linalg.solve(blocks, columns) * columns).sum((1, 2))
        return losses

    def remove(self, units: IntArray) -> None:
        """Rebuild units from the others: their columns become zero, their block of the inverse a unit matrix."""
        place = self.places[torch.as_tensor(units, device=self.places.device)].ravel()
        block = torch.linalg.solve(self.inverse[place][:, place], self.inverse[place])  # [positions, I]
        self.weight.addmm_(self.weight[:, place], block, alpha=-1)
        self.inverse.addmm_(self.inverse[:, place], block, alpha=-1)
        self.weight[:, place] = 0
        self.inverse[:, place] = 0
        self.inverse[place] = 0
        self.inverse[place, place] = 1


def _order(readers: list[_Reader], num_units: int) -> FloatArray:
    """When each unit goes; of many, a few at once."""
    score = np.zeros(num_units)
    left = np.arange(num_units)
    while len(left):
        losses = torch.stack([reader.losses() for reader in readers]).sum(0).cpu().numpy()
        go = left[np.argsort(losses[left], kind="stable")[: max(1, len(left) // _ROUNDS)]]
        score[go] = num_units - len(left) + np.arange(len(go))
        left = np.setdiff1d(left, go)
        for reader in readers:
            reader.remove(go)
    return score
