"""Running a network without leaving traces: modes and global random numbers are put back, outputs are checked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from autoprune.data.rng import PrivateRandom, key_seed, seed_global
from autoprune.search_spaces.errors import UserError


class EvaluationFailed(RuntimeError):
    """A network cannot be scored: its outputs or its score are NaN or infinite. The search counts a failed trial."""


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put `model` into evaluation mode; each module gets its own mode back at the end."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def private_random(device: torch.device, *key: int) -> Iterator[None]:
    """Make draws from the global generators (dropout, user code) a function of `key`, and put the generators back."""
    with PrivateRandom(*key):
        if device.type != "cuda":
            yield
            return
        with torch.random.fork_rng(devices=[device]), torch.cuda.device(device):
            torch.cuda.manual_seed(key_seed(*key))
            yield


def reseed(device: torch.device, seed: int) -> None:
    """Within `private_random`, make the draws from here on a function of `seed`."""
    seed_global(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def logits_of(output: Any) -> Tensor:
    """Return the class scores [N, C, ...] in a model's output, as float32 or wider.

    Understands a tensor, an object with `logits` (Inception in training mode, transformers) and a dict with "logits"
    or "out" (torchvision's segmentation).

    Raises:
        UserError: there are none in the output.
    """
    found = output
    if not isinstance(found, Tensor):
        found = getattr(output, "logits", None)
        if found is None and isinstance(output, Mapping):
            found = output.get("logits", output.get("out"))
    if not isinstance(found, Tensor) or found.dim() < 2 or not found.is_floating_point():
        shape = f" of shape {tuple(found.shape)}, {found.dtype}" if isinstance(found, Tensor) else ""
        raise UserError(
            f"The model must return class scores [N, classes] (a tensor, or `.logits`), but it returned a "
            f"{type(output).__name__}{shape}. Give a scoring function of your own: score=callable(model, batches)."
        )
    return found.to(torch.promote_types(found.dtype, torch.float32))


def check_finite(logits: Tensor) -> None:
    """Raise `EvaluationFailed` where a class score is NaN or infinite."""
    if not bool(logits.isfinite().all()):
        share = 1 - float(logits.isfinite().double().mean())
        raise EvaluationFailed(f"{share:.1%} of the network's outputs are NaN or infinite")


def check_targets(targets: Any, logits_shape: torch.Size, split: str) -> Tensor:
    """Return `targets` if they are class indices that fit scores of shape [N, C, ...].

    Raises:
        UserError: another type, shape or range.
    """
    wanted = (logits_shape[0], *logits_shape[2:])
    if not isinstance(targets, Tensor) or targets.is_floating_point() or tuple(targets.shape) != wanted:
        got = f"{tuple(targets.shape)}, {targets.dtype}" if isinstance(targets, Tensor) else type(targets).__name__
        raise UserError(
            f"Targets of the {split} split must be class indices (int64) of shape {list(wanted)} for the model's "
            f"outputs of shape {list(logits_shape)}, but got {got}."
        )
    low, high = int(targets.min()), int(targets.max())
    if low < 0 or high >= logits_shape[1]:
        raise UserError(
            f"The model has {logits_shape[1]} outputs, so class indices must be 0 to {logits_shape[1] - 1}, but the "
            f"{split} split holds {low if low < 0 else high}. Give a model with an output for every class."
        )
    return targets
