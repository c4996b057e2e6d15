"""Skip a candidate whose predicted loss is far above the incumbent's: not proved, audited, adapted by its audits.

A candidate is skipped where its predicted loss exceeds `slack` times that of the incumbent, the trial that sets its
alpha. Some of those to be skipped are evaluated all the same (`prunings.is_audited`); each such audit moves the slack:

    log slack  <-  max(0, log slack + STEP * (wrong - RATE)),    wrong = 1 if it beats its incumbent, else 0.

What is known: as long as the slack stays above 1, the share of wrong audits is RATE + (log slack now - log slack at
first) / (STEP * audits), whatever the predictions are worth. So it tends to RATE, or nothing is skipped any more. This
is adaptive conformal inference, with audits in the place of a time series. It says nothing of the single candidate.

Source: Gibbs & Candès 2021, "Adaptive conformal inference under distribution shift", arXiv:2106.00170, prop. 4.1.
Differs: the threshold moves on a logarithmic scale, and a prediction better than the incumbent's is never skipped.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from autoprune.agents.base import Trial
from autoprune.search_spaces.types import Candidate

RATE = 0.05
"""Share of wrong audits at which the slack stays where it is."""

STEP = math.log(2)
"""How far an audit moves the logarithm of the slack."""


@dataclass(slots=True)
class Heuristic:
    """The state is a function of the trials learnt so far.

    Attributes:
        predict: candidate -> its loss as far as can be told without evaluation, 0 or more, lower is better.
        slack: how many times the incumbent's predicted loss is too much.
    """

    predict: Callable[[Candidate], float]
    slack: float = 2.0

    def learn(self, trial: Trial) -> None:
        """Take in a trial; only audits of this pruning count."""
        if trial.pruning == "heuristic" and trial.audit is not None:
            self.slack = max(1.0, self.slack * math.exp(STEP * ((not trial.audit) - RATE)))

    def skips(self, candidate: Candidate, incumbent: Trial) -> bool:
        """Whether the candidate is not worth an evaluation."""
        return self.predict(candidate) > self.slack * self.predict(incumbent.candidate)
