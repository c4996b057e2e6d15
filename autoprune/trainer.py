"""One training from its first step to its last: what a step does, what is stored between two, how an epoch ends.

Every random number is a function of (seed, epoch, step), and what dropout draws also of the process: nothing but the
state of the training itself has to be stored to go on after any step.
"""

from __future__ import annotations

import copy
import math
import signal
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from autoprune import stopping
from autoprune.checkpoint import CheckpointWriter, copy_state, read_checkpoint, shapes_digest, weight_norms
from autoprune.data.base import Data, Inputs, forward
from autoprune.data.parts import Part, train_parts
from autoprune.data.rng import key_seed, mixed
from autoprune.distributed import Team
from autoprune.finetuned import Epoch, FineTuned, FineTuneFailed
from autoprune.precision import autocast, device_of, prepare
from autoprune.progress import Task
from autoprune.recalibrate import recalibrate, tracking_layers
from autoprune.running import EvaluationFailed, check_targets, logits_of, private_random, reseed
from autoprune.scores import accuracy
from autoprune.search_spaces.errors import UserError
from autoprune.training import (
    FineTune,
    learning_rate,
    make_average,
    make_optimizer,
    together,
    training_loss,
    update_average,
)

AVERAGE_SAMPLES = 2000
"""Training samples for the BatchNorm statistics of averaged weights."""


@dataclass(slots=True)
class _UnderWay:
    """How far an epoch is: `steps` batches seen, `trained` of them used, the sum of their losses, the wall seconds."""

    steps: int = 0
    trained: int = 0
    loss_sum: float = 0.0
    seconds: float = 0.0


