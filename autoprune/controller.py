"""The search loop: ask, check, evaluate, store, tell.

Trial k belongs to agent ``k % len(agents)``, one agent per share of the budget, and each learns from its own trials
only. Everything random in trial k is seeded by (study seed, k) inside the agent, so going on after a kill is: tell
the recorded trials again, in order, and ask for the next number.

With `evaluate_above`, a candidate is stopped when it is certain that it cannot join the front of the whole study (see
`bounds`). Of the candidates that are proposed, the same ones make the front; but an agent that learns is told a bound
where it would have been told a score, and may propose others. `race` and `predict` cut more, without proof; what they
would have cut is evaluated now and then all the same, and says how often they are wrong (see `prunings`).

With a `keeper`, each candidate is measured on the device before it is scored, and moved to where it keeps the budget
as measured. Its trial stores every measurement, and the models that predict learn them after the agent was told: so a
search that goes on finds agents and models in the states in which they were.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from autoprune import stopping
from autoprune.agents.base import Agent, Reading, Trial
from autoprune.bounds import Cut, Staircase
from autoprune.failures import ends_search, kind_of
from autoprune.heuristic import Heuristic
from autoprune.keeping import Keeper
from autoprune.measure import TooNoisy
from autoprune.memory import release
from autoprune.progress import NO_PROGRESS, Progress
from autoprune.prunings import REASONS, is_audited
from autoprune.running import EvaluationFailed
from autoprune.search_spaces.budget import Budget, format_cost
from autoprune.search_spaces.errors import UserError
from autoprune.search_spaces.types import Candidate
from autoprune.statistical import AUDIT
from autoprune.study import Study, objectives

MAX_FAILURES = 3
"""So many failed trials in a row, all of one kind, stop the search: the next would fail as well."""

MAX_MEASUREMENTS = 3
"""Of a candidate and its repairs, before it is scored."""


class CostOracle(Protocol):
    """What the controller asks of a search space."""

    @property
    def dense(self) -> Candidate: ...

    def cost_dict(self, candidate: Candidate) -> dict[str, float]: ...

    def keep_ratios(self, candidate: Candidate) -> dict[str, float]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class _Placed:
    """A candidate that will be evaluated, with its costs, or one of which it is known already what its trial says."""

    candidate: Candidate
    costs: dict[str, float]
    readings: tuple[Reading, ...] = ()
    outcome: dict[str, Any] | None = None
    kind: str = ""


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
        race: (number, candidate, incumbent or None) -> the score, or a `Cut`: takes the place of both, see `races`.
        predict: candidate -> predicted loss; where given, candidates are skipped by it, see `heuristic`.
        keeper: measures candidates before they are scored; None trusts the predicted costs.
        audit: share of the candidates to be skipped that are evaluated all the same.
        tolerance: see `bounds.Staircase`; `math.inf` where only the best score counts, at whatever cost.
        progress: where the search reports to.
        label: how a score reads in the progress line.
    """

    study: Study
    space: CostOracle
    seats: Sequence[Seat]
    budget: Budget
    evaluate: Callable[[Candidate], float]
    evaluate_above: Callable[[Candidate, float], float | Cut] | None = None
    race: Callable[[int, Candidate, Trial | None], float | Cut] | None = None
    predict: Callable[[Candidate], float] | None = None
    keeper: Keeper | None = None
    audit: float = AUDIT
    tolerance: float = 0.0
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
        staircase = Staircase(objectives(self.study.config.budget)[1:], self.tolerance)
        heuristic = None if self.predict is None else Heuristic(self.predict)

        def learn(trial: Trial) -> None:
            _learn(known, trial)
            staircase.add(trial)
            if heuristic is not None:
                heuristic.learn(trial)

        for trial in trials:
            learn(trial)
            self._tell(trial)
        best = max((t.score for t in trials if t.state == "complete" and t.score is not None), default=None)
        streak: list[str] = []  # kinds of the failures since the last success, all the same
        planned = self.study.config.trials
        with self.progress.task("Searching", total=planned, unit="trials", done=len(trials)) as task:
            while len(trials) < planned:
                number = len(trials)
                seat = self._seat(number)
                start = time.perf_counter()
                placed = self._place(seat.agent.ask(number), seat, known)
                trial, kind = self._try(number, placed, seat, known, staircase, heuristic, start)
                self.study.append(trial, self.space.keep_ratios(trial.candidate))
                self._tell(trial)
                if trial.state == "failed":
                    streak = [*streak, kind] if kind in streak else [kind]
                    self.progress.say(f"Trial {number} failed: {trial.message}")
                    if len(streak) >= MAX_FAILURES:
                        self.study.change(trials=planned + MAX_FAILURES)
                        raise UserError(
                            f"{MAX_FAILURES} trials in a row failed in the same way, the last with: {trial.message} "
                            f"Mend that, then go on with `autoprune resume {self.study.path}`, which makes up for them."
                        )
                else:
                    streak = []
                    learn(trial)
                    if trial.state == "complete" and trial.score is not None and (best is None or trial.score > best):
                        best = trial.score
                task.advance(note="" if best is None else f"best {self.label(best)}")
                stopping.check()
        return trials

    def _seat(self, number: int) -> Seat:
        return self.seats[number % len(self.seats)]

    def _tell(self, trial: Trial) -> None:
        """Tell a trial to its agent, then let the models learn what was measured for it.

        In this order: what an agent does when it is told must not depend on models that know more than when it asked.
        """
        self._seat(trial.number).agent.tell(trial)
        if self.keeper is not None and trial.number >= self.study.config.readings_from:
            self.keeper.gauges.learn(trial.readings)

    def _place(self, candidate: Candidate, seat: Seat, known: Mapping[Candidate, Trial]) -> _Placed:
        """Price a proposal: as predicted, or with a keeper as measured, at the place where it keeps the budget."""
        if self.keeper is None:
            return _Placed(candidate=candidate, costs=self._check(candidate, seat))
        budget = self.budget.scaled(seat.share)
        twin = known.get(candidate)
        if twin is not None and twin.readings:  # measured already
            return _Placed(candidate=candidate, costs=twin.costs)
        try:
            kept = self.keeper.keep(candidate, budget, attempts=MAX_MEASUREMENTS)
        except TooNoisy as error:  # for now: what is predicted keeps the budget with some confidence
            self.progress.say(f"Not measured: {error}")
            candidate = self.keeper.fitting(candidate, budget)
            return _Placed(candidate=candidate, costs=self._check(candidate, seat))
        except Exception as error:  # the user's model runs in here
            failed, kind = _failed(error)
            return _Placed(candidate=candidate, costs=self.space.cost_dict(candidate), outcome=failed, kind=kind)
        costs = {**self.space.cost_dict(kept.candidate), **kept.costs}
        missed = {"state": "cut", "evaluated": 0.0, "pruning": "measured", "message": REASONS["measured"]}
        return _Placed(
            candidate=kept.candidate, costs=costs, readings=kept.readings, outcome=missed if kept.misses else None
        )

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
        placed: _Placed,
        seat: Seat,
        known: Mapping[Candidate, Trial],
        staircase: Staircase,
        heuristic: Heuristic | None,
        start: float,
    ) -> tuple[Trial, str]:
        """Evaluate a candidate, or reuse what is known of it; return the trial and the kind of its failure."""
        candidate, costs, kind = placed.candidate, placed.costs, placed.kind
        twin, incumbent = known.get(candidate), staircase.incumbent(costs)
        if placed.outcome is not None:
            became = placed.outcome
        elif twin is not None and _settles(twin, incumbent):
            became = _settled(twin)
        else:
            try:
                became = self._judge(number, candidate, incumbent, heuristic)
            except Exception as error:  # the user's model, data and score run in here: what they raise ends one trial
                became, kind = _failed(error)
            if became.get("score", 0.0) != became.get("score", 0.0):
                became, kind = {"state": "failed", "message": "the score is NaN."}, "not finite"
        trial = Trial(
            number=number,
            candidate=candidate,
            costs=costs,
            share=seat.share,
            seconds=time.perf_counter() - start,
            ruled_out=dict(seat.agent.ruled_out),
            readings=placed.readings,
            **{"score": None, **became},
        )
        return trial, kind

    def _judge(
        self, number: int, candidate: Candidate, incumbent: Trial | None, heuristic: Heuristic | None
    ) -> dict[str, Any]:
        """Skip a candidate, or evaluate it as far as needed; return what its trial says of that."""
        hopeless = heuristic is not None and incumbent is not None and heuristic.skips(candidate, incumbent)
        if hopeless and not is_audited(self.study.config.seed, number, self.audit):
            return {"state": "cut", "evaluated": 0.0, "pruning": "heuristic", "message": REASONS["heuristic"]}
        found = self._evaluate(number, candidate, incumbent)
        if not isinstance(found, Cut):
            became: dict[str, Any] = {"state": "complete", "score": found}
        else:
            became = {
                "state": "complete" if found.audit is False else "cut",
                "score": found.bound,
                "evaluated": found.evaluated,
                "pruning": found.pruning,
                "audit": found.audit,
                "message": REASONS[found.pruning],
            }
        if hopeless:
            assert incumbent is not None
            assert incumbent.score is not None
            right = became["state"] == "cut" or became["score"] <= incumbent.score
            became |= {"pruning": "heuristic", "audit": right, "message": REASONS["heuristic"]}
        if became.get("audit") is not None:
            became["message"] += " Audited: that was " + ("right." if became["audit"] else "wrong.")
        return became

    def _evaluate(self, number: int, candidate: Candidate, incumbent: Trial | None) -> float | Cut:
        if self.race is not None:
            return self.race(number, candidate, incumbent)
        if self.evaluate_above is None or incumbent is None or incumbent.score is None:
            return float(self.evaluate(candidate))
        return self.evaluate_above(candidate, incumbent.score)


