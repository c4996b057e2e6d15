"""Which units of a group go first: one score per unit, computed once per study; the least important go first.

A criterion says what it needs (`Criterion.needs`): weights; activations or gradients, for which it reads batches once.
Every candidate keeps the best units, so it is a prefix of one ranking per group, and subnets are nested.
"""

from __future__ import annotations

from autoprune.search_spaces.errors import unknown
from autoprune.search_spaces.importance.activations import APoZ, HRank, MeanActivation
from autoprune.search_spaces.importance.base import Batch, Criterion, ImportanceWarning, Loss
from autoprune.search_spaces.importance.gradients import Fisher, Taylor
from autoprune.search_spaces.importance.norms import BatchNormScale
from autoprune.search_spaces.importance.rebuild import Rebuild
from autoprune.search_spaces.importance.weights import FPGM, L1, L2, Random

__all__ = ["CRITERIA", "Batch", "Criterion", "ImportanceWarning", "Loss", "get_criterion"]

CRITERIA: dict[str, Criterion] = {
    criterion.name: criterion
    for criterion in (
        L1(), L2(), FPGM(), BatchNormScale(), APoZ(), MeanActivation(), HRank(), Rebuild(), Taylor(), Fisher(), Random()
    )
}  # fmt: skip


def get_criterion(name: str) -> Criterion:
    """The criterion of that name.

    Raises:
        UserError: there is none.
    """
    if name not in CRITERIA:
        raise unknown("importance criterion", name, CRITERIA)
    return CRITERIA[name]
