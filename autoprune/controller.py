"""The search loop: ask, check, evaluate, store, tell.

Trial k belongs to agent ``k % len(agents)``, one agent per share of the budget, and each learns from its own trials
only, whichever worker evaluated them. Everything random in trial k is seeded by (study seed, k) inside the agent, so
going on after a kill is: tell the recorded trials again, in order, and ask for the next number.

With `evaluate_above`, a candidate is stopped when it is certain that it cannot join the front of the whole study (see
`bounds`). Of the candidates that are proposed, the same ones make the front; but an agent that learns is told a bound
where it would have been told a score, and may propose others. `race` and `predict` cut more, without proof; what they
would have cut is evaluated now and then all the same, and says how often they are wrong (see `prunings`).

With a `keeper`, each candidate is measured on the device before it is scored, and moved to where it keeps the budget
as measured. Its trial stores every measurement, and the models that predict learn them after the agent was told: so a
search that goes on finds agents and models in the states in which they were.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from autoprune import stopping
from autoprune.agents.base import Agent, Reading, Trial
from autoprune.bounds import Cut, Staircase
from autoprune.failures import Failure, Streak, failure_of
from autoprune.heuristic import Heuristic
from autoprune.keeping import Keeper
from autoprune.known import Known, settled, settles
from autoprune.measure import TooNoisy
from autoprune.measure.turns import among_others
from autoprune.progress import NO_PROGRESS, Progress
from autoprune.prunings import REASONS, is_audited
from autoprune.records import ROUNDING
from autoprune.search_spaces.budget import Budget, format_cost
from autoprune.search_spaces.errors import UserError
from autoprune.search_spaces.types import Candidate
from autoprune.statistical import AUDIT
from autoprune.storage import Claim, LostClaim
from autoprune.study import Study, objectives

Pending: TypeAlias = Mapping[int, Candidate | None]
"""What others evaluate now, by number; None where they do not know yet."""

MAX_FAILURES = 3
"""So many failed trials in a row, all of one kind, stop the search: the next would fail as well."""

POLL_S = 0.1
"""How often to look what became of the trials that other workers evaluate."""

ASK_AGAIN = 3
"""Times that an agent is asked again, at once, for a candidate that nobody evaluates."""

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
    failure: Failure | None = None


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
        """Work until the study holds as many trials as its configuration plans; return all of them.

        Other workers may do the same: each trial is evaluated by one of them. The last trials may be theirs, and are
        waited for, or taken over.

        Raises:
            UserError: the evaluation cannot work as it is set up, or failed three times in a row in the same way.
            KeyboardInterrupt: the user stopped it; finished trials are stored.
        """
        known = Known(Staircase(objectives(self.study.config.budget)[1:], self.tolerance), self.predict)
        self._learn(self.study.trials, known)
        streak = Streak()
        planned, done = self.study.config.trials, len(self.study.trials)
        with self.progress.task("Searching", total=planned, unit="trials", done=done) as task:
            while True:
                turn = self.study.next()
                if turn.stored > len(self.study.trials):
                    self._learn(self.study.news(), known)
                if turn.claim is not None:
                    with self.study.working(turn.claim):
                        failure = self._work(turn.claim, turn.pending, known)
                elif turn.stored < planned:
                    time.sleep(POLL_S)
                note = "" if known.best is None else f"best {self.label(known.best)}"
                task.advance(len(self.study.trials) - done, note=note)
                done = len(self.study.trials)
                if turn.claim is not None:
                    self._stop_at(streak.count(failure), failure)
                elif turn.stored >= planned:
                    return self.study.trials
                stopping.check()

    def _stop_at(self, failures: int, failure: Failure | None) -> None:
        if failure is not None and failures >= MAX_FAILURES:
            failed = f"{MAX_FAILURES} trials in a row failed in the same way, the last with: {failure.message} "
            if not self.study.holds_folder:
                raise UserError(f"{failed}Mend that, then start this worker again.")
            self.study.change(trials=self.study.config.trials + MAX_FAILURES)
            raise UserError(
                f"{failed}Mend that, then go on with `autoprune resume {self.study.path}`, which makes up for them."
            )

    def _work(self, claim: Claim, pending: Pending, known: Known) -> Failure | None:
        """Find a candidate for a claimed trial, evaluate and store it; return how it failed, if it did."""
        number, start = claim.number, time.perf_counter()
        seat = self._seat(number)
        try:
            candidate = self._ask(claim, pending, known)
            placed = self._place(candidate, seat, known.outcomes)
            while placed.candidate != candidate and not self._may_evaluate(claim, placed.candidate, known):
                self.study.forget(claim)  # who evaluates what we wait for may wait for what we have begun
                self._wait(claim, known)
            trial, failure = self._try(number, placed, seat, known, start)
            kept = self.space.keep_ratios(trial.candidate)
            self._learn(self.study.store(claim, trial, kept, self._limits(self.budget)), known)
        except LostClaim as lost:
            self.progress.say(f"Dropped: {lost}.")
            return None
        if failure is not None:
            self.progress.say(f"Trial {number} failed: {failure.message}")
        return failure

    def _ask(self, claim: Claim, pending: Pending, known: Known) -> Candidate:
        """A candidate for a claimed trial, which nobody else evaluates: what they do evaluate is waited for if need be.

        Asked again, an agent knows what it was told meanwhile, and what others evaluate.
        """
        number = claim.number
        agent = self._seat(number).agent
        for attempt in itertools.count():
            others = sorted(pending.items())
            agent.pending = tuple(each for other, each in others if self._seat(other).agent is agent)
            agent.place = number // len(self.seats)
            candidate = agent.ask(number)
            if self._may_evaluate(claim, candidate, known):
                return candidate
            pending = self._wait(claim, known, POLL_S if attempt >= ASK_AGAIN else 0)
        raise AssertionError("unreachable")

    def _may_evaluate(self, claim: Claim, candidate: Candidate, known: Known) -> bool:
        """Whether the outcome is known already, or else nobody evaluates the candidate but the owner of the claim."""
        # begun in any case: what is known may be a bound that does not settle it
        return self.study.begin(claim, candidate) or candidate in known.outcomes

    def _wait(self, claim: Claim, known: Known, seconds: float = POLL_S) -> Pending:
        """Let others get on; take in what they stored, and return what they evaluate now."""
        stopping.check()
        time.sleep(seconds)
        self._learn(self.study.news(), known)
        return self.study.pending(claim)

    def _learn(self, trials: Iterable[Trial], known: Known) -> None:
        """Tell trials, of this worker or others, to their agents, and take in what they say."""
        for trial in trials:
            self._tell(trial)
            if trial.state != "failed":
                known.add(trial)

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
            return _Placed(candidate=candidate, costs=self.space.cost_dict(candidate), failure=failure_of(error))
        costs = {**self.space.cost_dict(kept.candidate), **kept.costs}
        missed = {"state": "cut", "evaluated": 0.0, "pruning": "measured", "message": REASONS["measured"]}
        return _Placed(
            candidate=kept.candidate, costs=costs, readings=kept.readings, outcome=missed if kept.misses else None
        )

    def _check(self, candidate: Candidate, seat: Seat) -> dict[str, float]:
        """Price a proposal; one above its budget is a mistake of ours, never evaluated and never stored."""
        costs = self.space.cost_dict(candidate)
        for name, limit in self._limits(self.budget.scaled(seat.share)).items():
            if costs[name] > limit * (1 + ROUNDING):
                raise AssertionError(
                    f"{type(seat.agent).__name__} proposed {candidate}, whose {name} of "
                    f"{format_cost(name, costs[name])} exceed the limit of {format_cost(name, limit)}. "
                    f"This is a bug in autoprune: please report it."
                )
        return costs

    def _limits(self, budget: Budget) -> dict[str, float]:
        return budget.resolve(self.space.cost_dict(self.space.dense))

    def _try(
        self,
        number: int,
        placed: _Placed,
        seat: Seat,
        known: Known,
        start: float,
    ) -> tuple[Trial, Failure | None]:
        """Evaluate a candidate, or reuse what is known of it; return the trial and how it failed, if it did."""
        candidate, costs, failure = placed.candidate, placed.costs, placed.failure
        twin, incumbent = known.outcomes.get(candidate), known.staircase.incumbent(costs)
        became: dict[str, Any] = {}
        if placed.outcome is not None:
            became = placed.outcome
        elif twin is not None and settles(twin, incumbent):
            became = settled(twin)
        elif failure is None:
            try:
                became = self._judge(number, candidate, incumbent, known.heuristic)
            except Exception as error:  # the user's model, data and score run in here: what they raise ends one trial
                failure = failure_of(error)
            if became.get("score", 0.0) != became.get("score", 0.0):
                failure = Failure("not finite", "the score is NaN.")
        trial = Trial(
            number=number,
            candidate=candidate,
            costs=costs,
            share=seat.share,
            seconds=time.perf_counter() - start,
            ruled_out=dict(seat.agent.ruled_out),
            readings=placed.readings,
            **{"score": None, **(became if failure is None else failure.outcome)},
        )
        return trial, failure

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
        with among_others():  # who may measure on this machine
            return self._score(number, candidate, incumbent)

    def _score(self, number: int, candidate: Candidate, incumbent: Trial | None) -> float | Cut:
        if self.race is not None:
            return self.race(number, candidate, incumbent)
        if self.evaluate_above is None or incumbent is None or incumbent.score is None:
            return float(self.evaluate(candidate))
        return self.evaluate_above(candidate, incumbent.score)
