"""What bfloat16 is worth here: CPU time of float32 / CPU time of bfloat16, for evaluation and for a training step.

    OMP_NUM_THREADS=1 python benchmarks/precision.py

Both are run as autoprune runs them (autoprune/precision.py), in turn, so that a slow minute hits both; the median of
the ratios is printed. Images are random: only the time counts. "auto" is what the rule takes.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from autoprune.nets import digits_resnet, fashion_resnet, small_resnet
from autoprune.precision import autocast, device_of, prepare, resolve_precision


def main() -> None:
    nets: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
        "digits_resnet": (digits_resnet(), (128, 1, 8, 8)),
        "fashion_resnet": (fashion_resnet(), (128, 1, 28, 28)),
        "fashion_resnet, 8-16-32": (small_resnet(widths=(8, 16, 32), stem_stride=2), (128, 1, 28, 28)),
        "3 linear layers of 512": (
            nn.Sequential(nn.Flatten(), nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.Linear(512, 10)),
            (128, 1, 28, 28),
        ),
    }
    for name in ("resnet18", "mobilenet_v2", "efficientnet_b0", "densenet121", "convnext_tiny", "vit_b_16"):
        nets[name] = (torchvision.models.get_model(name, weights=None), (4, 3, 224, 224))
    print(f"{'network':<26}{'auto':>6}{'evaluation':>12}{'training':>10}")
    for name, (net, shape) in nets.items():
        images = torch.randn(shape)
        targets = torch.zeros(shape[0], dtype=torch.long)
        repeats = 15 if shape[-1] < 100 else 5
        scores = speedup(partial(evaluate, net, images), repeats)
        steps = speedup(partial(train, net, images, targets), repeats)
        print(f"{name:<26}{resolve_precision('auto', net):>6}{scores:>11.2f}x{steps:>9.2f}x", flush=True)


def evaluate(net: nn.Module, images: Tensor, precision: str) -> None:
    net.eval()
    with torch.no_grad(), autocast(precision, device_of(net)):
        net(prepare(images, device_of(net), precision))


def train(net: nn.Module, images: Tensor, targets: Tensor, precision: str) -> None:
    net.train()
    with autocast(precision, device_of(net)):
        logits = net(prepare(images, device_of(net), precision))
    F.cross_entropy(logits.float(), targets).backward()
    net.zero_grad()


def speedup(run: Callable[[str], None], repeats: int) -> float:
    ratios = []
    for repeat in range(repeats + 2):
        seconds = {}
        for precision in ("fp32", "bf16"):
            start = time.process_time()
            run(precision)
            seconds[precision] = time.process_time() - start
        if repeat >= 2:
            ratios.append(seconds["fp32"] / seconds["bf16"])
    return statistics.median(ratios)


if __name__ == "__main__":
    main()
