"""What the processes of `test_distributed` run: ``python -m tests.autoprune.team FOLDER SCENARIO...`` in each."""

from __future__ import annotations

import math
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from autoprune import checkpoint, stopping
from autoprune.data.base import Data
from autoprune.data.loaders import data_from_loaders
from autoprune.data.tensors import Augment, TensorBatches
from autoprune.distributed import ALONE, Team, joined
from autoprune.finetune import FineTune, FineTuned, FineTuneFailed, finetune
from autoprune.progress import Progress
from autoprune.search_spaces.errors import UserError
from tests.autoprune.fakes import CLASSES, conv_net, image_data

SETTINGS = FineTune(epochs=3, lr=0.2, kd_weight=0.5, ema=0.9, clip_norm=1.0, precision="fp32")
STEPS = 6  # an epoch of `pictures`


class Plain(nn.Module):
    """A network without BatchNorm and dropout, in float64, that returns something else beside its class scores.

    `extra` serves in training only and takes no part in the loss.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head, self.extra = nn.Conv2d(1, 4, 3), nn.Linear(64, CLASSES), nn.Linear(64, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor] | Tensor:
        features = torch.relu(self.conv(x)).flatten(1)
        return {"logits": self.head(features), "extra": self.extra(features)} if self.training else self.head(features)


def plain(seed: int = 0) -> Plain:
    torch.manual_seed(seed)
    return Plain().double()


def pictures(dtype: torch.dtype = torch.float64) -> Data:
    """91 pictures, moved and mirrored: batches of 15 and 16."""
    data = image_data(train=91)
    train, search = data.train, data.search
    assert isinstance(train, TensorBatches)
    assert isinstance(search, TensorBatches)
    moved = Augment(shift=1, flip=True)
    return replace(
        data,
        train=TensorBatches(train.inputs.to(dtype), train.targets, batch_size=16, augment=moved),
        search=TensorBatches(search.inputs.to(dtype), search.targets, batch_size=16),
    )


def loaders(samples: int) -> Data:
    """A user's loader of batches of 16, the last of which is smaller."""
    data = pictures()
    train = data.train
    assert isinstance(train, TensorBatches)
    loader = DataLoader(TensorDataset(train.inputs[:samples], train.targets[:samples]), batch_size=16)
    return data_from_loaders(loader, list(data.search))


def learnt(data: Data, team: Team = ALONE, **changes: Any) -> FineTuned:
    return finetune(plain(), data, replace(SETTINGS, **changes), teacher=plain(7), team=team)


EQUAL = {
    "sgd": lambda team: learnt(pictures(), team),
    "adamw": lambda team: learnt(pictures(), team, optimizer="adamw", lr=0.01, label_smoothing=0.1, ema=None),
    "uneven": lambda team: learnt(loaders(51), team),
    "too-few": lambda team: learnt(loaders(49), team),  # for two processes, in the last batch
}
"""Trainings that end the same, up to rounding, in any number of processes."""


class Killed(nn.Module):
    """`conv_net`, but process 1 kills itself in a forward pass of training."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.net, self.left = conv_net(dropout=0.3), at

    def forward(self, x: Tensor) -> Tensor:
        self.left -= self.training
        if self.left == 0 and os.environ.get("RANK") == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        logits: Tensor = self.net(x)
        return logits


def hard(team: Team, path: Path, kill_at: int = -1, progress: Progress | None = None) -> FineTuned:
    """A training with all that draws numbers or keeps statistics."""
    data, net = pictures(torch.float32), Killed(kill_at)
    return finetune(net, data, SETTINGS, teacher=conv_net(7), team=team, checkpoint=path, progress=progress)


def fails(team: Team) -> None:
    """Process 1 meets labels that the network does not have."""
    data = pictures()
    if team.rank == 1:
        data.train.targets[:] = CLASSES  # type: ignore[attr-defined]
    learnt(data, team)


def diverges(team: Team, out: Path) -> None:
    """All fail alike, and go on with the best there was."""
    try:
        learnt(pictures(), team, lr=1e300, clip_norm=None, optimizer="adamw")
    except FineTuneFailed as error:
        if error.best is not None:
            torch.save(error.best.model.state_dict(), out / f"diverged-{team.rank}.pt")
        (out / f"diverged-{team.rank}").write_text(str(error))


def stops(team: Team, out: Path) -> None:
    """Process 1 is asked to stop in the 8th step."""
    asked = 0

    def wanted() -> bool:
        nonlocal asked
        asked += 1
        return team.rank == 1 and asked == 8

    real, stopping.wanted = stopping.wanted, wanted
    try:
        hard(team, out / "stopped.checkpoint")
    except stopping.Stopped as error:
        (out / f"stopped-{team.rank}").write_text(str(error.signal))
    finally:
        stopping.wanted = real
    result = hard(team, out / "stopped.checkpoint")
    torch.save(result.model.state_dict(), out / f"stopped-{team.rank}.pt")


def main(out: Path, names: list[str]) -> None:
    torch.set_num_threads(1)
    checkpoint.EVERY_S, checkpoint.MAX_SHARE = 0.0, math.inf  # store every step
    with joined() as team:
        for name in names:
            result = None
            if name in EQUAL:
                result = EQUAL[name](team)
            elif name == "hard":
                result = hard(team, out / "hard.checkpoint")
            elif name in ("killed", "resumed"):
                result = hard(team, out / "killed.checkpoint", kill_at=9 if name == "killed" else -1)
            elif name == "diverges":
                diverges(team, out)
            elif name == "stops":
                stops(team, out)
            else:
                fails(team)
            if result is not None:
                torch.save(result.model.state_dict(), out / f"{name}-{team.rank}.pt")


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), sys.argv[2:])
    except UserError as told:
        print(f"error: {told}", file=sys.stderr)
        sys.exit(2)
