"""Estimate what every cut costs from gradients of the dense network alone: where a table should look closer.

The second-order estimate of Theis et al. 2018, arXiv:1801.05787, sec. 2, summed over the units that a level cuts, as if
they did not know of each other.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import itemgetter
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from autoprune.data.base import Inputs, batch_size_of, map_tensors
from autoprune.divergences import floats
from autoprune.evaluate import Evaluator
from autoprune.failures import describe_error
from autoprune.precision import device_of
from autoprune.running import logits_of, private_random
from autoprune.search_spaces import SearchSpace, UserError
from autoprune.search_spaces.importance import ImportanceWarning, get_criterion

STEP = 16
"""Samples of one backward pass of the estimate: more passes are more draws."""


def estimate(
    evaluator: Evaluator, space: SearchSpace, batches: Sequence[tuple[Inputs, Any]], name: str
) -> tuple[tuple[float, ...], ...]:
    """A second-order estimate of the divergence at every level: the sum of what the cut units say by themselves.

    One backward pass for every `STEP` samples. For a KL it is half the Fisher information of a gate on the unit, with
    labels drawn from the network; for squares that of a random projection. Samples get random signs, so the square of
    their sum has the sum of their squares as its mean, and needs no pass for each (Hutchinson 1990).

    Raises:
        UserError: the model has no gradients.
    """
    try:
        with private_random(device_of(space.model), evaluator.seed, 4), warnings.catch_warnings():
            warnings.simplefilter("ignore", ImportanceWarning)  # groups without gradients: any curve will do
            scores = get_criterion("taylor").scores(space, _steps(batches), _loss(name))
    except UserError:
        raise
    except Exception as error:  # the user's model runs in here
        raise UserError(
            f"The estimate behind levels='auto' needs gradients, and failed: {describe_error(error)} Set levels to "
            "'all' or a number."
        ) from error
    rows = []
    for group, unit_scores, order in zip(space.groups, scores, space.ranking(evaluator.importance), strict=True):
        kept = np.concatenate([[0.0], np.cumsum(unit_scores[order])])
        rows.append(tuple(float(max(0.0, kept[-1] - kept[units]) / 2) for units in group.levels))
    return tuple(rows)


def _steps(batches: Iterable[tuple[Inputs, Any]]) -> Iterator[tuple[Inputs, None]]:
    for inputs, _ in batches:
        for start in range(0, batch_size_of(inputs), STEP):
            yield map_tensors(inputs, itemgetter(slice(start, start + STEP))), None


def _loss(name: str) -> Callable[[Any, Any], Tensor]:
    """(output, anything) -> a number whose squared derivative is, on the mean over draws, twice the divergence."""

    def of_scores(output: Any, _: Any) -> Tensor:
        scores = logits_of(output).movedim(1 if name == "classes" else -1, -1).flatten(0, -2)
        drawn = torch.multinomial(scores.detach().softmax(-1), 1).squeeze(-1)
        losses = F.cross_entropy(scores, drawn, reduction="none")
        signs = torch.randint(2, losses.shape, device=losses.device) * 2 - 1
        return (signs * losses).sum() / math.sqrt(len(losses))

    def of_values(output: Any, _: Any) -> Tensor:
        parts = [
            (tensor * torch.randn_like(tensor)).sum() / tensor.detach().norm().clamp(min=1e-12)
            for tensor in floats(output)
            if tensor.requires_grad
        ]
        return math.sqrt(2) * torch.stack([part.float() for part in parts]).sum()

    return of_scores if name in ("classes", "tokens") else of_values
