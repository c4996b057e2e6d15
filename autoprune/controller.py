"""The search loop: ask, check, evaluate, store, tell.

Trial k belongs to agent ``k % len(agents)``, one agent per share of the budget, and each learns from its own trials
only. Everything random in trial k is seeded by (study seed, k) inside the agent, so going on after a kill is: tell
the recorded trials again, in order, and ask for the next number.

With `evaluate_above`, a candidate is stopped when it is certain that it cannot join the front of the whole study (see
`bounds`). Of the candidates that are proposed, the same ones make the front; but an agent that learns is told a bound
where it would have been told a score, and may propose others.
"""

from __future__ import annotations

import errno
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from autoprune.agents.base import Agent, State, Trial
from autoprune.bounds import REASON, Cut, Staircase
from autoprune.progress import NO_PROGRESS, Progress
from autoprune.running import EvaluationFailed
from autoprune.search_spaces.budget import Budget, format_cost
from autoprune.search_spaces.errors import UserError
from autoprune.search_spaces.types import Candidate
from autoprune.study import Study, objectives

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
        evaluate_above: (candidate, alpha) -> the same score, or a `Cut` where it is at most alpha; None cuts nothing.
        progress: where the search reports to.
        label: how a score reads in the progress line.
    """

    study: Study
    space: CostOracle
    seats: Sequence[Seat]
    budget: Budget
    evaluate: Callable[[Candidate], float]
    evaluate_above: Callable[[Candidate, float], float | Cut] | None = None
    progress: Progress = NO_PROGRESS
    label: Callable[[float], str] = "{:.4g}".format

    def run(self) -> list[Trial]:
        """Run until the study holds as many trials as its configuration plans; return all of them.

        Raises:
            UserError: the evaluation cannot work as it is set up, or failed three times in a row in the same way.
            KeyboardInterrupt: the user stopped it; finished trials are stored.
        """
        trials = self.study.trials
        known: dict[Candidate, Trial] = {}  # what is known of a candidate: its score, else its latest bound
        staircase = Staircase(objectives(self.study.config.budget)[1:])
        for trial in trials:
            _learn(known, trial)
            staircase.add(trial)
            self._seat(trial.number).agent.tell(trial)
        best = max((t.score for t in trials if t.state == "complete" and t.score is not None), default=None)
        streak: list[str] = []  # kinds of the failures since the last success, all the same
        planned = self.study.config.trials
        with self.progress.task("Searching", total=planned, unit="trials", done=len(trials)) as task:
            while len(trials) < planned:
                number = len(trials)
                seat = self._seat(number)
                candidate = seat.agent.ask(number)
                costs = self._check(candidate, seat)
                alpha = None if self.evaluate_above is None else staircase.alpha(costs)
                trial, kind = self._try(number, candidate, costs, seat.share, known.get(candidate), alpha)
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
                    _learn(known, trial)
                    staircase.add(trial)
                    if trial.state == "complete" and trial.score is not None and (best is None or trial.score > best):
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
        self,
        number: int,
        candidate: Candidate,
        costs: dict[str, float],
        share: float,
        twin: Trial | None,
        alpha: float | None,
    ) -> tuple[Trial, str]:
        """Evaluate a candidate, or reuse what is known of it; return the trial and the kind of its failure."""
        start = time.perf_counter()
        found: float | Cut | None = None
        message: str | None = None
        kind = ""
        evaluated = 1.0
        if twin is not None and twin.score is not None and _settles(twin, alpha):
            found, evaluated = twin.score if twin.state == "complete" else Cut(twin.score, 0.0), 0.0
            message = f"same subnet as trial {twin.number}"
        else:
            try:
                if self.evaluate_above is None or alpha is None:
                    found = float(self.evaluate(candidate))
                else:
                    found = self.evaluate_above(candidate, alpha)
            except UserError:
                raise
            except Exception as error:  # the user's model, data and score run in here: what they raise ends one trial
                if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                    raise
                message, kind = describe_error(error), type(error).__name__
            if isinstance(found, float) and found != found:
                found, message, kind = None, "the score is NaN.", "nan"
        state: State = "complete"
        if isinstance(found, Cut):
            state, message, evaluated = "cut", REASON, found.evaluated
        trial = Trial(
            number=number,
            candidate=candidate,
            state="failed" if found is None else state,
            score=found.bound if isinstance(found, Cut) else found,
            costs=costs,
            share=share,
            message=message,
            seconds=time.perf_counter() - start,
            evaluated=evaluated,
        )
        return trial, kind


def _learn(known: dict[Candidate, Trial], trial: Trial) -> None:
    """Remember the first score of a candidate, and until there is one its lowest bound."""
    before = known.get(trial.candidate)
    if trial.score is None or (before is not None and before.state == "complete"):
        return
    if before is None or trial.state == "complete" or before.score is None or trial.score < before.score:
        known[trial.candidate] = trial


def _settles(twin: Trial, alpha: float | None) -> bool:
    """Whether what is known of a candidate makes its evaluation needless: a score does, a bound if it is low enough.

    A bound that cut it once does so again, unless predicted latencies were measured anew in between.
    """
    return twin.state == "complete" or (alpha is not None and twin.score is not None and twin.score <= alpha)


def describe_error(error: Exception) -> str:
    """What was raised and where."""
    if isinstance(error, EvaluationFailed):  # raised by us, and says it all
        return f"{error}."
    text = f"{type(error).__name__}: {error}".strip().rstrip(".")
    frames = traceback.extract_tb(error.__traceback__)
    return f"{text} ({frames[-1].filename}:{frames[-1].lineno})." if frames else f"{text}."
