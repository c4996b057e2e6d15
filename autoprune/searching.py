"""The trials of a study, from its configuration: who proposes, how candidates are scored, what cuts them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from autoprune.agents import make_agent, option_names
from autoprune.agents.base import FRONT_SHARES, Trial
from autoprune.controller import Controller, Seat
from autoprune.keeping import TRIALS, Keeper
from autoprune.progress import Progress
from autoprune.races import Races
from autoprune.search_spaces.types import Candidate
from autoprune.study import Study, objectives
from autoprune.tables import format_score
from autoprune.workbench import Workbench


def run_trials(study: Study, bench: Workbench, order: Sequence[int] | None, progress: Progress) -> list[Trial]:
    """Run the trials that the study still lacks; return all.

    Args:
        order: in which the samples of the search split are read; None where it cannot be chosen.
    """
    config, evaluator = bench.config, bench.evaluator
    races = Races(
        evaluator, order, study.path, seed=config.seed, error=config.error_rate, audit=config.audit, progress=progress
    )
    return Controller(
        study=study,
        space=bench.space,
        seats=make_seats(bench),
        budget=bench.budget,
        evaluate=evaluator.evaluate,
        evaluate_above=evaluator.evaluate_above if config.bounds == "exact" and evaluator.bounded else None,
        race=races if config.bounds == "statistical" else None,
        predict=_predictor(bench) if config.heuristic else None,
        keeper=_keeper(bench) if config.measure_trials == "on" else None,
        audit=config.audit,
        tolerance=config.tolerance,
        progress=progress,
        label=lambda score: format_score(study.config.score, score),
    ).run()


def make_seats(bench: Workbench) -> list[Seat]:
    """One agent for each share of the budget."""
    config = bench.config
    options = dict(config.agent_options)
    if bench.prior is not None and "table" in option_names(config.agent):
        options.setdefault("table", bench.prior)
    if config.aim == "front" and "costs" in option_names(config.agent):
        options.setdefault("costs", objectives(config.budget)[1:])
    return [
        Seat(make_agent(config.agent, bench.space, bench.budget.scaled(share), seed=config.seed, **options), share)
        for share in config.sweep
    ]


def default_sweep(agent: str, aim: str) -> Sequence[float]:
    """Shares of the budget for a search that was given none."""
    return FRONT_SHARES if aim == "front" and "costs" not in option_names(agent) else (1.0,)


def _keeper(bench: Workbench) -> Keeper:
    return Keeper(bench.space, bench.gauges, bench.prior, TRIALS * bench.config.latency_accuracy)


def _predictor(bench: Workbench) -> Callable[[Candidate], float] | None:
    """The loss of a candidate by the prior; None where it could not be measured."""
    table = bench.prior
    return None if table is None else lambda candidate: float(table.predict(np.array([candidate]))[0])
