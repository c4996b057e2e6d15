"""`report.html`: one page that shows a whole run, offline, with nothing beside it.

Everything that a user can name (run, model, groups, messages) is escaped, and the page's policy forbids it to load
anything, so a report can be passed on.
"""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from autoprune.agents.base import Trial
from autoprune.files import atomic_write
from autoprune.front import FrontPoint
from autoprune.proxy_report import ProxyReport
from autoprune.prunings import describe_prunings
from autoprune.report.charts import front_figure, num_below, progress_figure, score_range
from autoprune.report.page import card, page, section
from autoprune.report.proxy import proxy_section
from autoprune.report.sections import (
    figures_section,
    footnotes,
    kept_caption,
    kept_section,
    models_section,
    outcomes_section,
    pairs_section,
)
from autoprune.search_spaces.budget import format_cost
from autoprune.search_spaces.quantities import is_measured, quantity_of
from autoprune.tables import (
    DenseFigures,
    best_index,
    cost_name,
    costs_of,
    final_score,
    format_ratio,
    format_score,
    front_table,
    measured_costs,
    point_name,
)


def write_report(
    path: Path,
    *,
    title: str,
    config: Mapping[str, Any],
    dense: DenseFigures,
    trials: Sequence[Trial],
    front: Sequence[FrontPoint],
    keep_ratios: Sequence[Mapping[str, float]],
    score: str = "accuracy",
    limits: Mapping[str, float] | None = None,
    environment: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
    proxies: ProxyReport | None = None,
) -> None:
    """Write the report, atomically.

    Args:
        path: usually ``runs/<name>/report.html``.
        title: of the page: the name of the run.
        config: settings to show; nested mappings become ``outer.inner``, None is left out. Its ``budget``, a list of
            limits as typed, also stands in the headline.
        dense: figures of the dense model.
        trials: all of them, in number order.
        front: finished points, in the order of their folders.
        keep_ratios: kept / dense by group name, for each point of `front`.
        score: name of the score that the search used.
        limits: the budget by cost name, absolute.
        environment: device and versions.
        notes: further lines for the footnotes.
        proxies: how well scores rank candidates, where that was measured.

    Raises:
        OSError: the disk is full or the folder may not be written.
    """
    assert len(keep_ratios) == len(front), "one dict of keep ratios for each point"
    limits = limits or {}
    y_range = score_range(dense=dense, trials=trials, points=front, score=score)
    costs = ["macs"]
    costs += dict.fromkeys(name for point in front for name in measured_costs(point))
    costs += [name for name in costs_of(trials) if is_measured(name) and name not in costs]
    figures = [
        front_figure(
            cost, dense=dense, trials=trials, points=front, score=score, limit=limits.get(cost), y_range=y_range
        )
        for cost in costs
    ]
    below = num_below(trials, score, y_range)
    hidden = f" {below} of {len(trials)} trials lie below the axis; double-click to see them." if below else ""
    prunings = html.escape("; ".join(describe_prunings(trials)))
    sections = [
        _headline(title, dense, front, score, config.get("budget", ()), limits, len(trials)),
        section("Front", "Numbers are the points of the table below." + hidden, figures_section(figures, "front")),
        section("Models", "", models_section(front_table(dense, front, score=score), best_index(front))),
        section("Kept per layer", kept_caption(front), kept_section(front, keep_ratios)),
        section(
            "Trials over time",
            hidden.strip(),
            figures_section([progress_figure(dense=dense, trials=trials, score=score, y_range=y_range)], "progress"),
        ),
        section("Can the scores be trusted?", "", "" if proxies is None else proxy_section(proxies)),
        section("What each trial became", prunings, outcomes_section(trials, score)),
        '<div class="columns">',
        section("Configuration", "", pairs_section(config)),
        section("Environment", "", pairs_section(environment or {})),
        "</div>",
        section("How to read the figures", "", footnotes(dense, front, score, notes)),
    ]
    atomic_write(path, page(title, sections))


def _headline(
    title: str,
    dense: DenseFigures,
    front: Sequence[FrontPoint],
    score: str,
    typed: Sequence[str],
    limits: Mapping[str, float],
    num_trials: int,
) -> str:
    budget = ", ".join(
        f"{cost_name(name)} {'≥' if quantity_of(name).least else '≤'} {format_cost(name, value)}"
        for name, value in limits.items()
    )
    facts = [f"budget: {', '.join(typed)}" + (f" ({budget})" if budget else "")] if typed else []
    facts.append(f"{num_trials} trials")
    index = best_index(front)
    if index is None:
        facts.append("no point within the budget yet")
        cards = ""
    else:
        facts.append(f"best point: {point_name(front[index], index)}")
        cards = "".join(_cards(dense, front[index], score))
    return (
        f'<header><p class="brand">autoprune</p><h1>{html.escape(title)}</h1>'
        f'<p class="facts">{html.escape(" · ".join(facts))}</p></header>\n<div class="cards">{cards}</div>'
    )


def _cards(dense: DenseFigures, point: FrontPoint, score: str) -> Iterator[str]:
    """The best point against the dense model, one big figure each."""
    dense_costs, latency, dense_latency = dense.get("costs", {}), point.latency, dense.get("latency")
    for name in ("macs", "params"):
        if name in point.costs:
            before = dense_costs.get(name)
            yield card(
                cost_name(name),
                None if before is None else format_cost(name, before),
                format_cost(name, point.costs[name]),
                format_ratio(point.costs[name], before),
            )
    if latency is not None:
        ratio = f"{latency.ratio:.2f}×" if latency.ratio is not None else ""
        threads = "1 thread" if latency.threads == 1 else f"{latency.threads} threads"
        how = f"measured, {latency.runtime}, batch {latency.batch}, {threads}"
        before_ms = None if dense_latency is None else format_cost("latency", dense_latency.ms)
        yield card("latency", before_ms, format_cost("latency", latency.ms), ", ".join(filter(None, [ratio, how])))
    tuned = ", fine-tuned" if point.finetuned is not None else ""
    tested = point.test_before if point.finetuned is None else point.test_after
    if tested is not None:
        test = dense.get("test")
        yield card(
            "accuracy",
            None if test is None else format_score("accuracy", test),
            format_score("accuracy", tested),
            f"test split{tuned}",
        )
    else:
        own = dense.get("score")
        found = format_score(score, final_score(point))
        yield card(score, None if own is None else format_score(score, own), found, f"{point.split} split{tuned}")
