"""Importance of units from data, found once per study and kept in its folder.

A criterion that reads activations or gradients gives other scores for other samples. So they are written down, to
``profile/importance.json``: resuming, fine-tuning and exporting cut by exactly these, and need no data for it.
Samples come from the training split, never from the search or the test split. Criteria that read weights only are
computed again from the dense weights, which a resumed run must find unchanged.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from autoprune.config import FROM_PYTHON, SearchConfig
from autoprune.data import Data
from autoprune.documents import Damaged, parsing, read_document, write_document
from autoprune.failures import describe_error
from autoprune.memory import Halving, smallest_batch
from autoprune.precision import device_of
from autoprune.progress import Progress
from autoprune.running import check_targets, logits_of, private_random
from autoprune.search_spaces import CRITERIA, SearchSpace, UserError

SCORES_FILE = Path("profile") / "importance.json"
"""Where a run folder keeps the scores of a criterion that read data."""

FORMAT = 1

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
    write_document(folder / SCORES_FILE, FORMAT, content)


def load_scores(space: SearchSpace, importance: str, run: Path) -> None:
    """Rank the units of `space` by the scores that the run folder `run` keeps.

    Raises:
        Damaged: there are none, or they cannot be read.
        UserError: they are of another model or criterion.
    """
    path = run / SCORES_FILE
    content = read_document(path, FORMAT)
    with parsing(path):
        same = content["importance"] == importance and content["space"] == space.fingerprint
        scores = [np.array(content["scores"][group.name], np.float64) for group in space.groups] if same else []
    if not same:
        raise UserError(f"{path} holds scores of another model or criterion. Restore the file, or start a new run.")
    with parsing(path):
        space.use_scores(importance, scores)


def scores_digest(space: SearchSpace, importance: str) -> str:
    """Hex digest of the scores: found again, they must be the same."""
    digest = hashlib.sha256()
    for array in space.unit_scores(importance):
        digest.update(np.ascontiguousarray(array, np.float64).tobytes())
    return digest.hexdigest()[:16]


def rank_units(
    space: SearchSpace, data: Data, config: SearchConfig, run: Path, *, loss: Loss | None, progress: Progress
) -> None:
    """Rank by the scores that the run folder `run` keeps, or by new ones, which it then keeps.

    Raises:
        UserError: scores that trials were made with are lost, and new ones are not, or may not be, the same.
    """
    importance, path = config.importance, run / SCORES_FILE
    before = config.fingerprints.get("importance")
    try:
        load_scores(space, importance, run)
        return
    except Damaged as error:
        if config.prepared and before is None:
            raise UserError(
                f"{path} {error.why}. Restore it from a copy, or start a new run: scores computed again need not be "
                "the same."
            ) from None
        if config.prepared or path.exists():
            progress.say(f"{path} {error.why}: the units are scored again.")
    if config.importance_loss == FROM_PYTHON and loss is None:
        raise UserError(
            "The importance of this run was asked for with a loss from Python, which no file can hold. Go on from "
            "Python and hand it over again: autoprune.resume(run, importance_loss=...)."
        )
    collect(space, importance, data, num_samples=config.importance_samples, loss=loss, seed=config.seed)
    if before not in (None, scores_digest(space, importance)):
        raise UserError(
            f"{path} cannot be used, and the scores computed again are not those that the trials were made with (it "
            "may be another release of torch, or another device). Restore it from a copy, or start a new run."
        )
    save_scores(space, importance, run, num_samples=config.importance_samples)
