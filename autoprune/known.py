"""What the trials so far say about the next: outcomes that need not be found out again, and bounds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from autoprune.agents.base import Trial
from autoprune.bounds import Staircase
from autoprune.heuristic import Heuristic
from autoprune.prunings import REASONS
from autoprune.search_spaces.types import Candidate


class Known:
    """What the trials so far say: of each candidate, of those that set a bound, and of predictions.

    Attributes:
        outcomes: of each candidate its score, else its latest and lowest bound.
        best: the best score.
    """

    def __init__(self, staircase: Staircase, predict: Callable[[Candidate], float] | None) -> None:
        self.outcomes: dict[Candidate, Trial] = {}
        self.staircase = staircase
        self.heuristic = None if predict is None else Heuristic(predict)
        self.best: float | None = None

    def add(self, trial: Trial) -> None:
        """Take in a trial that did not fail."""
        self.staircase.add(trial)
        if self.heuristic is not None:
            self.heuristic.learn(trial)
        if trial.score is None:
            return
        if trial.state == "complete" and (self.best is None or trial.score > self.best):
            self.best = trial.score
        before = self.outcomes.get(trial.candidate)
        if before is not None and before.state == "complete":
            return
        if before is None or trial.state == "complete" or before.score is None or trial.score < before.score:
            self.outcomes[trial.candidate] = trial


def settles(twin: Trial, incumbent: Trial | None) -> bool:
    """Whether what is known of a candidate makes its evaluation needless: a score does, a bound if it is low enough.

    A bound that cut it once does so again, unless predicted latencies were measured anew in between: since then
    incumbents only got better. So a race is not run twice, which would double the chance of an error.
    """
    if twin.state == "complete":
        return True
    if incumbent is None or incumbent.score is None or twin.score is None:
        return False
    return twin.score <= incumbent.score


def settled(twin: Trial) -> dict[str, Any]:
    """What a trial says that takes over the outcome of an earlier one."""
    known = twin.state == "complete"
    return {
        "state": twin.state,
        "score": twin.score,
        "evaluated": 0.0,
        "pruning": "subproblem",
        "message": f"same subnet as trial {twin.number}" if known else REASONS["subproblem"],
    }
