"""What an agent is: proposes candidates, learns from their trials, and is rebuilt by telling the trials again."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, TypeAlias

import numpy as np

from autoprune.search_spaces.budget import Budget
from autoprune.search_spaces.errors import UserError, unknown
from autoprune.search_spaces.projection import Space, check_budget
from autoprune.search_spaces.types import Candidate, FloatArray, IntArray

State: TypeAlias = Literal["complete", "cut", "failed"]

FRONT_SHARES = (1.0, 0.85, 0.7, 0.55, 0.4)
"""Shares of the budget that a search for a front begins with, or sweeps; it looks for nothing below the last."""


class Reading(NamedTuple):
    """A candidate measured by the gauge of that name: its share of the dense latency, and the error of that."""

    candidate: Candidate
    gauge: str
    ratio: float
    se: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What became of one candidate.

    Attributes:
        number: place in the study, from 0.
        candidate: what was evaluated.
        state: ``complete``; ``cut``, stopped or skipped by a pruning; or ``failed``.
        score: higher is better; of a cut trial an upper bound of its score (None: no bound known), after a statistical
            pruning a likely one; None if failed.
        costs: by name: MACs, parameters, peak activation bytes and bytes of the weights; of latency and what else has
            to be measured the upper end of the interval, of the measurement if there was one, else of the prediction.
        share: the part of the budget that it was asked for, in (0, 1].
        message: why it was cut or failed, or another remark.
        seconds: how long the evaluation took.
        evaluated: share of the search samples that were run for it, in [0, 1]; below 1 where it was cut.
        pruning: by name, what cut it or saved its evaluation (docs/bounds.md lists them); None where nothing did.
        audit: of a pruning that is not proved, where the evaluation went on all the same: whether it was right.
        ruled_out: partial candidates that its agent has ruled out so far, by the name of the pruning.
        readings: what was measured for it: of its candidate, and of others on the way to that one.

    Raises:
        ValueError: state and score do not fit each other.
    """

    number: int
    candidate: Candidate
    state: State
    score: float | None
    costs: dict[str, float] = field(default_factory=dict)
    share: float = 1.0
    message: str | None = None
    seconds: float = 0.0
    evaluated: float = 1.0
    pruning: str | None = None
    audit: bool | None = None
    ruled_out: dict[str, int] = field(default_factory=dict)
    readings: tuple[Reading, ...] = ()

    def __post_init__(self) -> None:
        if self.state not in ("complete", "cut", "failed"):
            raise ValueError(f"A trial is complete, cut or failed, but trial {self.number} is {self.state!r}.")
        if self.score is not None and (self.state == "failed" or self.score != self.score):
            raise ValueError(f"Trial {self.number} is {self.state}, but has the score {self.score}.")
        if self.state == "complete" and self.score is None:
            raise ValueError(f"Trial {self.number} is complete, but has no score.")


def trial_rng(seed: int, number: int) -> np.random.Generator:
    """Return the generator of all that is random in trial `number` of a study: the same whenever it is asked for."""
    return np.random.default_rng(np.random.SeedSequence((seed, number)))


def check_count(agent: str, name: str, value: int, least: int = 1) -> None:
    """Refuse an option that is not an integer of `least` or more.

    Raises:
        UserError: it is not.
    """
    if not isinstance(value, int) or value < least:
        raise UserError(f"`{name}` of agent {agent!r} must be an integer of {least} or more, but got {value!r}.")


def ratios(space: Space, candidate: IntArray | Candidate) -> FloatArray:
    """Return the keep ratios [G] of a candidate."""
    units = space.level_units
    kept: FloatArray = units[np.arange(len(units)), np.asarray(candidate)] / units[:, -1]
    return kept


