"""The sections of the report below its headline, as HTML; every text from outside is escaped."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from autoprune.agents.base import Trial
from autoprune.front import FrontPoint
from autoprune.redaction import redact
from autoprune.search_spaces.budget import format_cost
from autoprune.search_spaces.quantities import is_measured
from autoprune.tables import (
    DenseFigures,
    Table,
    best_index,
    cost_name,
    costs_of,
    format_recipe,
    format_score,
    point_name,
)

MAX_SHOWN_POINTS = 6
"""Points whose kept ratios stand side by side."""


def figures_section(figures: Sequence[go.Figure], name: str) -> str:
    """Interactive figures side by side; `name` starts their element ids."""
    config = {"displayModeBar": False, "responsive": True}
    parts = [
        figure.to_html(full_html=False, include_plotlyjs=False, config=config, div_id=f"{name}-{index}")
        for index, figure in enumerate(figures)
    ]
    # The number of columns is said beforehand: a figure takes the width that is there when it is drawn.
    body = "\n".join(f'<div class="figure">{part}</div>' for part in parts)
    return f'<div class="figures{" two" if len(parts) == 2 else ""}">{body}</div>'


def models_section(table: Table, best: int | None) -> str:
    """The table of dense model and points; row `best` (a place in the front) stands out."""
    groups = "".join(f'<th colspan="{span}">{html.escape(group)}</th>' for group, span in table.groups)
    columns = "".join(f"<th>{html.escape(column)}</th>" for column in table.columns)
    rows = []
    for number, (name, *cells) in enumerate(table.rows):
        kind = ' class="best"' if best is not None and number == best + 1 else ""
        text = "".join(f"<td>{_two_lines(cell)}</td>" for cell in cells)
        rows.append(f'<tr{kind}><th scope="row">{html.escape(name)}</th>{text}</tr>')
    return (
        f'<div class="scroll"><table class="figures-table"><thead><tr class="groups">{groups}</tr><tr>{columns}</tr>'
        f"</thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _two_lines(cell: str) -> str:
    first, _, second = cell.partition("\n")
    if first.startswith("misses"):
        return f'<span class="failed">{html.escape(first)}</span>'
    return html.escape(first) + (f"<br><small>{html.escape(second)}</small>" if second else "")


def kept_caption(front: Sequence[FrontPoint]) -> str:
    """What the bars mean, and how many points are left out."""
    shown = f" {MAX_SHOWN_POINTS} of {len(front)} points." if len(front) > MAX_SHOWN_POINTS else ""
    return f"Units kept, as a share of the dense model's; groups in the order in which they run.{shown}"


def kept_section(front: Sequence[FrontPoint], keep_ratios: Sequence[Mapping[str, float]]) -> str:
    """Kept units of each group as bars, points side by side."""
    if not front:
        return ""
    count = min(len(front), MAX_SHOWN_POINTS)
    chosen = np.linspace(0, len(front) - 1, count).round().astype(int).tolist()
    heads = "".join(f"<th>point {html.escape(point_name(front[i], i))}</th>" for i in chosen)
    rows = []
    for group in keep_ratios[0]:
        bars = "".join(_bar(keep_ratios[i][group]) for i in chosen)
        rows.append(f'<tr><th scope="row">{html.escape(group)}</th>{bars}</tr>')
    return (
        f'<div class="scroll tall"><table class="kept"><thead><tr><th>group</th>{heads}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _bar(ratio: float) -> str:
    return f'<td><div class="bar" style="--kept:{100 * ratio:.1f}%"><span>{100 * ratio:.0f} %</span></div></td>'


def outcomes_section(trials: Sequence[Trial], score: str) -> str:
    """How many trials ended how, why some did not complete, and all of them on demand."""
    if not trials:
        return ""
    seen: set[tuple[int, ...]] = set()
    outcomes = []
    for trial in trials:
        again = trial.state == "complete" and trial.candidate in seen
        outcomes.append("same subnet again" if again else trial.state)
        if trial.state == "complete":
            seen.add(trial.candidate)
    counts = Counter(outcomes)
    chips = "".join(f'<li class="{name.split()[0]}"><b>{n}</b> {name}</li>' for name, n in counts.most_common())
    reasons = Counter((t.state, t.message) for t in trials if t.state != "complete" and t.message)
    listed = "".join(
        f'<li class="{state}">{n} {state}: {html.escape(redact(text))}</li>'
        for (state, text), n in reasons.most_common(8)
    )
    costs = costs_of(trials)
    heads = "".join(f"<th>{html.escape(cost_name(name))}</th>" for name in costs)
    rows = "".join(_trial_row(t, outcome, costs, score) for t, outcome in zip(trials, outcomes, strict=True))
    return (
        f'<ul class="chips">{chips}</ul>'
        + (f'<ul class="reasons">{listed}</ul>' if listed else "")
        + f"<details><summary>All {len(trials)} trials</summary>"
        '<div class="scroll tall"><table class="figures-table"><thead><tr><th>trial</th><th>became</th>'
        f"<th>{html.escape(score)}, search split</th>{heads}<th>budget share</th><th>seconds</th><th>remark</th></tr>"
        f"</thead><tbody>{rows}</tbody></table></div></details>"
    )


def _trial_row(trial: Trial, outcome: str, costs: Sequence[str], score: str) -> str:
    cells = [
        outcome if trial.pruning in (None, "subproblem") else f"{outcome} ({trial.pruning})",
        ("≤ " if trial.state == "cut" and trial.score is not None else "") + format_score(score, trial.score),
        *(format_cost(name, trial.costs[name]) if name in trial.costs else "–" for name in costs),
        f"{trial.share:g}",
        f"{trial.seconds:.2f}",
    ]
    text = "".join(f"<td>{html.escape(cell)}</td>" for cell in cells)
    message = html.escape(redact(trial.message or ""))
    return f'<tr><th scope="row">{trial.number}</th>{text}<td class="text">{message}</td></tr>'


def pairs_section(values: Mapping[str, Any]) -> str:
    """Settings as a table of names and values."""
    rows = "".join(
        f'<tr><th scope="row">{html.escape(name)}</th><td>{html.escape(redact(text))}</td></tr>'
        for name, text in _flat(values)
    )
    return f'<table class="pairs"><tbody>{rows}</tbody></table>' if rows else ""


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif isinstance(value, list | tuple | set):
            if value:
                yield f"{prefix}{key}", ", ".join(map(str, value))
        elif value is not None:
            yield f"{prefix}{key}", str(value)


def footnotes(
    dense: DenseFigures,
    front: Sequence[FrontPoint],
    score: str,
    notes: Sequence[str],
) -> str:
    """The conventions behind the figures, and how they came about."""
    lines = [
        "1 MAC = 1 multiply-add = 2 FLOPs. Peak memory is that of the activations. × is the share of the dense "
        "model's value.",
        "The search split is carved out of the training data; every trial and every choice was made on it. The test "
        "split was used for the final figures only.",
    ]
    if best_index(front) is not None:
        lines.append("The best point is the one within the budget with the best score on the search split.")
    latency = next((p.latency for p in front if p.latency is not None), dense.get("latency"))
    if latency is not None:
        threads = "1 thread" if latency.threads == 1 else f"{latency.threads} threads"
        lines.append(
            f"Latency: median ± half its 95 % confidence interval, {latency.repeats} repeats after {latency.warmup} "
            f"for warm-up, {latency.clock_name}, batch {latency.batch}, {threads}, {latency.runtime} "
            f"{latency.precision} on {latency.device}; all models run in turn, × is the median ratio to the dense "
            "model in the same round."
        )
    if any(is_measured(cost) for point in front for cost in point.costs):
        lines.append(
            "Predicted are upper ends of intervals of a model that learnt from measured subnets, measured the networks "
            "themselves. Points are held against the upper ends of what was measured; absolute limits in the "
            "milliseconds of the beginning, or of the end where those are longer."
        )
    for recipe in dict.fromkeys(_explained(point.recipe) for point in front if point.recipe):
        lines.append(
            f"Fine-tuned with {recipe}. The best epoch was chosen on the search split, so the score there flatters; "
            "the one on the test split does not."
        )
    if score == "kl":
        lines.append("kl: minus the mean divergence of the pruned model's outputs from the dense model's; 0 is best.")
    items = "".join(f"<li>{html.escape(redact(line))}</li>" for line in [*lines, *notes])
    return f"<ul class='notes'>{items}</ul>"


def _explained(recipe: Mapping[str, Any]) -> str:
    """``5 epochs, KD`` with the weights of the two parts of the loss."""
    if not recipe["kd_weight"]:
        return format_recipe(recipe)
    return (
        f"{format_recipe(recipe)} (the dense model's weight {recipe['kd_weight']}, temperature {recipe['temperature']})"
    )
