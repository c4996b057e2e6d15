"""What it costs to go on from any step, and to train in several processes.

    OMP_NUM_THREADS=1 python benchmarks/finetune_steps.py
    torchrun --nproc-per-node 2 benchmarks/finetune_steps.py

Alone: of the time of a step of two networks, what the seeding before it takes; then the time to write a checkpoint.
Under torchrun: the time of what the processes say to each other in every step. All are medians of wall time.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

from autoprune import trainer
from autoprune.checkpoint import EVERY_S, Keeper, copy_state
from autoprune.data.base import Data
from autoprune.data.tensors import TensorBatches
from autoprune.distributed import Team, joined
from autoprune.finetune import FineTune, finetune
from autoprune.nets import small_resnet
from autoprune.training import make_optimizer


def noise(samples: int, size: int, batch: int) -> Data:
    images, labels = torch.randn(samples, 1, size, size), torch.randint(10, (samples,))
    return Data("noise", TensorBatches(images, labels, batch_size=batch), TensorBatches(images[:16], labels[:16]))


def step_cost(name: str, net: nn.Module, data: Data, repeats: int) -> None:
    real, seeding, steps = trainer.reseed, [], []

    def timed(device: torch.device, seed: int) -> None:
        begun = time.perf_counter()
        real(device, seed)
        seeding.append(time.perf_counter() - begun)

    trainer.reseed = timed  # type: ignore[attr-defined]
    for _ in range(repeats):
        begun = time.perf_counter()
        finetune(net, data, FineTune(epochs=1, precision="fp32"))
        steps.append((time.perf_counter() - begun) / len(data.train))
    trainer.reseed = real  # type: ignore[attr-defined]
    cost, step = statistics.median(seeding), statistics.median(steps)
    print(f"{name}: {step * 1e3:.2f} ms a step, of which seeding {cost * 1e6:.0f} us ({cost / step:.2%})")


def write_cost(repeats: int) -> None:
    from torchvision.models import resnet18

    net = resnet18()
    optimizer = make_optimizer(net, FineTune())
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    state = {"model": copy_state(net), "best": copy_state(net), "optimizer": optimizer.state_dict()}
    seconds = []
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        path = Path(folder) / "checkpoint"
        for _ in range(repeats):
            begun = time.perf_counter()
            Keeper(path, {}).write(state)
            seconds.append(time.perf_counter() - begun)
        size = path.stat().st_size
    median = statistics.median(seconds)
    print(f"resnet18: a checkpoint of {size / 1e6:.0f} MB in {median:.2f} s: {median / EVERY_S:.1%} of the time")


def exchange_cost(team: Team, repeats: int = 1000) -> None:
    seconds = []
    for number in range(repeats):
        begun = time.perf_counter()
        team.exchange(1.0, at=number)
        seconds.append(time.perf_counter() - begun)
    if team.is_main:
        print(f"{team.world} processes: {statistics.median(seconds) * 1e6:.0f} us for what they say in a step (median)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=20)
    repeats = parser.parse_args().repeats
    torch.manual_seed(0)
    with joined() as team:
        if team.world > 1:
            exchange_cost(team)
            return
        step_cost(
            "8 channels, 8 x 8 pixels, batch 16",
            small_resnet(widths=(8, 16), blocks=(1, 1)),
            noise(1600, 8, 16),
            repeats,
        )
        step_cost(
            "32 channels, 28 x 28 pixels, batch 64",
            small_resnet(widths=(32, 64), blocks=(1, 1)),
            noise(640, 28, 64),
            repeats,
        )
        write_cost(9)


if __name__ == "__main__":
    main()
