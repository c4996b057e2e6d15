"""What saves evaluations, by name: what each pruning does, how often it did, and what audits say of the unproved ones.

A trial names in `pruning` what ended it, or saved its evaluation. Proved prunings cannot lose a point of the front.
Of the others a share, chosen by a coin that knows the trial's number only, is evaluated all the same (an audit), and
the share of these that were wrong is reported with its confidence interval.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from scipy.special import betaincinv

from autoprune.agents.base import Trial
from autoprune.search_spaces.types import Candidate

REASONS = {
    "alpha-beta": "exact bound: a trial that costs no more scores at least as well, whatever the remaining samples "
    "give.",
    "minimax": "exact bound: its worst slice scores no better than that of a trial that costs no more, whatever the "
    "remaining samples give.",
    "statistical": "statistical bound: a trial that costs no more very likely scores at least as well.",
    "heuristic": "skipped: its predicted loss is too far above that of a trial that costs no more.",
    "measured": "it exceeds its budget as measured, and so do its repairs.",
    "subproblem": "the same subnet was cut before.",
}
"""By pruning: the message of a trial that it cut; the same for all, so that they are counted together."""

AUDITED = ("statistical", "heuristic")
"""Prunings that are not proved."""

_COIN = 7
"""Tells the coin of an audit from other random numbers of the same trial."""


def is_audited(seed: int, number: int, share: float) -> bool:
    """Whether trial `number` is finished even if a pruning that is not proved would cut it: a function of both."""
    return bool(np.random.default_rng(np.random.SeedSequence((seed, number, _COIN))).random() < share)


def describe_prunings(trials: Sequence[Trial]) -> list[str]:
    """Lines for `show` and the report; empty where nothing was saved.

    ``41 of 100 trials cut; 23 % of the samples evaluated``, over the distinct subnets that did not fail;
    then how often each pruning was at work; then what the audits say, if there were any.
    """
    counts = Counter(trial.pruning for trial in trials if trial.pruning is not None and trial.audit is None)
    lines = []
    cut = sum(trial.state == "cut" for trial in trials)
    if cut:
        seen: dict[Candidate, float] = {}
        for trial in trials:
            if trial.state != "failed":
                seen[trial.candidate] = max(seen.get(trial.candidate, 0.0), trial.evaluated)
        share = sum(seen.values()) / len(seen)
        lines.append(f"{cut} of {len(trials)} trials cut; {100 * share:.0f} % of the samples evaluated")
    if counts:
        lines.append("by name: " + ", ".join(f"{name} {count}" for name, count in counts.most_common()))
    lines += [line for name in AUDITED if (line := _describe_audits(name, trials)) is not None]
    lines += _describe_ruled_out(trials)
    return lines


def _describe_audits(name: str, trials: Sequence[Trial]) -> str | None:
    """``statistical: 4 audited, 0 of them wrongly cut (0 to 60 % at 95 % confidence)``."""
    cut = [trial for trial in trials if trial.pruning == name]
    if not cut:
        return None
    audits = [trial.audit for trial in cut if trial.audit is not None]
    if not audits:
        return f"{name}: none of {len(cut)} cuts was audited yet"
    false = audits.count(False)
    low, high = rate_interval(false, len(audits))
    return (
        f"{name}: {len(audits)} of {len(cut)} cuts audited, {false} of them wrong "
        f"({100 * low:.0f} to {100 * high:.0f} % at 95 % confidence)"
    )


def _describe_ruled_out(trials: Sequence[Trial]) -> list[str]:
    """``constraint: 1,204 prefixes ruled out before any evaluation``: the latest count of each share of the budget."""
    latest = {trial.share: trial.ruled_out for trial in trials}
    counts: Counter[str] = Counter()
    for ruled_out in latest.values():
        counts.update(ruled_out)
    return [f"{name}: {count:,} partial candidates ruled out" for name, count in counts.items() if count]


def rate_interval(events: int, of: int, confidence: float = 0.95) -> tuple[float, float]:
    """Two-sided Clopper-Pearson interval of a rate; exact, so it may be wider than needed, never narrower."""
    tail = (1 - confidence) / 2
    low = 0.0 if events == 0 else float(betaincinv(events, of - events + 1, tail))
    high = 1.0 if events == of else float(betaincinv(events + 1, of - events, 1 - tail))
    return low, high
