"""Exact bounds while a candidate is evaluated, in the manner of alpha-beta.

alpha is the best score that a complete trial reached at no more cost (`Staircase`). beta is the best score that the
running candidate can still reach. A candidate is cut as soon as beta <= alpha.

**What is proved.** A score that can be bounded is a non-increasing function of a sum of losses, one for each sample and
none of them negative: wrong answers for accuracy, (total - wrong) / total; divergences for "kl", -sum / total. After
any k samples the losses seen so far are at most the whole sum, so the same function of them, beta, is at least the
final score. This holds in floating point too: counts are exact, `math.fsum` rounds the exact sum of what it is given
and rounding is monotone, and so are the subtraction and division by one total.

If beta <= alpha, some complete trial t costs no more in any objective and scores no less: t dominates the candidate, or
equals it and came first. Either way the candidate is not on the front, and whatever it would dominate, t dominates too.
So the front of a study, with all its scores, is the one that evaluating every one of its candidates in full gives. A
candidate of equal score that costs less in any objective is not cut by t. Nothing is assumed about the order of
samples; a good one cuts sooner.

Source: Knuth & Moore 1975, "An analysis of alpha-beta pruning"; dropping a model as soon as it cannot win, as in Maron
& Moore 1993, "Hoeffding races", but with certain bounds in the place of statistical ones.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from autoprune.agents.base import Trial
from autoprune.files import atomic_write, read_json
from autoprune.search_spaces.errors import UserError
from autoprune.search_spaces.types import Candidate

ORDER = Path("profile") / "order.json"
"""Where a run folder keeps the order in which samples are evaluated."""

BOUNDS = ("exact", "off")

REASON = "exact bound: a trial that costs no more scores at least as well, whatever the remaining samples give."
"""Message of a cut trial; the same for all, so that they are counted together."""


@dataclass(frozen=True, slots=True)
class Cut:
    """An evaluation that was stopped.

    Attributes:
        bound: the score is at most this.
        evaluated: share of the samples that were run, in [0, 1).
    """

    bound: float
    evaluated: float


@dataclass(slots=True)
class Staircase:
    """The front so far: alpha of a candidate is the best score that was reached at no more cost.

    Attributes:
        costs: names of the study's objectives beside the score, all minimised.
    """

    costs: Sequence[str]
    _steps: list[tuple[float, tuple[float, ...]]] = field(default_factory=list)

    def add(self, trial: Trial) -> None:
        """Take in a complete trial; others are ignored, since a bound is no score."""
        if trial.state != "complete" or trial.score is None:
            return
        score, at = trial.score, self._at(trial.costs)
        if any(other >= score and _no_more(where, at) for other, where in self._steps):
            return  # it lowers no candidate's chances further
        kept = [(other, where) for other, where in self._steps if not (score >= other and _no_more(at, where))]
        self._steps = [*kept, (score, at)]

    def alpha(self, costs: Mapping[str, float]) -> float | None:
        """Best score at no more than `costs` in every objective; None where nothing costs so little."""
        at = self._at(costs)
        return max((score for score, where in self._steps if _no_more(where, at)), default=None)

    def _at(self, costs: Mapping[str, float]) -> tuple[float, ...]:
        return tuple(costs[name] for name in self.costs)


def _no_more(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return all(a <= b for a, b in zip(one, other, strict=True))


def describe_cuts(trials: Sequence[Trial]) -> str | None:
    """``41 of 100 trials cut by exact bounds; 23 % of the samples evaluated``; None where none was cut.

    The share is over the distinct subnets that were evaluated to the end or cut.
    """
    cut = sum(trial.state == "cut" for trial in trials)
    if not cut:
        return None
    seen: dict[Candidate, float] = {}
    for trial in trials:
        if trial.state != "failed":
            seen[trial.candidate] = max(seen.get(trial.candidate, 0.0), trial.evaluated)
    share = sum(seen.values()) / len(seen)
    return f"{cut} of {len(trials)} trials cut by exact bounds; {100 * share:.0f} % of the samples evaluated"


def save_order(folder: Path, order: Sequence[int]) -> None:
    """Write the order of samples into the run folder `folder`, atomically."""
    (folder / ORDER).parent.mkdir(exist_ok=True)
    atomic_write(folder / ORDER, json.dumps({"order": list(order)}) + "\n")


def load_order(run: Path) -> list[int] | None:
    """Read the order that the run folder `run` keeps; None where it keeps none.

    Raises:
        UserError: the file is damaged.
    """
    path = run / ORDER
    if not path.is_file():
        return None
    try:
        order = [int(number) for number in read_json(path)["order"]]
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} is damaged ({error!r}). Delete it: it is made again.") from None
    return order