class Trainer:
    """A training between two steps: everything that the next step depends on."""

    def __init__(
        self,
        model: nn.Module,
        data: Data,
        settings: FineTune,
        teacher: nn.Module | None,
        seed: int,
        precision: str,
        team: Team,
    ) -> None:
        self.data, self.settings, self.teacher, self.seed, self.precision = data, settings, teacher, seed, precision
        self.team, self.given = team, model
        self.device = device_of(model)
        self.model = copy.deepcopy(model)
        if precision == "bf16":
            self.model.to(memory_format=torch.channels_last)
        self.average = None if settings.ema is None else make_average(self.model)
        self.has_norms = bool(tracking_layers(model))
        self.calibration: list[Inputs] | None = None
        self.start_norms = weight_norms(model)
        self.history: list[Epoch] = []
        self.under_way = _UnderWay()
        self.best = copy_state(model)
        self.best_epoch = 0
        self.score_before = self.best_score = math.nan
        self.writer: CheckpointWriter | None = None
        self.identity = {
            **settings.to_dict(),
            "precision": precision,
            "seed": seed,
            "data": data.name,
            "batches": len(data.train),
            "teacher": teacher is not None,
            "shapes": shapes_digest(model),
        }
        self.network = together(self.model, team)
        self.optimizer = make_optimizer(self.model, settings)

    def start(self, checkpoint: Path | None) -> None:
        """Go on from `checkpoint` where there is one, else score the given network as the first candidate for the
        best; then give all processes the same state.
        """
        if self.team.is_main:
            self._start_main(checkpoint)
        if self.team.world == 1:
            return
        identity, state = self.team.share([self.identity, self.state()] if self.team.is_main else None)
        if identity != self.identity:
            raise UserError(f"The processes must train the same, but one has {self.identity}, process 0 {identity}.")
        self.load(state)

    def _start_main(self, checkpoint: Path | None) -> None:
        state = None
        if checkpoint is not None:
            self.writer = CheckpointWriter(checkpoint, self.identity)
            state = read_checkpoint(checkpoint, self.identity)
        if state is None:
            try:
                self.score_before = self.best_score = accuracy(self.given, self.data.search, precision=self.precision)
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
        """Train for one pass or what is left of it, score, keep the weights if none were better (of equal ones the
        later), and write all that.
        """
        now, begun = self.under_way, time.perf_counter() - self.under_way.seconds
        steps = len(self.data.train)
        self.model.train()
        draws = key_seed(self.seed, 2, epoch, self.team.rank)
        with private_random(self.device, draws):
            parts = train_parts(self.data.train, self.seed, epoch, now.steps, self.team.rank, self.team.world)
            while True:
                reseed(self.device, mixed(draws, now.steps))
                part = next(parts, None)
                if part is None:
                    break
                stop = self._train_on(part, epoch)
                now.seconds = time.perf_counter() - begun
                task.advance(1)
                if self.writer is not None and (stop or self.writer.is_due):
                    self.writer.write(self.state())
                if stop:
                    self._stop()
        if not now.trained:
            raise UserError(
                "The training split gave no batch to train on (BatchNorm needs two samples a batch, for each process). "
                "Set batch_size=64."
            )
        lr, loss = learning_rate(self.settings, epoch * steps + now.steps - 1, steps), now.loss_sum / now.trained
        score = self._scored(epoch, lr)
        self.history.append(Epoch(epoch + 1, loss, score, lr, time.perf_counter() - begun))
        self.under_way = _UnderWay()
        task.advance(0, note=f"loss {loss:.3g}, accuracy {score:.1%}, best {self.best_score:.1%}")
        if self.writer is not None:
            self.writer.write(self.state())

    def _train_on(self, part: Part, epoch: int) -> bool:
        """Count one batch and update the weights where it can be trained on; return whether to stop after it."""
        now, steps = self.under_way, len(self.data.train)
        now.steps += 1
        # BatchNorm cannot train on a single sample; every process decides alike
        if self.has_norms and part.total < 2 * self.team.world:
            return self.team.world == 1 and stopping.wanted()
        step = epoch * steps + now.steps - 1
        loss, stop = self._step(part, step, f"epoch {epoch + 1}, step {now.steps} of {steps}")
        if self.average is not None and self.settings.ema is not None:
            update_average(self.average, self.model, self.settings.ema, step)
        now.loss_sum += loss
        now.trained += 1
        return stop

    def _step(self, part: Part, step: int, where: str) -> tuple[float, bool]:
        """Update the weights once; return the mean loss of the whole batch, and whether a process wants to stop."""
        lr = learning_rate(self.settings, step, len(self.data.train))
        own_loss = self._loss(part)
        share = part.own / part.total
        value, stop = self.team.exchange(float(own_loss.detach()) * share, stopping.wanted(), at=step)
        if not math.isfinite(value):
            raise self._failed(f"The loss became {value} in {where}, at learning rate {lr:.3g}.")
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad()
        if self.team.world > 1:
            own_loss = own_loss * (share * self.team.world)  # the processes' gradients are averaged
        with self.team.connected():
            own_loss.backward()
        if self.settings.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip_norm)
        self.optimizer.step()
        return value, stop

    def _loss(self, part: Part) -> Tensor:
        """Mean loss of this process's samples, with its graph."""
        moved = prepare(part.inputs, self.device, self.precision)
        with autocast(self.precision, self.device):
            logits = logits_of(forward(self.network, moved))
            teacher_logits: Tensor | None = None
            if self.teacher is not None:
                with torch.no_grad():
                    teacher_logits = logits_of(forward(self.teacher, moved))
                if teacher_logits.shape != logits.shape:
                    raise UserError(
                        f"The teacher returns {list(teacher_logits.shape)}, the model {list(logits.shape)}: they must "
                        "have the same outputs."
                    )
        wanted = check_targets(part.targets, logits.shape, "train").to(self.device)
        return training_loss(logits, wanted, teacher_logits, self.settings)

    def _stop(self) -> NoReturn:
        """Leave once the state is written, which is why all wait for process 0."""
        self.team.exchange()
        stopping.check()
        raise stopping.Stopped(signal.SIGTERM)  # another process was asked to

    def _scored(self, epoch: int, lr: float) -> float:
        """Score the network as it is after `epoch`, in process 0, and remember the best there; return the score."""
        scored = self.model if self.average is None else self.average.module
        score, why = 0.0, "process 0 says why"
        if self.team.is_main:
            if self.average is not None and self.has_norms:
                self.calibration = self.calibration or self.data.calibration(AVERAGE_SAMPLES)
                recalibrate(scored, self.calibration, precision=self.precision)
            try:
                score = accuracy(scored, self.data.search, precision=self.precision)
            except EvaluationFailed as error:
                score, why = math.nan, str(error)
        score, _ = self.team.exchange(score, at=-1 - epoch)
        if math.isnan(score):
            steps = len(self.data.train)
            raise self._failed(f"After epoch {epoch + 1}, step {steps}, {why}, at learning rate {lr:.3g}.")
        if score >= self.best_score:
            self.best_epoch, self.best_score = epoch + 1, score
            if self.team.is_main:
                self.best = copy_state(scored)
        return score

    def _failed(self, what: str) -> FineTuneFailed:
        kept = f" The best network so far, of epoch {self.best_epoch}, is kept." if self.best_epoch else ""
        error = FineTuneFailed(
            f"{what}{kept} Set a lower learning rate (lr={self.settings.peak_lr / 10:g}), or clip_norm=1."
        )
        error.best = self.result()
        return error

    def result(self, *, last: bool = False) -> FineTuned:
        """The network with the best weights so far, or with the last ones: those of process 0, on all."""
        best, epoch, score = self.best, self.best_epoch, self.best_score
        if last and self.history:
            best = copy_state(self.model if self.average is None else self.average.module)
            epoch, score = self.history[-1].epoch, self.history[-1].score
        model = copy.deepcopy(self.given).to(memory_format=torch.contiguous_format)
        model.load_state_dict(self.team.share(best))
        model.eval()
        return FineTuned(model, tuple(self.history), epoch, self.score_before, score, precision=self.precision)

    def state(self) -> dict[str, Any]:
        """Everything that the next step depends on, for a checkpoint."""
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
            "under_way": asdict(self.under_way),
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
        self.under_way = _UnderWay(**state.get("under_way", {}))  # which format 1 does not have
