"""How good a network is on a split: one number, higher is better.

Top-k accuracy needs class indices as targets; `DivergenceFromDense` needs no labels. Networks are run in evaluation
mode without gradients. `torch.no_grad`, not `inference_mode`: a module that keeps a tensor it made during scoring
(a position table, say) could not be trained afterwards; the speed is the same.

Shape letters: N samples in a batch, C classes; further dimensions (pixels) count as samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from functools import partial
from typing import Any, Protocol, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoprune.bounds import Cut
from autoprune.data.base import Batches, forward, tensors_of
from autoprune.data.ordered import OrderedBatches
from autoprune.memory import Halving, join, smallest_batch
from autoprune.precision import autocast, device_of, prepare, resolve_precision
from autoprune.running import check_finite, check_targets, evaluation_mode, logits_of
from autoprune.search_spaces.errors import UserError

Score: TypeAlias = Callable[[nn.Module, Batches], float]
"""(network in evaluation mode, batches of the split) -> score, higher is better."""


def predictions(model: nn.Module, batches: Batches, precision: str) -> Generator[tuple[Any, Any, Tensor], None, None]:
    """Yield (inputs, targets, logits [N, C, ...] on the model's device) for each batch.

    Raises:
        EvaluationFailed: an output is NaN or infinite.
        UserError: the outputs are no class scores, or there is no batch.
    """
    device = device_of(model)
    halving = Halving(smallest_batch(model))

    def run(inputs: Any) -> Tensor:
        parts = (prepare(part, device, precision) for part in halving.parts(inputs))
        return join([logits_of(forward(model, part)) for part in parts])

    empty = True
    for inputs, targets in batches:
        empty = False
        # Entered per batch: a generator must not keep the caller in these contexts while it is suspended.
        with evaluation_mode(model), torch.no_grad(), autocast(precision, device):
            logits = halving(partial(run, inputs))
        check_finite(logits)
        yield inputs, targets, logits
    if empty:
        raise UserError("The split holds no batch: give at least one sample to score on.")


class SampleScore(Protocol):
    """A score that is a non-increasing function of losses >= 0, one for each sample: see `bounds`.

    Attributes:
        pruning: what an exact bound of it is called.
    """

    pruning: str

    def read(self, batches: Batches) -> None:
        """Read the split once, where anything must be known of it beforehand; called before all else."""
        ...

    def in_order(self, batches: OrderedBatches) -> SampleScore:
        """Return the same score for batches in another order of the split that was read."""
        ...

    def losses(self, number: int, inputs: Any, targets: Any, logits: Tensor) -> Tensor:
        """Return the losses [N] of batch `number`."""
        ...

    def value(self, losses: Sequence[float], total: int) -> float:
        """Return the score of a split with `total` targets (samples, or their pixels), the first of which have these
        losses, and all others none.
        """
        ...

    def total(self, batches: Batches) -> int:
        """Return the number of targets in the split."""
        ...

    def hardness(self, number: int, inputs: Any, targets: Any, logits: Tensor) -> Tensor:
        """Return how hard the samples [N] of a batch are for the network that gave these outputs: larger is harder."""
        ...

    def hardest_first(self, hardness: Tensor) -> Tensor:
        """Return the order in which samples [N] of this hardness, all of the split, had best be evaluated."""
        ...


class Test(Protocol):
    """Watches the losses of a candidate and may give it up."""

    def add(self, losses: Sequence[float]) -> bool:
        """Take in the losses of the next samples; return whether the candidate is to be cut."""
        ...


def score_samples(
    score: SampleScore,
    model: nn.Module,
    batches: Batches,
    precision: str,
    *,
    alpha: float | None = None,
    total: int | None = None,
    test: Test | None = None,
    losses: list[float] | None = None,
) -> float | Cut:
    """Score a network, batch by batch, until it is done or certain not to exceed `alpha`.

    Losses of single samples are added without rounding (`math.fsum`), so their order does not matter.

    Args:
        total: targets in the split; needed with `alpha`.
        test: cuts it too, where it says so.
        losses: an empty list, filled with the losses.

    Raises:
        EvaluationFailed: an output is NaN or infinite.
        UserError: outputs, targets and score do not fit each other, or there is no batch.
    """
    losses = [] if losses is None else losses
    count = 0
    with closing(predictions(model, batches, precision)) as outputs:
        for number, (inputs, targets, logits) in enumerate(outputs):
            new = score.losses(number, inputs, targets, logits).tolist()
            losses += new
            count += logits.numel() // logits.shape[1]
            if alpha is not None and total is not None and count < total:
                bound = score.value(losses, total)
                if bound <= alpha:
                    return Cut(bound, count / total, score.pruning)
                if test is not None and test.add(new):
                    return Cut(alpha, count / total, "statistical")
    return score.value(losses, count)


class TopK:
    """Share of targets whose class is among the `k` highest scores; the loss of a sample is how many are not.

    Args:
        split: name of the batches in messages.
    """

    pruning = "alpha-beta"

    def __init__(self, k: int = 1, split: str = "search") -> None:
        self._k, self._split = k, split

    def read(self, batches: Batches) -> None:
        """Nothing need be known."""

    def in_order(self, batches: OrderedBatches) -> TopK:
        """It does not depend on the order."""
        return self

    def losses(self, number: int, inputs: Any, targets: Any, logits: Tensor) -> Tensor:
        """Wrong targets of each sample, int64 [N]."""
        if logits.shape[1] <= self._k:
            raise UserError(
                f"Top-{self._k} accuracy needs more than {self._k} classes, but the model has {logits.shape[1]}."
            )
        wanted = self._wanted(targets, logits)
        # argmax takes the first of equal scores, so that a constant network is not right everywhere.
        highest = logits.argmax(dim=1, keepdim=True) if self._k == 1 else logits.topk(self._k, dim=1).indices
        right = (highest == wanted).any(dim=1)
        return (~right).reshape(len(right), -1).sum(dim=1)

    def value(self, losses: Sequence[float], total: int) -> float:
        """Share of targets that are right."""
        return (total - math.fsum(losses)) / total

    def total(self, batches: Batches) -> int:
        """Read the split once to count."""
        return sum(tensors_of(targets)[0].numel() for _, targets in batches)

    def hardness(self, number: int, inputs: Any, targets: Any, logits: Tensor) -> Tensor:
        """How far the k-th best other class lies above the right one, mean over a sample's targets, [N]."""
        wanted = self._wanted(targets, logits)
        others = logits.scatter(1, wanted, -math.inf).topk(self._k, dim=1).values[:, -1:]
        return (others - logits.gather(1, wanted)).double().reshape(len(logits), -1).mean(dim=1)

    def hardest_first(self, hardness: Tensor) -> Tensor:
        """By falling hardness."""
        return hardness.argsort(descending=True, stable=True)

    def _wanted(self, targets: Any, logits: Tensor) -> Tensor:
        return check_targets(targets, logits.shape, self._split).to(logits.device).unsqueeze(1)


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
    found = score_samples(TopK(k, split), model, batches, resolve_precision(precision, model))
    assert not isinstance(found, Cut), "nothing was given to cut at"
    return found


class DivergenceFromDense:
    """Score "kl": minus the mean KL(dense || network) of the softmax outputs, in nats; 0 is the dense network itself.

    The dense network runs once over the split; its log probabilities (float32, N x C x 4 bytes) stay in memory.
    """

    pruning = "alpha-beta"

    def __init__(self, dense: nn.Module, precision: str) -> None:
        self._dense, self._precision = dense, precision
        # Per batch: a checksum of its inputs (None: they lie in memory), dense log probabilities.
        self._cache: list[tuple[float | None, Tensor]] = []
        self._total = 0

    def __call__(self, model: nn.Module, batches: Batches) -> float:
        """Score `model` on the split that the first call saw.

        Raises:
            EvaluationFailed: an output is NaN or infinite.
            UserError: the batches differ from those of the first call, or the outputs have another shape.
        """
        self.read(batches)
        found = score_samples(self, model, batches, self._precision)
        assert not isinstance(found, Cut), "nothing was given to cut at"
        return found

    def read(self, batches: Batches) -> None:
        """Run the dense network over the split, where that was not done yet."""
        if not self._cache:
            self._cache = [
                (_checksum(inputs), F.log_softmax(logits, dim=1).cpu())
                for inputs, _, logits in predictions(self._dense, batches, self._precision)
            ]
            self._total = sum(stored.numel() // stored.shape[1] for _, stored in self._cache)

    def in_order(self, batches: OrderedBatches) -> DivergenceFromDense:
        """The same score on batches in another order of the split that was read: with the very same dense outputs."""
        other = DivergenceFromDense(self._dense, self._precision)
        joined = torch.cat([stored for _, stored in self._cache])
        other._cache = [(None, joined[chosen]) for chosen in batches.chosen()]
        other._total = self._total
        return other

    def losses(self, number: int, inputs: Any, targets: Any, logits: Tensor) -> Tensor:
        """Divergence of each sample, summed over its pixels, float64 [N].

        Rounding can leave a divergence a little below 0, where it cannot be: such a one is 0.
        """
        checksum, log_dense = self._cache[number] if number < len(self._cache) else (math.nan, logits)
        if checksum is not None and checksum != _checksum(inputs):
            raise self._changed(number)
        if log_dense.shape != logits.shape:
            raise UserError(
                f"The subnet returns {list(logits.shape)} where the dense model returned {list(log_dense.shape)}."
            )
        found = divergence(log_dense.to(logits.device), F.log_softmax(logits, dim=1))
        return found.double().clamp(min=0).reshape(len(found), -1).sum(dim=1)

    def value(self, losses: Sequence[float], total: int) -> float:
        """Minus the mean."""
        if total != self._total:
            raise self._changed(len(self._cache))
        return 0.0 - math.fsum(losses) / total  # not -0.0 for the dense network

    def total(self, batches: Batches) -> int:
        """Samples, or their pixels, of the split."""
        self.read(batches)
        return self._total

    def hardness(self, number: int, inputs: Any, targets: Any, logits: Tensor) -> Tensor:
        """Their divergence."""
        return self.losses(number, inputs, targets, logits)

    def hardest_first(self, hardness: Tensor) -> Tensor:
        """By falling divergence."""
        return hardness.argsort(descending=True, stable=True)

    @staticmethod
    def _changed(number: int) -> UserError:
        return UserError(
            "The score 'kl' compares with stored outputs of the dense model, but the search split has changed: "
            f"its batch {number} is not the one seen before. Give a loader that does not shuffle or augment."
        )


def divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) over dimension 1 in nats, of log probabilities [N, C, ...] -> [N, ...]."""
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(dim=1)


def _checksum(inputs: Any) -> float:
    """Sum of all inputs in float64: the same batch gives the same bits, another one hardly ever."""
    return sum(float(tensor.sum(dtype=torch.float64)) for tensor in tensors_of(inputs))
