"""Small searches that tests of the engine share: seconds on one core."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from autoprune.nets import SmallResNet, small_resnet

NET = ["--model", "autoprune.nets:small_resnet", "--model-arg", "widths=[8, 16]", "--model-arg", "blocks=[1, 1]"]
DIGITS = ["--data", "digits", "--calibration-samples", "200"]
QUICK = ["--latency-repeats", "3", "--latency-accuracy", "0.3", "--latency-subnets", "8"]


def tiny_net() -> SmallResNet:
    """A net for 8 x 8 images and ten classes with a few groups."""
    return small_resnet(widths=(8, 16), blocks=(1, 1)).eval()


def blobs(num_samples: int, seed: int) -> tuple[Tensor, Tensor]:
    """Noisy images of ten classes, [N, 1, 8, 8] and [N]: learnt in an epoch or two."""
    prototypes = torch.randn(10, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(10, (num_samples,), generator=generator)
    return prototypes[labels] + torch.randn(num_samples, 1, 8, 8, generator=generator), labels


def loaders() -> dict[str, Any]:
    """Keyword arguments of `search` and `resume`: 400 samples to train, 100 to test."""
    train, test = TensorDataset(*blobs(400, 1)), TensorDataset(*blobs(100, 2))
    return {"train": DataLoader(train, batch_size=50, shuffle=True), "test": DataLoader(test, batch_size=50)}


SETTINGS: dict[str, Any] = {
    "budget": ["macs=0.5x"],
    "calibration_samples": 100,
    "latency_repeats": 3,
    "latency_accuracy": 0.3,
    "latency_subnets": 8,
    "points": 2,
}
"""Of a quick search from Python."""