def _learn(known: dict[Candidate, Trial], trial: Trial) -> None:
    """Remember the first score of a candidate, and until there is one its lowest bound."""
    before = known.get(trial.candidate)
    if trial.score is None or (before is not None and before.state == "complete"):
        return
    if before is None or trial.state == "complete" or before.score is None or trial.score < before.score:
        known[trial.candidate] = trial


def _settles(twin: Trial, incumbent: Trial | None) -> bool:
    """Whether what is known of a candidate makes its evaluation needless: a score does, a bound if it is low enough.

    A bound that cut it once does so again, unless predicted latencies were measured anew in between: since then
    incumbents only got better. So a race is not run twice, which would double the chance of an error.
    """
    if twin.state == "complete":
        return True
    if incumbent is None or incumbent.score is None or twin.score is None:
        return False
    return twin.score <= incumbent.score


def _settled(twin: Trial) -> dict[str, Any]:
    """What a trial says that takes over the outcome of an earlier one."""
    known = twin.state == "complete"
    return {
        "state": twin.state,
        "score": twin.score,
        "evaluated": 0.0,
        "pruning": "subproblem",
        "message": f"same subnet as trial {twin.number}" if known else REASONS["subproblem"],
    }


def _failed(error: Exception) -> tuple[dict[str, Any], str]:
    """What the trial says that `error` ended, and the kind of its failure; raises what ends more than a trial."""
    if ends_search(error):
        raise error
    stopping.check()  # Ctrl-C reaches the processes that load data as well: without them an evaluation fails
    failed = {"state": "failed", "message": describe_error(error)}, kind_of(error)
    release(error)
    return failed


def describe_error(error: Exception) -> str:
    """What was raised and where."""
    if isinstance(error, EvaluationFailed):  # raised by us, and says it all
        return f"{error}."
    text = f"{type(error).__name__}: {error}".strip().rstrip(".")
    frames = traceback.extract_tb(error.__traceback__)
    return f"{text} ({frames[-1].filename}:{frames[-1].lineno})." if frames else f"{text}."
