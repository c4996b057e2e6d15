"""The score of the worst slice: the least accuracy over classes, or over groups of samples that the user names.

The score is a minimum over slices, a search maximises it: a max-min tree. A candidate falls at its first slice whose
best possible accuracy is no better than alpha, whatever the other slices give (alpha-beta proper).

**What is proved.** The accuracy of slice s is (n_s - wrong_s) / n_s. After any samples, with those to come all right,
it is an upper bound for each slice, and the minimum of upper bounds is one of the minimum. So everything in `bounds`
holds, to the last bit: counts are exact, and the division by n_s is monotone.

Slices that were hard for a first network come first, each with its hardest samples first: see `hardest_first`.

Source: Knuth & Moore 1975, "An analysis of alpha-beta pruning", Artificial Intelligence 6; the score is that of group
distributionally robust optimisation (Sagawa et al. 2020, arXiv:1911.08731), of accuracy in the place of a loss.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from autoprune.data.base import Batches, Inputs, batch_size_of
from autoprune.data.ordered import OrderedBatches
from autoprune.precision import resolve_precision
from autoprune.scores import TopK, score_samples
from autoprune.search_spaces.errors import UserError
from autoprune.search_spaces.types import FloatArray, IntArray

Slices: TypeAlias = Callable[[Inputs, Any], Tensor]
"""(inputs, targets) of a batch -> the slice of each sample, whole numbers [N]."""

WORST_CLASS = "worst_class_accuracy"


def classes(inputs: Inputs, targets: Any) -> Tensor:
    """One slice for each class."""
    found: Tensor = targets
    return found


@dataclass(frozen=True)
class WorstOf:
    """A score for `search`: the accuracy, in [0, 1], of the slice of the search split where it is least.

        ap.search(..., score=ap.WorstOf(lambda inputs, targets: targets // 2))

    Args:
        slices: (inputs, targets) -> the slice of each sample of a batch. Classes, where it is not given. Numbers that
            do not occur in the split are no slices.
    """

    slices: Slices = classes

    def __call__(self, model: nn.Module, batches: Batches) -> float:
        """Score `model` on a split.

        Raises:
            EvaluationFailed: an output is NaN or infinite.
            UserError: outputs, targets and slices do not fit each other, or there is no batch.
        """
        score = WorstSlice(self.slices)
        score.read(batches)
        found = score_samples(score, model, batches, resolve_precision("auto", model))
        assert isinstance(found, float), "nothing was given to cut at"
        return found


class WorstSlice(TopK):
    """The `SampleScore` of `WorstOf`: knows the slice of every sample, in the order of evaluation."""

    pruning = "minimax"

    def __init__(self, slices: Slices) -> None:
        super().__init__()
        self._slices_of = slices
        self._slices: IntArray = np.zeros(0, np.int64)  # of each sample, numbered from 0
        self._sizes: FloatArray = np.zeros(0)  # samples of each slice

    def read(self, batches: Batches) -> None:
        """Find out the slice of each sample, where that was not done yet.

        Raises:
            UserError: there is not one whole number for each sample.
        """
        if self._slices.size:
            return
        found = []
        for inputs, targets in batches:
            numbers, size = self._slices_of(inputs, targets), batch_size_of(inputs)
            if not isinstance(numbers, Tensor) or tuple(numbers.shape) != (size,) or numbers.is_floating_point():
                got = f"{tuple(numbers.shape)}, {numbers.dtype}" if isinstance(numbers, Tensor) else type(numbers)
                raise UserError(
                    f"The worst slice needs one whole number for each of the {size} samples of a batch, but got {got}. "
                    "Where targets are no classes, give slices of your own: score=WorstOf(slices)."
                )
            found.append(numbers.cpu())
        if found:
            _, slices = np.unique(torch.cat(found).numpy(), return_inverse=True)
            self._slices, self._sizes = slices.astype(np.int64), np.bincount(slices).astype(np.float64)

    def in_order(self, batches: OrderedBatches) -> WorstSlice:
        """The same slices, in the order of `batches`."""
        other = WorstSlice(self._slices_of)
        other._slices, other._sizes = self._slices[batches.order.numpy()], self._sizes
        return other

    def value(self, losses: Sequence[float], total: int) -> float:
        """Share of right samples in the slice where it is least."""
        wrong = np.bincount(self._slices[: len(losses)], weights=losses, minlength=len(self._sizes))
        return float(((self._sizes - wrong) / self._sizes).min())

    def hardest_first(self, hardness: Tensor) -> Tensor:
        """Slice by slice, the one with most wrong samples first; in each by falling hardness."""
        values = hardness.numpy()
        wrong = np.bincount(self._slices, weights=values >= 0, minlength=len(self._sizes)) / self._sizes
        return torch.from_numpy(np.lexsort((-values, self._slices, -wrong[self._slices])))
