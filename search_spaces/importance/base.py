"""What every criterion shares: its interface, rows of weights by unit, how several places make one score.

Letters: U units of a group.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from autoprune.search_spaces.errors import UserError
from autoprune.search_spaces.tracer import map_tensors
from autoprune.search_spaces.types import FloatArray, IntArray

if TYPE_CHECKING:
    from autoprune.search_spaces.space import SearchSpace

Batch: TypeAlias = tuple[Any, Any]
"""(inputs, targets): tensors, or tuples (positional) or dicts (keyword arguments of `forward`) of tensors."""

Loss: TypeAlias = Callable[[Any, Any], Tensor]
"""(output of the model, targets) -> mean loss over the batch, one number."""

Place: TypeAlias = tuple[str, int]
"""A dimension of a parameter."""


class ImportanceWarning(UserWarning):
    """A criterion says nothing about some groups; what ranks them instead is in the message."""


class Criterion(ABC):
    """Scores the units of every group; higher is more important. Holds no state.

    Attributes:
        name: what users call it.
        needs: what it looks at. All but "weights" read batches of data, once per study.
        summary: a few words for lists.
    """

    name: ClassVar[str]
    needs: ClassVar[Literal["weights", "activations", "gradients"]]
    summary: ClassVar[str]

    @abstractmethod
    def scores(self, space: SearchSpace, batches: Iterable[Batch], loss: Loss) -> list[FloatArray]:
        """Scores [U] of every group, the same at every call; the model is left as it is.

        Args:
            space: the traced model; it is run in evaluation mode.
            batches: read once, in order; empty where only weights are needed.
            loss: for criteria that need gradients.

        Raises:
            UserError: there is no batch, or the criterion says nothing about this model.
        """


def mean_scaled(scores: Sequence[FloatArray]) -> FloatArray:
    """One score [U] from several places that speak of the same units.

    Each place is scaled to mean 1 first, so that a large layer does not rule; a place of zeros stays zeros.
    """
    total: FloatArray = np.mean([s / max(float(s.mean()), 1e-30) for s in scores], axis=0)
    return total


def unit_rows(space: SearchSpace, index: int, places: Iterable[Place]) -> list[FloatArray]:
    """Values of a group's units at dimensions of parameters: [U, elements] each, float64.

    A unit that has several positions there (a head, a column of a grouped convolution) has them side by side.
    """
    tensors = dict(space.model.named_parameters()) | dict(space.model.named_buffers())
    rows = []
    for name, dim in places:
        unit = space.unit_positions(name, dim, index)
        mine = np.flatnonzero(unit >= 0)
        if len(mine):
            order = mine[np.argsort(unit[mine], kind="stable")]
            values = tensors[name].detach().movedim(dim, 0)[torch.as_tensor(order, device=tensors[name].device)]
            rows.append(values.reshape(space.groups[index].num_units, -1).double().cpu().numpy())
    return rows


def instead(space: SearchSpace, name: str, scores: Sequence[FloatArray | None], why: str) -> list[FloatArray]:
    """Scores with the groups that have none (None) ranked by the norm of their weights; a warning names them.

    Raises:
        UserError: no group has any.
    """
    from autoprune.search_spaces.importance.weights import L2

    missing = [group.name for group, score in zip(space.groups, scores, strict=True) if score is None]
    if not missing:
        return [score for score in scores if score is not None]
    if len(missing) == len(scores):
        raise UserError(f"The importance {name!r} says nothing about this model: {why}. Choose another one, say 'l2'.")
    shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
    warnings.warn(
        f"The importance {name!r} says nothing about {len(missing)} of {len(scores)} groups ({shown}): {why}. "
        "They are ranked by 'l2' instead.",
        ImportanceWarning,
        stacklevel=4,
    )
    stand_in = L2().scores(space, (), no_loss)
    return [other if score is None else score for score, other in zip(scores, stand_in, strict=True)]


def no_loss(output: Any, targets: Any) -> Tensor:
    """Stands for the loss where none is needed."""
    raise AssertionError("a criterion that reads weights has asked for a loss")


def on_device(value: Any, model: nn.Module) -> Any:
    """Inputs or targets where the model is."""
    device = next((t.device for t in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    return map_tensors(value, lambda tensor: tensor.to(device))


def arguments(inputs: Any) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    """Positional and keyword arguments for inputs in any of their forms; (tuple, dict) has both, as for `trace`."""
    if isinstance(inputs, Mapping):
        return (), inputs
    if isinstance(inputs, tuple) and list(map(type, inputs)) == [tuple, dict]:
        return inputs[0], inputs[1]
    return (tuple(inputs), {}) if isinstance(inputs, tuple | list) else ((inputs,), {})


def group_sums(values: Tensor | FloatArray, unit: IntArray, num_units: int) -> FloatArray:
    """Sum `values` [positions] by `unit` [positions] (-1: no unit of the group) -> [U]."""
    array = values.double().cpu().numpy() if isinstance(values, Tensor) else values
    mine = unit >= 0
    sums: FloatArray = np.bincount(unit[mine], array[mine], minlength=num_units).astype(np.float64)
    return sums
