"""Fine-tune a pruned network with the dense one as its teacher, or train a network from scratch without one.

After every epoch the network is scored on the search split (never on the test split) and the best one so far is kept.
With `checkpoint`, a killed training goes on from the step that was stored last and ends with the very weights, bit for
bit, of one that was not interrupted (same machine, same number of threads and processes).
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

from torch import nn

from autoprune.data.base import Data
from autoprune.distributed import ALONE, Team
from autoprune.finetuned import Epoch, FineTuned, FineTuneFailed
from autoprune.precision import device_of, resolve_precision
from autoprune.progress import NO_PROGRESS, Progress
from autoprune.running import evaluation_mode
from autoprune.scores import accuracy
from autoprune.search_spaces.errors import UserError
from autoprune.trainer import Trainer
from autoprune.training import FineTune

__all__ = ["Epoch", "FineTune", "FineTuneFailed", "FineTuned", "finetune"]


def finetune(
    model: nn.Module,
    data: Data,
    settings: FineTune | None = None,
    *,
    teacher: nn.Module | None = None,
    seed: int = 0,
    last: bool = False,
    team: Team = ALONE,
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
        team: the processes that train together, see `distributed.joined`: each of them makes this call, takes its part
            of every batch and returns the same result. Process 0 gives the weights to begin with, scores, and has
            `checkpoint` and `progress`; those of the others are not looked at.
        checkpoint: file to go on from and to write about once a minute, after every epoch and when a stop is wanted;
            it stays after the last epoch, so that the same call again returns the same result at once.
        progress: where to report to.
        description: what the progress line says.

    Raises:
        FineTuneFailed: the loss or the outputs became NaN or infinite; the checkpoint still holds a state before that.
        UserError: model, data, teacher and settings do not fit each other, or `checkpoint` is damaged or belongs to
            another training.
        Stopped: `stopping.wanted`; the checkpoint holds every step that was trained.
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
    training = Trainer(model, data, settings, teacher, seed, precision, team)
    training.start(checkpoint if team.is_main else None)
    progress = progress if progress is not None and team.is_main else NO_PROGRESS
    steps, done = len(data.train), len(training.history)
    already = done * steps + training.under_way.steps
    reporting = progress.task(description, settings.epochs * steps, "steps", done=already)
    with reporting as task, nullcontext() if teacher is None else evaluation_mode(teacher):
        for epoch in range(done, settings.epochs):
            training.run_epoch(epoch, task)
    return training.result(last=last)
