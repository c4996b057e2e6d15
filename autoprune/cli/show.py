"""`autoprune show`: a run as tables, or as JSON. Reads what is stored and computes nothing."""

from __future__ import annotations

import json
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from autoprune.agents.base import Trial
from autoprune.finished import Finished
from autoprune.front import front
from autoprune.importance import describe_importance
from autoprune.proxy_report import read_report
from autoprune.prunings import describe_prunings
from autoprune.search_spaces.budget import format_cost
from autoprune.study import Study, objectives
from autoprune.tables import Table as Figures
from autoprune.tables import best_index, cost_name, costs_of, format_score, front_table
from autoprune.terminal import PlainConsole

SHOWN = 10
"""Rows of the front of a run that is not finished."""


def print_run(run: Path, *, every_trial: bool = False) -> None:
    """Print the front, the budget, and what became of the trials."""
    study = Study.read(run)
    finished = Finished.read(run)
    console = stdout()
    config = study.config
    say(console, f"{run}: {config.model or 'module from Python'} on {config.data or 'data from Python'}")
    say(console, f"Budget: {', '.join(config.budget)}. Agent {config.agent}, seed {config.seed}.")
    say(console, f"Units ranked by {describe_importance(config.importance, config.importance_samples)}.")
    say(console, f"Recovery of trials: {config.describe_recovery()}.")
    say(console, f"Trials: {outcome(study)}.")
    for line in describe_prunings(study.trials):
        say(console, f"Pruned: {line}.")
    for reason, count in reasons(study.trials):
        say(console, f"  {count} × {reason}")
    _, proxies = read_report(run, config.fingerprints)
    if proxies:
        say(console, f"Proxies: {proxies}")
    if every_trial:
        console.print(trial_table(study.trials, config.score))
    if finished is None:
        unfinished(console, study)
        return
    console.print(front_columns(front_table(finished.figures(), finished.points, score=config.score)))
    best = best_index(finished.points)
    for index, point in enumerate(finished.points):
        mark = " (best within the budget)" if index == best else ""
        say(console, f"Point {index}: {point.path}, trial {point.trial}{mark}")
    first = {} if finished.dense.latency is None else {"": finished.dense.latency}
    for name, latency in (finished.dense.latencies or first).items():
        say(console, f"Latency, dense: {f'{name}: ' if name else ''}{latency}, {latency.device}.")
    say(console, f"Report: {run / 'report.html'}")
    if finished.num_trials != len(study.trials) or len(study.trials) < config.trials:
        say(console, f"There are newer trials or trials to come. Go on with: autoprune resume {run}")


def print_json(run: Path) -> None:
    """Print everything that `print_run` shows, and every trial, as one JSON object."""
    study = Study.read(run)
    finished = Finished.read(run)
    content: dict[str, Any] = {
        "run": str(run),
        "config": asdict(study.config),
        "trials": [asdict(trial) for trial in study.trials],
        "dense": None if finished is None else finished.dense.to_dict(),
        "front": None if finished is None else [point.to_dict() for point in finished.points],
        "best": None if finished is None else best_index(finished.points),
        "report": None if finished is None else str(run / "report.html"),
    }
    typer.echo(json.dumps(content, indent=2))


def front_columns(table: Figures) -> Table:
    """The table of the report with its columns as rows, which fits a terminal: one column for each network."""
    names = [row[0] for row in table.rows]
    shown = Table("", "", *(name if name == "dense" else f"point {name}" for name in names))
    groups = [name for name, span in table.groups for _ in range(span)]
    cells = list(zip(*table.rows, strict=True))
    for index in range(1, len(table.columns)):
        group = groups[index] if groups[index] != groups[index - 1] else ""
        last = index + 1 == len(groups) or groups[index + 1] != groups[index]
        shown.add_row(group, table.columns[index], *cells[index], end_section=last)
    return shown


def unfinished(console: Console, study: Study) -> None:
    """The front of the trials so far."""
    costs = objectives(study.config.budget)[1:]
    found = front(study.trials, costs)
    if found:
        say(console, f"Front of the trials so far ({len(found)} trials, none of them finished yet):")
        console.print(trial_table(found[:SHOWN], study.config.score))
    say(console, f"Go on with: autoprune resume {study.path}")


def trial_table(trials: list[Trial], score: str) -> Table:
    """One row per trial."""
    names = costs_of(trials)
    table = Table("trial", "became", f"{score}, search split", *map(cost_name, names), "share", "remark")
    for trial in trials:
        table.add_row(
            str(trial.number),
            trial.state if trial.pruning is None else f"{trial.state} ({trial.pruning})",
            ("≤ " if trial.state == "cut" and trial.score is not None else "") + format_score(score, trial.score),
            *(format_cost(name, trial.costs[name]) if name in trial.costs else "–" for name in names),
            f"{trial.share:g}",
            trial.message or "",
        )
    return table


def outcome(study: Study) -> str:
    """``57 of 60: 50 complete (3 of them repeated), 2 failed``."""
    states = Counter(trial.state for trial in study.trials)
    counts = ", ".join(f"{count} {state}" for state, count in states.items())
    repeated = sum(trial.state == "complete" and trial.pruning == "subproblem" for trial in study.trials)
    again = f", {repeated} of them a subnet seen before" if repeated else ""
    return f"{len(study.trials)} of {study.config.trials}" + (f": {counts}{again}" if counts else "")


def reasons(trials: list[Trial]) -> list[tuple[str, int]]:
    """Why trials were cut or failed, the commonest first."""
    kinds = Counter(f"{t.state}: {t.message}" for t in trials if t.state != "complete")
    return kinds.most_common()


def stdout() -> Console:
    """A console for results: as wide as needed where nobody watches."""
    return PlainConsole(highlight=False) if sys.stdout.isatty() else PlainConsole(highlight=False, width=200)


def say(console: Console, text: str) -> None:
    """Print a line as it is."""
    console.print(text, soft_wrap=True)
