"""Fine-tune a pruned network with the dense one as its teacher, or train a network from scratch without one.

After every epoch the network is scored on the search split (never on the test split) and the best one so far is kept.
With `checkpoint`, a killed training goes on from the last whole epoch and ends with the very weights, bit for bit, of
one that was not interrupted (same machine, same number of threads).
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from autoprune.checkpoint import copy_state, read_checkpoint, shapes_digest, weight_norms, write_checkpoint
from autoprune.data.base import Data, Inputs, batch_size_of, forward
from autoprune.precision import autocast, device_of, prepare, resolve_precision
from autoprune.progress import NO_PROGRESS, Progress, Task
from autoprune.recalibrate import recalibrate, tracking_layers
from autoprune.running import EvaluationFailed, check_targets, evaluation_mode, logits_of, private_random
from autoprune.scores import accuracy
from autoprune.search_spaces.errors import UserError
from autoprune.training import (
    FineTune,
    learning_rate,
    make_average,
    make_optimizer,
    training_loss,
    update_average,
)

__all__ = ["Epoch", "FineTune", "FineTuneFailed", "FineTuned", "finetune"]

AVERAGE_SAMPLES = 2000
"""Training samples for the BatchNorm statistics of averaged weights."""


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


def finetune(
    model: nn.Module,
    data: Data,
    settings: FineTune | None = None,
    *,
    teacher: nn.Module | None = None,
    seed: int = 0,
    last: bool = False,
    checkpoint: Path | None = None,
    progress: Progress | None = None,
    description: str = "Fine-tuning",
) -> FineTuned:
    """Train a copy of `model` on the training split; `model` and `teacher` stay as they are.

    Args:
        model: returns class scores [N, C, ...]; frozen parameters stay frozen.
        data: `train_epoch(seed, epoch)` gives the batches, `search` the scores.
        settings: see `FineTune`; its defaults where None.
        teacher: the dense network, on the same device; None trains with the labels alone.
        seed: of the order of batches, augmentation and dropout.
        last: return the network of the last epoch, not the best one: its score was not chosen on the search split.
        checkpoint: file to go on from and to write after every epoch; it stays after the last, so that the same call
            again returns the same result at once.
        progress: where to report to.
        description: what the progress line says.

    Raises:
        FineTuneFailed: the loss or the outputs became NaN or infinite; the checkpoint still holds the epoch before.
        UserError: model, data, teacher and settings do not fit each other, or `checkpoint` is damaged or belongs to
            another training.
    """
    settings = settings or FineTune()
    if settings.batch_size is not None:
        data = data.with_batch_size(settings.batch_size)
    if teacher is not None and device_of(teacher) != device_of(model):
        raise UserError(f"The teacher is on {device_of(teacher)}, the model on {device_of(model)}: move one of them.")
    precision = resolve_precision(settings.precision, model if teacher is None else teacher)
    if settings.epochs == 0:
        score = accuracy(model, data.search, precision=precision)
        return FineTuned(model, (), 0, score, score, precision)
    training = _Training(model, data, settings, teacher, seed, precision)
    training.start(model, checkpoint)
    steps, done = len(data.train), len(training.history)
    reporting = (progress or NO_PROGRESS).task(description, settings.epochs * steps, "steps", done=done * steps)
    with reporting as task, nullcontext() if teacher is None else evaluation_mode(teacher):
        for epoch in range(done, settings.epochs):
            training.run_epoch(epoch, task)
            if checkpoint is not None:
                write_checkpoint(checkpoint, training.identity, training.state())
    return training.result(last=last)


class _Training:
    """A training between two epochs: everything that the next epoch depends on."""

    def __init__(
        self, model: nn.Module, data: Data, settings: FineTune, teacher: nn.Module | None, seed: int, precision: str
    ) -> None:
        self.data, self.settings, self.teacher, self.seed, self.precision = data, settings, teacher, seed, precision
        self.device = device_of(model)
        self.model = copy.deepcopy(model)
        if precision == "bf16":
            self.model.to(memory_format=torch.channels_last)
        self.average = None if settings.ema is None else make_average(self.model)
        self.optimizer = make_optimizer(self.model, settings)
        self.has_norms = bool(tracking_layers(model))
        self.calibration: list[Inputs] | None = None
        self.start_norms = weight_norms(model)
        self.history: list[Epoch] = []
        self.best = copy_state(model)
        self.best_epoch = 0
        self.score_before = self.best_score = math.nan
        self.identity = {
            **settings.to_dict(),
            "precision": precision,
            "seed": seed,
            "data": data.name,
            "batches": len(data.train),
            "teacher": teacher is not None,
            "shapes": shapes_digest(model),
        }

    def start(self, model: nn.Module, checkpoint: Path | None) -> None:
        """Go on from `checkpoint` where there is one, else score `model` as the first candidate for the best."""
        state = None if checkpoint is None else read_checkpoint(checkpoint, self.identity)
        if state is None:
            try:
                self.score_before = self.best_score = accuracy(model, self.data.search, precision=self.precision)
            except EvaluationFailed as error:
                raise FineTuneFailed(f"The network to train cannot be scored: {error}. Give other weights.") from None
            return
        if not torch.allclose(state["start_norms"], self.start_norms, rtol=1e-3, atol=1e-8):
            raise UserError(
                f"The checkpoint {checkpoint} belongs to a training that began with other weights of the same shapes. "
                "Give it the model it began with, delete it to train from the beginning, or name another file."
            )
        self.load(state)

    def run_epoch(self, epoch: int, task: Task) -> None:
        """Train for one pass, score, and keep the weights if none were better (of equal ones the later)."""
        start = time.perf_counter()
        self.model.train()
        steps, trained, loss_sum, lr = len(self.data.train), 0, 0.0, 0.0
        with private_random(self.device, self.seed, 2, epoch):
            for index, (inputs, targets) in enumerate(self.data.train_epoch(self.seed, epoch)):
                if batch_size_of(inputs) > 1 or not self.has_norms:  # BatchNorm cannot train on a single sample
                    step = epoch * steps + index
                    lr = learning_rate(self.settings, step, steps)
                    loss_sum += self._step(inputs, targets, lr, f"epoch {epoch + 1}, step {index + 1} of {steps}")
                    if self.average is not None and self.settings.ema is not None:
                        update_average(self.average, self.model, self.settings.ema, step)
                    trained += 1
                task.advance(1)
        if not trained:
            raise UserError(
                "The training split gave no batch to train on (BatchNorm needs two samples a batch). Set batch_size=64."
            )
        scored = self.model
        if self.average is not None:
            scored = self.average.module
            if self.has_norms:
                self.calibration = self.calibration or self.data.calibration(AVERAGE_SAMPLES)
                recalibrate(scored, self.calibration, precision=self.precision)
        try:
            score = accuracy(scored, self.data.search, precision=self.precision)
        except EvaluationFailed as error:
            raise self._failed(f"After epoch {epoch + 1}, step {steps}, {error}, at learning rate {lr:.3g}.") from None
        if score >= self.best_score:
            self.best, self.best_epoch, self.best_score = copy_state(scored), epoch + 1, score
        self.history.append(Epoch(epoch + 1, loss_sum / trained, score, lr, time.perf_counter() - start))
        note = f"loss {loss_sum / trained:.3g}, accuracy {score:.1%}, best {self.best_score:.1%}"
        task.advance(0, note=note)

    def _step(self, inputs: Inputs, targets: Any, lr: float, where: str) -> float:
        """Update the weights once; return the loss."""
        moved = prepare(inputs, self.device, self.precision)
        with autocast(self.precision, self.device):
            logits = logits_of(forward(self.model, moved))
            teacher_logits: Tensor | None = None
            if self.teacher is not None:
                with torch.no_grad():
                    teacher_logits = logits_of(forward(self.teacher, moved))
                if teacher_logits.shape != logits.shape:
                    raise UserError(
                        f"The teacher returns {list(teacher_logits.shape)}, the model {list(logits.shape)}: they must "
                        "have the same outputs."
                    )
        wanted = check_targets(targets, logits.shape, "train").to(self.device)
        loss = training_loss(logits, wanted, teacher_logits, self.settings)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise self._failed(f"The loss became {value} in {where}, at learning rate {lr:.3g}.")
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad()
        loss.backward()
        if self.settings.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip_norm)
        self.optimizer.step()
        return value

    def _failed(self, what: str) -> FineTuneFailed:
        kept = f" The best network so far, of epoch {self.best_epoch}, is kept." if self.best_epoch else ""
        error = FineTuneFailed(
            f"{what}{kept} Set a lower learning rate (lr={self.settings.peak_lr / 10:g}), or clip_norm=1."
        )
        error.best = self.result()
        return error

    def result(self, *, last: bool = False) -> FineTuned:
        """The network with the best weights so far, or with the last ones."""
        best, epoch, score = self.best, self.best_epoch, self.best_score
        if last and self.history:
            best = copy_state(self.model if self.average is None else self.average.module)
            epoch, score = self.history[-1].epoch, self.history[-1].score
        model = copy.deepcopy(self.model).to(memory_format=torch.contiguous_format)
        model.load_state_dict(best)
        model.eval()
        return FineTuned(model, tuple(self.history), epoch, self.score_before, score, precision=self.precision)

    def state(self) -> dict[str, Any]:
        """Everything that the next epoch depends on, for a checkpoint."""
        return {
            "model": copy_state(self.model),
            "average": None if self.average is None else copy_state(self.average),
            "optimizer": self.optimizer.state_dict(),
            "best": self.best,
            "best_epoch": self.best_epoch,
            "best_score": self.best_score,
            "score_before": self.score_before,
            "start_norms": self.start_norms,
            "history": [asdict(epoch) for epoch in self.history],
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Undo `state`."""
        self.model.load_state_dict(state["model"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.best, self.best_epoch, self.best_score = state["best"], state["best_epoch"], state["best_score"]
        self.score_before = state["score_before"]
        self.history = [Epoch(**entry) for entry in state["history"]]
