"""Importance of units from data, found once per study and kept in its folder.

A criterion that reads activations or gradients gives other scores for other samples. So they are written down, to
``profile/importance.json``: resuming, fine-tuning and exporting cut by exactly these, and need no data for it.
Samples come from the training split, never from the search or the test split. Criteria that read weights only are
computed again from the dense weights, which a resumed run must find unchanged.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from autoprune.data import Data
from autoprune.failures import describe_error
from autoprune.files import read_json, write_json
from autoprune.memory import Halving, smallest_batch
from autoprune.precision import device_of
from autoprune.running import check_targets, logits_of, private_random
from autoprune.search_spaces import CRITERIA, SearchSpace, UserError

SCORES_FILE = Path("profile") / "importance.json"
"""Where a run folder keeps the scores of a criterion that read data."""

Loss: TypeAlias = Callable[[Any, Any], Tensor]
"""(output of the model, targets) -> mean loss over the batch."""


def reads_data(importance: str) -> bool:
    """Whether a criterion looks at samples, not at weights only."""
    return CRITERIA[importance].needs != "weights"


def describe_importance(importance: str, num_samples: int) -> str:
    """``taylor on 1,024 training samples``, or ``l2``."""
    return f"{importance} on {num_samples:,} training samples" if reads_data(importance) else importance


def collect(
    space: SearchSpace, importance: str, data: Data, *, num_samples: int, loss: Loss | None = None, seed: int = 0
) -> None:
    """Score the units of `space` on training samples, in float32.

    Args:
        num_samples: how many un-augmented training samples, or all there are.
        loss: for criteria that read gradients; None for cross entropy with class labels.
        seed: for models that draw random numbers.

    Raises:
        UserError: the model does not run on the samples, or has no class scores and no `loss` was given.
    """
    halving = Halving(smallest_batch(space.model))

    def score() -> None:
        with private_random(device_of(space.model), seed, 2):
            space.collect(importance, halving.all_parts(data.samples(num_samples)), loss=loss or cross_entropy)

    try:
        halving(score)
    except UserError:
        raise
    except Exception as error:  # the user's model, data and loss run in here
        raise UserError(
            f"The importance {importance!r} cannot be computed: {describe_error(error)} Check the data and the loss, "
            "or choose one that reads weights only, say 'l2'."
        ) from error


def cross_entropy(output: Any, targets: Any) -> Tensor:
    """Mean cross entropy of class scores [N, C, ...] and class indices [N, ...].

    Raises:
        UserError: these are not what model and data give.
    """
    try:
        logits = logits_of(output)
        return F.cross_entropy(logits, check_targets(targets, logits.shape, "train"))
    except UserError as error:
        raise UserError(
            f"{error} For an importance that reads gradients, give a loss of your own: "
            "importance_loss=callable(output, targets)."
        ) from None


def save_scores(space: SearchSpace, importance: str, folder: Path, *, num_samples: int) -> None:
    """Write the scores into the run folder `folder`, atomically; float64 survives JSON exactly."""
    scores = space.unit_scores(importance)
    content = {
        "importance": importance,
        "num_samples": num_samples,
        "split": "train",
        "space": space.fingerprint,
        "scores": {group.name: array.tolist() for group, array in zip(space.groups, scores, strict=True)},
    }
    (folder / SCORES_FILE).parent.mkdir(exist_ok=True)
    write_json(folder / SCORES_FILE, content)


def load_scores(space: SearchSpace, importance: str, run: Path) -> None:
    """Rank the units of `space` by the scores that the run folder `run` keeps.

    Raises:
        UserError: there are none, they are damaged, or of another model or criterion.
    """
    path = run / SCORES_FILE
    if not path.is_file():
        raise UserError(
            f"The run ranks units by {importance!r}, but {run} holds no scores ({SCORES_FILE}). Restore the file, or "
            "start a new run: scores computed again need not be the same."
        )
    content = read_json(path)
    try:
        same = content["importance"] == importance and content["space"] == space.fingerprint
        scores = [np.array(content["scores"][group.name], np.float64) for group in space.groups]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error!r}). Restore the file, or start a new run.") from None
    if not same:
        raise UserError(f"{path} holds scores of another model or criterion. Restore the file, or start a new run.")
    try:
        space.use_scores(importance, scores)
    except UserError as error:
        raise UserError(f"{path} is damaged: {error}") from None
