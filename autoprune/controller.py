"""The search loop: ask, check, evaluate, store, tell.

Trial k belongs to agent ``k % len(agents)``, one agent per share of the budget, and each learns from its own trials
only. Everything random in trial k is seeded by (study seed, k) inside the agent, so going on after a kill is: tell
the recorded trials again, in order, and ask for the next number.
"""

from __future__ import annotations

import errno
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from autoprune.agents.base import Agent, Trial
from autoprune.progress import NO_PROGRESS, Progress
from autoprune.running import EvaluationFailed
from autoprune.search_spaces.budget import Budget, format_cost
from autoprune.search_spaces.errors import UserError
from autoprune.search_spaces.types import Candidate
from autoprune.study import Study

MAX_FAILURES = 3
"""So many failed trials in a row, all of one kind, stop the search: the next would fail as well."""


class CostOracle(Protocol):
    """What the controller asks of a search space."""

    @property
    def dense(self) -> Candidate: ...

    def cost_dict(self, candidate: Candidate) -> dict[str, float]: ...

    def keep_ratios(self, candidate: Candidate) -> dict[str, float]: ...


@dataclass(frozen=True, slots=True)
class Seat:
    """An agent and the share of the budget that its candidates are made for."""

    agent: Agent
    share: float


@dataclass(slots=True)
class Controller:
    """Runs the trials of a study until the plan is fulfilled.

    Attributes:
        study: open for appending; trials already in it are told to the agents first.
        space: prices candidates.
        seats: agents in the order in which they take turns.
        budget: the whole budget; seat i proposes within ``budget.scaled(seats[i].share)``.
        evaluate: candidate -> score, higher is better; deterministic in the candidate.
        progress: where the search reports to.
        label: how a score reads in the progress line.
    """

    study: Study
    space: CostOracle
    seats: Sequence[Seat]
    budget: Budget
    evaluate: Callable[[Candidate], float]
    progress: Progress = NO_PROGRESS
    label: Callable[[float], str] = "{:.4g}".format

    def run(self) -> list[Trial]:
        """Run until the study holds as many trials as its configuration plans; return all of them.

        Raises:
            UserError: the evaluation cannot work as it is set up, or failed three times in a row in the same way.
            KeyboardInterrupt: the user stopped it; finished trials are stored.
        """
        trials = self.study.trials
        known = {trial.candidate: trial for trial in reversed(trials) if trial.state == "complete"}
        best = max((trial.score for trial in known.values() if trial.score is not None), default=None)
        for trial in trials:
            self._seat(trial.number).agent.tell(trial)
        streak: list[str] = []  # kinds of the failures since the last success, all the same
        planned = self.study.config.trials
        with self.progress.task("Searching", total=planned, unit="trials", done=len(trials)) as task:
            while len(trials) < planned:
                number = len(trials)
                seat = self._seat(number)
                candidate = seat.agent.ask(number)
                costs = self._check(candidate, seat)
                trial, kind = self._try(number, candidate, costs, seat.share, known.get(candidate))
                self.study.append(trial, self.space.keep_ratios(candidate))
                seat.agent.tell(trial)
                if trial.state == "failed":
                    streak = [*streak, kind] if kind in streak else [kind]
                    self.progress.say(f"Trial {number} failed: {trial.message}")
                    if len(streak) >= MAX_FAILURES:
                        raise UserError(
                            f"{MAX_FAILURES} trials in a row failed in the same way, the last with: {trial.message} "
                            f"Mend that, then go on with `autoprune resume {self.study.path}`."
                        )
                else:
                    streak = []
                    known.setdefault(candidate, trial)
                    if trial.score is not None and (best is None or trial.score > best):
                        best = trial.score
                task.advance(note="" if best is None else f"best {self.label(best)}")
        return trials

    def _seat(self, number: int) -> Seat:
        return self.seats[number % len(self.seats)]

    def _check(self, candidate: Candidate, seat: Seat) -> dict[str, float]:
        """Price a proposal; one above its budget is a mistake of ours, never evaluated and never stored."""
        costs = self.space.cost_dict(candidate)
        limits = self.budget.scaled(seat.share).resolve(self.space.cost_dict(self.space.dense))
        for name, limit in limits.items():
            if costs[name] > limit * (1 + 1e-9):
                raise AssertionError(
                    f"{type(seat.agent).__name__} proposed {candidate}, whose {name} of "
                    f"{format_cost(name, costs[name])} exceed the limit of {format_cost(name, limit)}. "
                    f"This is a bug in autoprune: please report it."
                )
        return costs

    def _try(
        self, number: int, candidate: Candidate, costs: dict[str, float], share: float, twin: Trial | None
    ) -> tuple[Trial, str]:
        """Evaluate a candidate, or reuse the score of the same one; return the trial and the kind of its failure."""
        start = time.perf_counter()
        score: float | None = None
        message: str | None = None
        kind = ""
        if twin is not None:
            score, message = twin.score, f"same subnet as trial {twin.number}"
        else:
            try:
                score = float(self.evaluate(candidate))
            except UserError:
                raise
            except Exception as error:  # the user's model, data and score run in here: what they raise ends one trial
                if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                    raise
                message, kind = describe_error(error), type(error).__name__
            if score is not None and score != score:
                score, message, kind = None, "the score is NaN.", "nan"
        trial = Trial(
            number=number,
            candidate=candidate,
            state="failed" if score is None else "complete",
            score=score,
            costs=costs,
            share=share,
            message=message,
            seconds=time.perf_counter() - start,
        )
        return trial, kind


def describe_error(error: Exception) -> str:
    """What was raised and where."""
    if isinstance(error, EvaluationFailed):  # raised by us, and says it all
        return f"{error}."
    text = f"{type(error).__name__}: {error}".strip().rstrip(".")
    frames = traceback.extract_tb(error.__traceback__)
    return f"{text} ({frames[-1].filename}:{frames[-1].lineno})." if frames else f"{text}."
