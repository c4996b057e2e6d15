"""Exact bounds while a candidate is evaluated, in the manner of alpha-beta.

alpha is the best score that a complete trial reached at no more cost (`Staircase`). beta is the best score that the
running candidate can still reach. A candidate is cut as soon as beta <= alpha.

**What is proved.** A score that can be bounded is a non-increasing function of a sum of losses, one for each sample and
none of them negative: wrong answers for accuracy, (total - wrong) / total; divergences for "kl", -sum / total (`worst`
has a minimum of such scores). After any k samples the losses seen so far are at most the whole sum, so the same
function of them, beta, is at least the final score. This holds in floating point too: counts are exact, `math.fsum`
rounds the exact sum of what it is given and rounding is monotone, and so are the subtraction and division by one total.

If beta <= alpha, some complete trial t costs no more in any objective and scores no less: t dominates the candidate, or
equals it and came first. Either way the candidate is not on the front, and whatever it would dominate, t dominates too.
So the front of a study, with all its scores, is the one that evaluating every one of its candidates in full gives. A
candidate of equal score that costs less in any objective is not cut by t. Nothing is assumed about the order of
samples; a good one cuts sooner.

Source: Knuth & Moore 1975, "An analysis of alpha-beta pruning"; dropping a model as soon as it cannot win, as in Maron
& Moore 1993, "Hoeffding races", but with certain bounds in the place of statistical ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from autoprune.agents.base import Trial
from autoprune.documents import parsing, read_document, write_document

ORDER = Path("profile") / "order.json"
"""Where a run folder keeps the order in which samples are evaluated."""

FORMAT = 1

BOUNDS = ("exact", "statistical", "off")


@dataclass(frozen=True, slots=True)
class Cut:
    """An evaluation that was stopped, or would have been.

    Attributes:
        bound: the score is at most this; of a statistical bound, very likely.
        evaluated: share of the samples that were run, in [0, 1].
        pruning: by which of the `prunings`.
        audit: None; or, where the evaluation went on to check the pruning, whether it was right. One that was wrong
            was evaluated in full, and `bound` is its score.
    """

    bound: float
    evaluated: float
    pruning: str = "alpha-beta"
    audit: bool | None = None


@dataclass(slots=True)
class Staircase:
    """The front so far: alpha of a candidate is the best score that was reached at no more cost.

    Attributes:
        costs: names of the study's objectives beside the score, all minimised.
        tolerance: by what share a cost may be larger and still count as no more. Of whatever is cut, a trial is on the
            front that scores at least as well and costs at most this share more; `math.inf` keeps only the winner, the
            first of the best scores.
    """

    costs: Sequence[str]
    tolerance: float = 0.0
    _steps: list[Trial] = field(default_factory=list)

    def add(self, trial: Trial) -> None:
        """Take in a complete trial; others are ignored, since a bound is no score."""
        if trial.state != "complete" or trial.score is None:
            return
        if any(_score(other) >= trial.score and self._no_more(other, trial.costs) for other in self._steps):
            return  # it lowers no candidate's chances further
        kept = [t for t in self._steps if not (trial.score >= _score(t) and self._no_more(trial, t.costs))]
        self._steps = [*kept, trial]

    def incumbent(self, costs: Mapping[str, float]) -> Trial | None:
        """The first of the trials that scored best at no more than `costs` in every objective; None where none did."""
        return max(
            (trial for trial in self._steps if self._no_more(trial, costs, self.tolerance)), key=_score, default=None
        )

    def alpha(self, costs: Mapping[str, float]) -> float | None:
        """The score of `incumbent`."""
        found = self.incumbent(costs)
        return None if found is None else found.score

    def _no_more(self, trial: Trial, costs: Mapping[str, float], tolerance: float = 0.0) -> bool:
        if math.isinf(tolerance):
            return True
        return all(trial.costs[name] <= costs[name] * (1 + tolerance) for name in self.costs)


def _score(trial: Trial) -> float:
    assert trial.score is not None, "only complete trials are steps"
    return trial.score


def save_order(folder: Path, order: Sequence[int]) -> None:
    """Write the order of samples into the run folder `folder`, atomically."""
    write_document(folder / ORDER, FORMAT, {"order": list(order)})


def load_order(run: Path) -> list[int]:
    """Read the order that the run folder `run` keeps.

    Raises:
        Damaged: it keeps none, or one that cannot be read.
    """
    content = read_document(run / ORDER, FORMAT)
    with parsing(run / ORDER):
        return [int(number) for number in content["order"]]
