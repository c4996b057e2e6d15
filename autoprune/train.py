"""Train a dense network from scratch and write its weights: something to prune where there is nothing yet."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from autoprune.data import load_data
from autoprune.files import atomic_write
from autoprune.finetune import FineTune, finetune
from autoprune.models import ModelSource, input_channels
from autoprune.progress import NO_PROGRESS, Progress
from autoprune.scores import accuracy
from autoprune.search_spaces.errors import UserError
from autoprune.workbench import usable_device


def train_dense(
    source: ModelSource,
    data_name: str,
    out: Path,
    *,
    settings: Mapping[str, Any],
    data_root: Path | None = None,
    search_size: float | None = None,
    batch_size: int = 128,
    device: str = "auto",
    seed: int = 0,
    progress: Progress = NO_PROGRESS,
) -> str:
    """Train and write `out`; a killed training goes on from its checkpoint beside `out` when called again.

    Args:
        settings: of `FineTune`; the best epoch on the search split is kept.

    Returns:
        The accuracies, in words.

    Raises:
        UserError: something does not fit, or `out` exists or is not a .safetensors file.
    """
    if out.suffix != ".safetensors":
        raise UserError(
            f"Weights are written as .safetensors, but got {out}. Set --out {out.with_suffix('.safetensors')}."
        )
    if out.exists():
        raise UserError(f"{out} exists. Choose another name, or delete it.")
    chosen = FineTune.from_dict(settings)
    model = source.build().to(usable_device(device))
    data = load_data(
        data_name,
        root=data_root,
        search_size=search_size,
        batch_size=batch_size,
        channels=input_channels(model),
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    checkpoint = out.with_suffix(".checkpoint")
    trained = finetune(
        model, data, chosen, seed=seed, checkpoint=checkpoint, progress=progress, description=f"Training {source.spec}"
    )
    tensors = {name: tensor.detach().cpu().clone() for name, tensor in trained.model.state_dict().items()}
    atomic_write(out, safetensors.torch.save(tensors, metadata={"format": "pt"}))
    checkpoint.unlink(missing_ok=True)
    found = f"accuracy {trained.score_after:.2%} on the search split (best of {chosen.epochs} epochs)"
    if data.test is not None:
        with torch.no_grad():
            found += f", {accuracy(trained.model, data.test, split='test'):.2%} on the test split"
    return found
