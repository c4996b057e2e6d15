"""What an agent is: proposes candidates, learns from their trials, and is rebuilt by telling the trials again."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np

from autoprune.search_spaces.budget import Budget
from autoprune.search_spaces.errors import UserError
from autoprune.search_spaces.projection import Space, check_budget
from autoprune.search_spaces.types import Candidate, FloatArray

State: TypeAlias = Literal["complete", "cut", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What became of one candidate.

    Attributes:
        number: place in the study, from 0.
        candidate: what was evaluated.
        state: ``complete``; ``cut``, stopped or skipped by a pruning; or ``failed``.
        score: higher is better; of a cut trial an upper bound of its score (None: no bound known), after a statistical
            pruning a likely one; None if failed.
        costs: by name: MACs, parameters, peak activation bytes, and predicted milliseconds where there is a table.
        share: the part of the budget that it was asked for, in (0, 1].
        message: why it was cut or failed, or another remark.
        seconds: how long the evaluation took.
        evaluated: share of the search samples that were run for it, in [0, 1]; below 1 where it was cut.
        pruning: by name, what cut it or saved its evaluation (docs/bounds.md lists them); None where nothing did.
        audit: of a pruning that is not proved, where the evaluation went on all the same: whether it was right.
        ruled_out: partial candidates that its agent has ruled out so far, by the name of the pruning.

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


class Agent(ABC):
    """Proposes candidates and learns from their trials (ask and tell).

    The controller calls `ask` once per trial, evaluates, then calls `tell` once, also for a cut or failed trial. The
    state of an agent is a function of the trials told to it, in their order: a resumed study tells them again, to a
    new agent, and gets the proposals that the old one would have made. `ask` changes nothing that a later `ask` sees.

    Numbers rise, but need not begin at 0 or be consecutive: agents for several shares of a budget share one study,
    and each is asked and told its own trials only. What comes first is therefore decided by `trials`.

    Attributes:
        space: what may be pruned.
        budget: limits that every proposal keeps.
        seed: of the study; with the number of a trial it gives everything random in that trial (`trial_rng`).
        trials: what was told so far.

    Raises:
        UserError: a negative seed, a budget that no subnet fits, or a limit on a cost that the space cannot tell.
    """

    def __init__(self, space: Space, budget: Budget, *, seed: int) -> None:
        if seed < 0:
            raise UserError(f"A seed must be 0 or more, but got {seed}.")
        check_budget(space, budget)
        self.space = space
        self.budget = budget
        self.seed = seed
        self.trials: list[Trial] = []

    @property
    def ruled_out(self) -> dict[str, int]:
        """How many partial candidates were ruled out before the latest proposal, by the name of the pruning."""
        return {}

    @abstractmethod
    def ask(self, number: int) -> Candidate:
        """Return a candidate within the budget for trial `number`."""

    def tell(self, trial: Trial) -> None:
        """Learn from a finished trial of a candidate that this agent proposed."""
        self.trials.append(trial)

    def project(self, wishes: FloatArray) -> Candidate:
        """Return the candidate within the budget that is nearest to the wishes, keep ratios in [0, 1], shape [G]."""
        return self.space.project(wishes.tolist(), self.budget)

    def uniform(self) -> Candidate:
        """Return the candidate with one keep ratio for all groups, the largest within the budget, and then filled."""
        return self.project(np.ones(len(self.space.groups)))
