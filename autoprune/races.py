"""Evaluate the candidates of a study against their incumbents, stopped by the statistical bound or the exact one.

The losses of every complete trial are kept in the run folder: a later candidate may have to be paired with it.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from autoprune.agents.base import Trial
from autoprune.bounds import Cut
from autoprune.documents import Damaged, Newer, parsing, usable
from autoprune.evaluate import Evaluator
from autoprune.files import atomic_write
from autoprune.progress import NO_PROGRESS, Progress
from autoprune.prunings import is_audited
from autoprune.search_spaces.errors import UserError
from autoprune.search_spaces.types import Candidate, FloatArray
from autoprune.statistical import AUDIT, ERROR, PairedTest, draw_order, weights

LOSSES = Path("profile") / "losses"
"""Where a run folder keeps the losses [samples] of trials, in the order of the split: ``<number>.npz``."""

FORMAT = 1


@dataclass
class Races:
    """Evaluates candidates as (number, candidate, incumbent) -> score or `Cut`.

    Attributes:
        evaluator: one that passes `check_race`.
        hardest_first: the order of samples of the study.
        folder: of the run.
        seed: of the study.
        error: see `statistical.ERROR`.
        audit: see `statistical.AUDIT`. A candidate that would have been cut is then stopped by the exact bound only.
    """

    evaluator: Evaluator
    hardest_first: Sequence[int] | None
    folder: Path
    seed: int = 0
    error: float = ERROR
    audit: float = AUDIT
    progress: Progress = NO_PROGRESS
    _known: dict[Candidate, FloatArray] = field(default_factory=dict)

    def __call__(self, number: int, candidate: Candidate, incumbent: Trial | None) -> float | Cut:
        """Evaluate the candidate of trial `number`, in full where there is no incumbent; see `Evaluator.evaluate`."""
        assert self.hardest_first is not None
        if incumbent is None:
            score, losses = self.evaluator.race(candidate, self.hardest_first, None, None)
            self._keep(candidate, losses, self.hardest_first)
            return score
        assert incumbent.score is not None
        theirs = self._losses(incumbent)
        weight = weights(theirs, self.hardest_first)
        order = draw_order(weight, self.seed, number)
        test = PairedTest(theirs[order], weight[order], self.error)
        watch = _Audit(test) if is_audited(self.seed, number, self.audit) else test
        found, losses = self.evaluator.race(candidate, order.tolist(), incumbent.score, watch)
        if not isinstance(found, Cut):
            self._keep(candidate, losses, order.tolist())
        if isinstance(watch, _Audit) and watch.would_cut:
            if isinstance(found, Cut):
                return Cut(found.bound, found.evaluated, "statistical", audit=True)
            return Cut(found, 1.0, "statistical", audit=found <= incumbent.score)
        return found

    def _keep(self, candidate: Candidate, losses: FloatArray, order: Sequence[int]) -> None:
        """Keep the losses of a candidate, put back into the order of the split."""
        self._known[candidate] = np.empty(len(losses))
        self._known[candidate][np.asarray(order)] = losses
        write_losses(self._path(candidate), self._known[candidate])

    def _path(self, candidate: Candidate) -> Path:
        # by candidate, not by trial: another worker may have taken over the number of a trial that is evaluated here
        digest = hashlib.sha256(json.dumps(candidate).encode()).hexdigest()
        return self.folder / LOSSES / f"{digest[:16]}.npz"

    def _losses(self, trial: Trial) -> FloatArray:
        """The losses of a complete trial: remembered, read, or made again where the file is missing or damaged."""
        if trial.candidate not in self._known:
            path = self._path(trial.candidate)
            found = usable(lambda: read_losses(path, self.evaluator.data.search.num_samples), self.progress)
            if found is None:
                assert self.hardest_first is not None
                _, losses = self.evaluator.race(trial.candidate, self.hardest_first, None, None)
                self._keep(trial.candidate, losses, self.hardest_first)
            else:
                self._known[trial.candidate] = found
        return self._known[trial.candidate]


def write_losses(path: Path, losses: FloatArray) -> None:
    """Write losses [samples], atomically; the checksums of the ZIP format tell damage."""
    content = io.BytesIO()
    np.savez(content, losses=losses, format=FORMAT)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, content.getvalue())


def read_losses(path: Path, num_samples: int | None = None) -> FloatArray:
    """Read losses [samples].

    Args:
        num_samples: that there must be; None for any number.

    Raises:
        Damaged: there are none, or they cannot be read.
        Newer: they are of a format to come.
    """
    if not path.is_file():
        raise Damaged(path, "")
    try:
        content = np.load(path, allow_pickle=False)
        found, version = content["losses"], int(content["format"])
    except Exception as error:  # numpy and zipfile raise a dozen types on torn files
        raise Damaged(path, repr(error)) from None
    if version > FORMAT:
        raise Newer(path, version, FORMAT)
    with parsing(path):
        if found.ndim != 1 or num_samples not in (None, len(found)):
            raise ValueError(f"shape {found.shape}")
        return np.asarray(found, np.float64)


@dataclass(slots=True)
class _Audit:
    """Lets a test look on, but not cut."""

    test: PairedTest
    would_cut: bool = False

    def add(self, losses: Sequence[float]) -> bool:
        self.would_cut = self.test.add(losses) or self.would_cut
        return False


def check_race(evaluator: Evaluator, order: Sequence[int] | None) -> None:
    """Refuse the statistical bound where it cannot be used.

    Raises:
        UserError: saying why.
    """
    name = evaluator.score_name
    if not evaluator.averages:
        raise UserError(
            f"The statistical bound needs a score that is a mean over samples (accuracy, top5, kl), but {name!r} is "
            "none. Set bounds to 'exact' or 'off'."
        )
    if order is None:
        raise UserError(
            "The statistical bound draws samples at random, but the search split cannot be read in any order. Give a "
            "data set that can be indexed, without random transforms, or set bounds to 'exact'."
        )
