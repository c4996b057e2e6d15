"""A trial as Optuna keeps and shows it: parameters, values, constraints, and the whole of it in one attribute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta

import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState

from autoprune.agents.base import Reading, Trial

ROUNDING = 1e-9
"""A cost may exceed its limit by this share of it."""

_STATES = {"complete": TrialState.COMPLETE, "cut": TrialState.PRUNED, "failed": TrialState.FAIL}
_TRIAL = "trial"
"""Name of the attribute that holds a trial, as a table of these."""
_ATTRIBUTES = (
    "number",
    "candidate",
    "state",
    "score",
    "costs",
    "share",
    "message",
    "seconds",
    "evaluated",
    "pruning",
    "audit",
    "ruled_out",
    "readings",
)


def to_optuna(
    trial: Trial, keep_ratios: Mapping[str, float], costs: Sequence[str], limits: Mapping[str, float]
) -> FrozenTrial:
    """The finished trial as Optuna stores it.

    Args:
        keep_ratios: kept / dense per group, the parameters.
        costs: those that are objectives beside the score.
        limits: upper limit by cost, the constraints.
    """
    distributions: dict[str, BaseDistribution] = {name: FloatDistribution(0.0, 1.0) for name in keep_ratios}
    values = None
    if trial.state == "complete":
        assert trial.score is not None
        values = [trial.score, *(trial.costs[name] for name in costs)]
    exceeded = {name: _excess(trial.costs[name], limit) for name, limit in limits.items() if name in trial.costs}
    frozen = optuna.trial.create_trial(
        state=_STATES[trial.state],
        values=values,
        params=dict(keep_ratios),
        distributions=distributions,
        # Few attributes, since Optuna looks every single one up before it writes it. The trial is one of the system's,
        # because the dashboard shows those of the user on one line each, however long; they hold what people look for.
        # Constraints are kept by name for Optuna 5, and as the list that optuna-dashboard 0.21 and Optuna 4 read.
        user_attrs={} if trial.message is None else {"message": trial.message},
        system_attrs={
            _TRIAL: {name: getattr(trial, name) for name in _ATTRIBUTES},
            **({"constraints": list(exceeded.values())} if exceeded else {}),
        },
        constraints=exceeded,
    )
    if frozen.datetime_complete is not None:
        frozen.datetime_start = frozen.datetime_complete - timedelta(seconds=trial.seconds)
    return frozen


def _excess(cost: float, limit: float) -> float:
    """By which share a cost exceeds its limit; 0 or less where it keeps it."""
    excess = cost / limit - 1
    return 0.0 if 0 < excess <= ROUNDING else excess


def from_optuna(frozen: FrozenTrial) -> Trial:
    """Undo `to_optuna`.

    Raises:
        AttributeError, KeyError, TypeError, ValueError: it holds something else.
    """
    # Older studies keep it among the user's attributes, or an attribute for each, and do not say: the number, when it
    # was Optuna's; the share evaluated, before trials could be cut; the pruning, before it had a name; and what was
    # measured, before trials were.
    attributes = frozen.system_attrs.get(_TRIAL) or frozen.user_attrs.get(_TRIAL, frozen.user_attrs)
    pruning = "alpha-beta" if attributes["state"] == "cut" else None
    if (attributes["message"] or "").startswith("same subnet"):
        pruning = "subproblem"
    older: dict[str, object] = {"evaluated": 1.0, "pruning": pruning, "audit": None, "ruled_out": {}, "readings": ()}
    attributes = {"number": frozen.number, **older, **attributes}
    values = {name: attributes[name] for name in _ATTRIBUTES}
    values["candidate"] = tuple(values["candidate"])
    values["readings"] = tuple(
        Reading(tuple(candidate), gauge, ratio, se) for candidate, gauge, ratio, se in values["readings"]
    )
    return Trial(**values)
