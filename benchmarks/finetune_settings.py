"""Which settings of a short fine-tuning suit a heavily cut network: the evidence behind the defaults of `FineTune`.

    OMP_NUM_THREADS=1 python benchmarks/finetune_settings.py [--seeds 1]

Fashion-MNIST: the built-in network is trained for 3 epochs, cut to half the channels everywhere (a quarter of the
MACs, L2 ranking), recalibrated, and fine-tuned for 2 epochs on 18,000 of the training images with each setting.
Accuracy on the search split (which chose the epoch) and on the test split.
"""

from __future__ import annotations

import argparse
import copy
from dataclasses import replace
from typing import Any

import torch

from autoprune.data import TensorBatches, load_data
from autoprune.evaluate import Evaluator, accuracy
from autoprune.finetune import FineTune, finetune
from autoprune.nets import fashion_resnet
from autoprune.progress import RichProgress
from autoprune.search_spaces import trace

SETTINGS: tuple[dict[str, Any], ...] = (
    {"lr": 0.02},
    {},
    {"lr": 0.1},
    {"lr": 0.2},
    {"ema": 0.99},
    {"kd_weight": 0.5},
    {"kd_weight": 0.0},
    {"temperature": 2.0},
    {"optimizer": "adamw", "lr": 0.001},
    {"optimizer": "adamw"},
    {"optimizer": "adamw", "lr": 0.01},
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1)
    seeds = range(parser.parse_args().seeds)
    data, progress = load_data("fashion-mnist"), RichProgress()
    assert data.test is not None
    assert isinstance(data.train, TensorBatches)
    part = copy.copy(data.train)
    chosen = torch.randperm(data.train.num_samples, generator=torch.Generator().manual_seed(0))[:18_000]
    part.inputs, part.targets = data.train.inputs[chosen], data.train.targets[chosen]
    small = replace(data, train=part)

    trained = finetune(fashion_resnet(), data, FineTune(epochs=3, lr=0.1), progress=progress, description="Training")
    space = trace(trained.model, data.example())
    half = space.candidate(0.5)
    start = Evaluator(space, data, recovery="recalibrate").subnet(half)
    sliced = Evaluator(space, data, calibration_samples=0).subnet(half)
    share = space.costs(half).macs / space.costs(space.dense).macs
    print(f"dense {100 * accuracy(trained.model, data.test):.1f} % on test, precision {trained.precision}")
    print(f"{share:.2f}x MACs: sliced {100 * accuracy(sliced, data.test):.1f} % on test")
    print(f"{share:.2f}x MACs: recalibrated {100 * accuracy(start, data.test):.1f} % on test")
    for options in SETTINGS:
        settings = FineTune(epochs=2, **options)
        for seed in seeds:
            tuned = finetune(start, small, settings, teacher=trained.model, seed=seed, progress=progress)
            test = accuracy(tuned.model, data.test)
            print(f"{options!s:<42} seed {seed}: search {100 * tuned.score_after:.1f} %, test {100 * test:.1f} %")


if __name__ == "__main__":
    main()
