"""What optuna-dashboard shows of a finished run beside its trials: a note on the study, a card on each front trial."""

from __future__ import annotations

import json
from collections.abc import Mapping

from autoprune.card import card, plain
from autoprune.finished import FOLDER, Finished
from autoprune.search_spaces.budget import format_cost
from autoprune.search_spaces.quantities import quantity_of
from autoprune.study import Study
from autoprune.tables import best_index, cost_name, front_table


def annotate(study: Study, finished: Finished, limits: Mapping[str, float]) -> None:
    """Replace the notes of an earlier front.

    Args:
        limits: upper limit by cost.
    """
    cards = {
        point.trial: card(index, finished, study.config, str(study.path / FOLDER / str(index)))
        for index, point in enumerate(finished.points)
    }
    study.annotate(study_note(study, finished, limits), cards)


def study_note(study: Study, finished: Finished, limits: Mapping[str, float]) -> str:
    """The budget and the front of a run, as Markdown."""
    config, best = study.config, best_index(finished.points)
    shown = {trial.number: place for place, trial in enumerate(study.trials)}
    table = front_table(finished.figures(), finished.points, score=config.score)
    groups = [name for name, span in table.groups for _ in range(span)]
    names = [", ".join(filter(None, heading)) for heading in zip(groups, table.columns, strict=True)]
    trials = [_trial(point.trial, shown[point.trial]) for point in finished.points]
    rows = [
        ["", "dense", *(f"point {name}" for name, *_ in table.rows[1:])],
        ["---"] * (len(table.rows) + 1),
        ["trial", "–", *trials],
        *([name, *(row[k] for row in table.rows)] for k, name in enumerate(names) if k),
    ]
    kept = ", ".join(
        f"{cost_name(cost)} {'≥' if quantity_of(cost).least else '≤'} {format_cost(cost, limit)}"
        for cost, limit in limits.items()
    )
    folder = study.path / FOLDER / str(best or 0)
    given = "" if config.model is not None else ", model=dense_model"
    return "\n".join(
        [
            f"# Front of {plain(study.path.resolve().name)}",
            "",
            plain(f"Budget: {', '.join(config.budget)} ({kept})."),
            plain(f"Chosen after {finished.num_trials} trials; agent {config.agent}, seed {config.seed}."),
            "No point keeps the budget as measured." if best is None else f"The best point is {best}.",
            "",
            *(f"| {' | '.join(map(plain, cells))} |" for cells in rows),
            "",
            plain(f"Point k is the folder {study.path / FOLDER}/k; {study.path}/report.html has charts of it all."),
            "",
            "Scores on the search split chose the trials, the front and the best point, so they flatter a little. "
            "Those on the test split chose nothing.",
            "",
            "```python",
            "import autoprune",
            "",
            f"model = autoprune.load({json.dumps(str(folder))}{given})",
            "```",
        ]
    )


def _trial(number: int, shown: int) -> str:
    """Several workers store trials in another order than that of their numbers; the dashboard counts them as stored."""
    return str(number) if number == shown else f"{number} (here {shown})"
