"""The scale of batch norms: what network slimming ranks by."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from autoprune.search_spaces.importance.base import Batch, Criterion, Loss, Place, instead, mean_scaled, unit_rows
from autoprune.search_spaces.labels import field_at
from autoprune.search_spaces.rules.norm import BATCH_NORMS
from autoprune.search_spaces.tracer import TensorSpec
from autoprune.search_spaces.types import FloatArray

if TYPE_CHECKING:
    from autoprune.search_spaces.space import SearchSpace


class BatchNormScale(Criterion):
    """Absolute weight of the batch norms that a unit passes (Liu et al. 2017, arXiv:1708.06519, sec. 3).

    Batch norms are found by the ATen op and the labels of its weight, whatever the module is called. A unit with
    several channels has the sum over them; where a unit passes several norms, each norm's scores are scaled to mean 1
    and averaged.

    Differs: the paper ranks all layers against each other, here the ratios are the agent's; and it trains with an L1
    penalty on these weights first. Without that training they say less.
    """

    name = "bn_scale"
    needs: ClassVar[Literal["weights"]] = "weights"
    summary = "weight of the batch norms (network slimming)"

    def scores(self, space: SearchSpace, batches: Iterable[Batch], loss: Loss) -> list[FloatArray]:
        """Groups that pass no batch norm with a weight are ranked by `l2`, with a warning."""
        places = scale_places(space)
        found: list[FloatArray | None] = []
        for index in range(len(space.groups)):
            rows = unit_rows(space, index, places)
            found.append(mean_scaled([np.abs(r).sum(1) for r in rows]) if rows else None)
        return instead(space, self.name, found, "no batch norm with a weight of its own in evaluation mode")


def scale_places(space: SearchSpace) -> list[Place]:
    """The weights of batch norms, in order of execution."""
    atoms = []
    for op in space.ops:
        weight = op.args[1] if op.func.overloadpacket.__name__ in BATCH_NORMS else None
        f = field_at(weight.labels, 0) if isinstance(weight, TensorSpec) else None
        if f is not None:
            atoms.append(f.atoms)
    return space.places_of(atoms)
