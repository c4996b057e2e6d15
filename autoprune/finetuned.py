"""What comes out of a training, also of one that failed."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from autoprune.search_spaces.errors import UserError


@dataclass(frozen=True, slots=True)
class Epoch:
    """One pass: its number (from 1), mean loss, accuracy on the search split, last learning rate, wall seconds."""

    epoch: int
    loss: float
    score: float
    lr: float
    seconds: float


@dataclass(frozen=True, slots=True)
class FineTuned:
    """What came out of a training.

    Attributes:
        model: a new network with the best weights, in evaluation mode; the given one where there was no epoch.
        history: one entry an epoch.
        best_epoch: whose weights `model` has (the last one's where that was asked for); 0 means those it began with.
        score_before, score_after: accuracy in [0, 1] on `split`. The best epoch is chosen on the same split, so
            `score_after` flatters: use the test split for final numbers.
        precision: "fp32" or "bf16", of training and scores.
        split: what the scores were taken on.
    """

    model: nn.Module
    history: tuple[Epoch, ...]
    best_epoch: int
    score_before: float
    score_after: float
    precision: str
    split: str = "search"


class FineTuneFailed(UserError):
    """The loss or the outputs became NaN or infinite. `best` is the best result up to then (its epoch 0: the start);
    None where even the start could not be scored.
    """

    best: FineTuned | None = None