class Agent(ABC):
    """Proposes candidates and learns from their trials (ask and tell).

    The controller calls `ask` once per trial, evaluates, then calls `tell` once, also for a cut or failed trial. The
    state of an agent is a function of the trials told to it, in their order: a resumed study tells them again, to a
    new agent, and gets the proposals that the old one would have made. `ask` changes nothing that a later `ask` sees.

    Numbers need not begin at 0, be consecutive or (with several workers) rise: agents for several shares of a budget
    share one study, and each is asked and told its own trials only. What comes first is therefore decided by `rank`.

    With `costs`, the score is not all: the agent looks for the front of high scores and low costs. A wish then has one
    coordinate more than there are groups, for how much of the budget may be spent: from the last of `FRONT_SHARES` (0),
    or as much as the smallest subnet needs, to all of it (1). An agent that takes no `costs` serves a front by seats,
    one for each of those shares.

    Attributes:
        space: what may be pruned.
        budget: limits that every proposal keeps.
        seed: of the study; with the number of a trial it gives everything random in that trial (`trial_rng`).
        costs: to be minimised beside the score; none where only the best score within the budget counts.
        least_share: of the budget, down to which candidates are looked for with `costs`.
        num_wishes: coordinates D of a wish: one per group, and with `costs` the spent part of the budget.
        trials: what was told so far.
        pending: what other workers evaluate now and will be told later, None where that is not known yet: set before
            `ask`, so that several workers do not propose the same. It is no part of the state.
        place: which of its trials it is asked for, counted from 0; None for the next one. With several workers a number
            may be asked for after later ones were told.

    Raises:
        UserError: a negative seed, a budget that no subnet fits, or a cost that the space cannot tell.
    """

    def __init__(self, space: Space, budget: Budget, *, seed: int, costs: Sequence[str] = ()) -> None:
        if seed < 0:
            raise UserError(f"A seed must be 0 or more, but got {seed}.")
        limits = check_budget(space, budget)
        if isinstance(costs, str):
            raise UserError(f"The option `costs` of an agent takes a list of names, but got {costs!r}.")
        for cost in costs:
            if cost not in space.cost_names:
                raise unknown("cost of an agent:", cost, space.cost_names)
        self.space = space
        self.budget = budget
        self.seed = seed
        self.costs = tuple(costs)
        self.num_wishes = len(space.groups) + bool(costs)
        self.trials: list[Trial] = []
        self.pending: tuple[Candidate | None, ...] = ()
        self.place: int | None = None
        self._limits = limits
        needed = self._spent((0,) * len(space.groups)) * (1 + 1e-9)  # so that rounding leaves room for the smallest
        self.least_share = min(1.0, max(FRONT_SHARES[-1], needed))

    @property
    def rank(self) -> int:
        """How many trials of this agent come before the one it is asked for, by number."""
        return len(self.trials) + len(self.pending) if self.place is None else self.place

    @property
    def ruled_out(self) -> dict[str, int]:
        """How many partial candidates were ruled out before the latest proposal, by the name of the pruning."""
        return {}

    @abstractmethod
    def ask(self, number: int) -> Candidate:
        """Return a candidate within the budget for trial `number`."""

    def tell(self, trial: Trial) -> None:
        """Learn from a finished trial of a candidate that this agent proposed, or of the one that it was moved to."""
        self.trials.append(trial)

    def project(self, wishes: FloatArray) -> Candidate:
        """Return the candidate within the budget that is nearest to the wishes, coordinates in [0, 1], shape [D].

        The first G are keep ratios; the last, with `costs`, says how much of the budget may be spent.
        """
        if not self.costs:
            return self.space.project(wishes.tolist(), self.budget)
        share = self.least_share + (1 - self.least_share) * float(wishes[-1])
        return self.space.project(wishes[:-1].tolist(), self.budget.scaled(share))

    def executed(self, candidate: Candidate) -> FloatArray:
        """Return the wishes that a candidate fulfils: its keep ratios and, with `costs`, what it spends; shape [D]."""
        kept = ratios(self.space, candidate)
        if not self.costs:
            return kept
        spent = (self._spent(candidate) - self.least_share) / max(1 - self.least_share, 1e-9)
        return np.append(kept, np.clip(spent, 0, 1))

    def uniform(self, share: float = 1.0) -> Candidate:
        """Return the candidate with one keep ratio for all groups, the largest within the budget, and then filled."""
        return self.space.project([1.0] * len(self.space.groups), self.budget.scaled(share))

    def _spent(self, candidate: Candidate) -> float:
        """Return the share of the budget that a candidate needs: of several limits, of the tightest."""
        row = np.array([candidate], dtype=np.int64)
        return max(float(self.space.cost(cost, row)[0]) / limit for cost, limit in self._limits.items())
