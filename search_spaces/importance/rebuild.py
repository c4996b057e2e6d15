"""Greedy selection by what compensation cannot rebuild: units that the others can stand in for go first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
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

_SPARSE = 0.3
"""Share of positions that are gone from which on they are dropped."""


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
        reads = [
            {name: unit for name, moment in moments.items() if (unit := _units(space, index, moment)) is not None}
            for index in range(len(space.groups))
        ]
        left = Counter(name for names in reads for name in names)
        parts: dict[str, list[tuple[Tensor, Tensor]]] = {}  # inverses of wide layers are large: none longer than needed
        found: list[FloatArray | None] = []
        for group, names in zip(space.groups, reads, strict=True):
            readers = []
            for name, unit in names.items():
                if name not in parts:
                    parts[name] = list(_parts(moments[name], weights[name]))
                readers += [_Reader(*part, unit, group.num_units) for part in parts[name]]
                left[name] -= 1
                if not left[name]:
                    del parts[name]
            found.append(_order(readers, group.num_units) if readers else None)
        return instead(space, self.name, found, "no layer that sums over them reads them")


def _units(space: SearchSpace, index: int, moment: Moments) -> IntArray | None:
    """Unit of group `index` at every input of a layer; None where the layer reads none of them."""
    unit = space.unit_positions(moment.layer.name, moment.layer.in_dim, index)
    return unit if len(unit) == moment.second.shape[-1] and (unit >= 0).any() else None


def _parts(moment: Moments, weight: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Weights [rows, I], scaled to outputs of mean square 1, and inverse second moments [I, I] of a layer's groups."""
    matrix = moment.layer.matrix(weight.detach()).double()  # [g, O, I, k]
    for rows, second in zip(matrix.movedim(2, 3).flatten(1, 2), moment.second.double(), strict=True):
        scale = ((rows @ second) * rows).sum().clamp(min=1e-30)
        ridge = _RIDGE * second.diagonal().mean().clamp(min=1e-30)
        yield rows / scale.sqrt(), torch.linalg.inv(second + ridge * torch.eye(len(second)).to(second))


class _Reader:
    """One layer that reads the units: what is left of its weights and of the inverse second moments, at these units.

    What else the layer reads always stays, and is in the inverse; its rows and columns are not needed.

    Attributes:
        places: positions of every unit that is left [left, positions].
    """

    def __init__(self, weight: Tensor, inverse: Tensor, unit: IntArray, num_units: int) -> None:
        order = np.argsort(unit, kind="stable")
        here = torch.as_tensor(order[unit[order] >= 0], device=weight.device)
        weight = weight[:, here]
        if len(weight) > len(here):  # only the weights' Gram matrix matters: fewer rows with the same one
            weight = torch.linalg.qr(weight, mode="r").R
        self.weight, self.inverse = weight, inverse[here][:, here]
        self.places = torch.arange(len(here), device=weight.device).reshape(num_units, -1)
        self._gone = torch.zeros(len(here), dtype=torch.bool, device=weight.device)

    def losses(self) -> Tensor:
        """What the error rises by if a unit goes, for every unit that is left."""
        if self.places.shape[1] == 1:
            one = self.places[:, 0]
            single: Tensor = self.weight[:, one].square().sum(0) / self.inverse.diagonal()[one]
            return single
        columns = self.weight[:, self.places].movedim(0, 2)  # [left, positions, rows]
        blocks = self.inverse[self.places.unsqueeze(2), self.places.unsqueeze(1)]
        losses: Tensor = (torch.linalg.solve(blocks, columns) * columns).sum((1, 2))
        return losses

    def remove(self, which: IntArray) -> None:
        """Rebuild some of the units that are left from the others."""
        index = torch.as_tensor(which, device=self.places.device)
        place = self.places[index].ravel()
        block = torch.linalg.solve(self.inverse[place][:, place], self.inverse[place])  # [positions, I]
        self.weight.addmm_(self.weight[:, place], block, alpha=-1)
        self.inverse.addmm_(self.inverse[:, place], block, alpha=-1)
        self._gone[place] = True
        stays = torch.ones(len(self.places), dtype=torch.bool, device=self.places.device)
        stays[index] = False
        self.places = self.places[stays]
        if self._gone.sum() > _SPARSE * len(self._gone):
            self._compact()

    def _compact(self) -> None:
        """Drop the positions that are gone: their rows and columns hold zeros by now, up to rounding."""
        left = ~self._gone
        self.weight = self.weight[:, left]
        self.inverse = self.inverse[left][:, left]
        self.places = (left.cumsum(0) - 1)[self.places]
        self._gone = self._gone[left]


def _order(readers: list[_Reader], num_units: int) -> FloatArray:
    """When each unit goes; of many, a few at once."""
    score = np.zeros(num_units)
    left = np.arange(num_units)
    while len(left):
        losses = torch.stack([reader.losses() for reader in readers]).sum(0).cpu().numpy()
        which = np.argsort(losses, kind="stable")[: max(1, len(left) // _ROUNDS)]
        score[left[which]] = num_units - len(left) + np.arange(len(which))
        left = np.delete(left, which)
        for reader in readers:
            reader.remove(which)
    return score
