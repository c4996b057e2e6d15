"""How good a network is on a split: one number, higher is better.

Top-k accuracy needs class indices as targets; `DivergenceFromDense` needs no labels. Networks are run in evaluation
mode without gradients. `torch.no_grad`, not `inference_mode`: a module that keeps a tensor it made during scoring
(a position table, say) could not be trained afterwards; the speed is the same.

Shape letters: N samples in a batch, C classes; further dimensions (pixels) count as samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import zip_longest
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoprune.data.base import Batches, forward, tensors_of
from autoprune.precision import autocast, device_of, prepare, resolve_precision
from autoprune.running import check_finite, check_targets, evaluation_mode, logits_of
from autoprune.search_spaces.errors import UserError

Score: TypeAlias = Callable[[nn.Module, Batches], float]
"""(network in evaluation mode, batches of the split) -> score, higher is better."""


def predictions(model: nn.Module, batches: Batches, precision: str) -> Iterator[tuple[Any, Any, Tensor]]:
    """Yield (inputs, targets, logits [N, C, ...] on the model's device) for each batch.

    Raises:
        EvaluationFailed: an output is NaN or infinite.
        UserError: the outputs are no class scores, or there is no batch.
    """
    device = device_of(model)
    empty = True
    for inputs, targets in batches:
        empty = False
        # Entered per batch: a generator must not keep the caller in these contexts while it is suspended.
        with evaluation_mode(model), torch.no_grad(), autocast(precision, device):
            output = forward(model, prepare(inputs, device, precision))
        logits = logits_of(output)
        check_finite(logits)
        yield inputs, targets, logits
    if empty:
        raise UserError("The split holds no batch: give at least one sample to score on.")


def accuracy(
    model: nn.Module, batches: Batches, *, precision: str = "auto", k: int = 1, split: str = "search"
) -> float:
    """Return the share of samples in [0, 1] whose class is among the `k` highest scores.

    Args:
        model: returns class scores [N, C, ...]; modes are put back.
        batches: (inputs, class indices [N, ...]); read once.
        precision: "auto", "fp32" or "bf16".
        k: 1 for accuracy, 5 for "top5".
        split: name of the batches in messages.

    Raises:
        EvaluationFailed: an output is NaN or infinite.
        UserError: outputs, targets or `k` do not fit each other, or there is no batch.
    """
    resolved = resolve_precision(precision, model)
    right = total = 0
    for _, targets, logits in predictions(model, batches, resolved):
        if logits.shape[1] <= k:
            raise UserError(f"Top-{k} accuracy needs more than {k} classes, but the model has {logits.shape[1]}.")
        wanted = check_targets(targets, logits.shape, split).to(logits.device).unsqueeze(1)
        # argmax takes the first of equal scores, so that a constant network is not right everywhere.
        highest = logits.argmax(dim=1, keepdim=True) if k == 1 else logits.topk(k, dim=1).indices
        right += int((highest == wanted).sum())
        total += wanted.numel()
    return right / total


class DivergenceFromDense:
    """Score "kl": minus the mean KL(dense || network) of the softmax outputs, in nats; 0 is the dense network itself.

    The dense network runs once over the split; its log probabilities (float32, N x C x 4 bytes) stay in memory.
    """

    def __init__(self, dense: nn.Module, precision: str) -> None:
        self._dense, self._precision = dense, precision
        self._cache: list[tuple[float, Tensor]] = []  # per batch: a checksum of its inputs, dense log probabilities

    def __call__(self, model: nn.Module, batches: Batches) -> float:
        """Score `model` on the split that the first call saw.

        Raises:
            EvaluationFailed: an output is NaN or infinite.
            UserError: the batches differ from those of the first call, or the outputs have another shape.
        """
        if not self._cache:
            self._cache = [
                (_checksum(inputs), F.log_softmax(logits, dim=1).cpu())
                for inputs, _, logits in predictions(self._dense, batches, self._precision)
            ]
        total, count = 0.0, 0
        outputs = predictions(model, batches, self._precision)
        for position, (output, stored) in enumerate(zip_longest(outputs, self._cache)):
            if output is None or stored is None or stored[0] != _checksum(output[0]):
                raise UserError(
                    "The score 'kl' compares with stored outputs of the dense model, but the search split has changed: "
                    f"its batch {position} is not the one seen before. Give a loader that does not shuffle or augment."
                )
            logits, log_dense = output[2], stored[1]
            if log_dense.shape != logits.shape:
                raise UserError(
                    f"The subnet returns {list(logits.shape)} where the dense model returned {list(log_dense.shape)}."
                )
            total += float(divergence(log_dense.to(logits.device), F.log_softmax(logits, dim=1)).double().sum())
            count += logits.numel() // logits.shape[1]
        return 0.0 - total / count  # not -0.0 for the dense network


def divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) over dimension 1 in nats, of log probabilities [N, C, ...] -> [N, ...]."""
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(dim=1)


def _checksum(inputs: Any) -> float:
    """Sum of all inputs in float64: the same batch gives the same bits, another one hardly ever."""
    return sum(float(tensor.sum(dtype=torch.float64)) for tensor in tensors_of(inputs))
