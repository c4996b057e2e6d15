"""The figures of the report: the front, and the trials over time.

Colours of text and grid come from the page's style sheet, so that the figures follow the light or dark scheme. All
text that a user can choose is escaped: Plotly reads a little HTML in labels.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from autoprune.agents.base import Trial
from autoprune.front import FrontPoint, Measured, front
from autoprune.redaction import redact
from autoprune.search_spaces.budget import format_cost
from autoprune.search_spaces.quantities import WORST
from autoprune.tables import (
    DenseFigures,
    cost_name,
    format_measured,
    format_score,
    is_share,
    measured_costs,
    point_name,
    untrained_score,
)

TRIAL, FRONT, TUNED, DENSE, FAILED = "#94a3b8", "#3b82f6", "#d9701c", "#0d9f8c", "#e5484d"
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif"
_HEIGHT = 420
_SIZE = 17

# The unit of an axis: cost without its device -> (label, factor from the cost's own unit).
_AXES = {
    "macs": ("MACs (millions)", 1e-6),
    "params": ("parameters (millions)", 1e-6),
    "memory": ("peak memory (MB)", 1e-6),
    "size": ("size (MB)", 1e-6),
    "latency": ("latency (ms)", 1.0),
    "throughput": ("time per sample (ms)", 1.0),
    "energy": ("energy (mJ)", 1.0),
}


def front_figure(
    cost: str,
    *,
    dense: DenseFigures,
    trials: Sequence[Trial],
    points: Sequence[FrontPoint],
    score: str,
    limit: float | None,
    y_range: tuple[float, float],
) -> go.Figure:
    """Score against one cost: every complete trial, the best score at each cost, the points before and after.

    Args:
        cost: ``macs`` or ``latency``; latencies of points and the dense model are the measured ones where there are.
        score: name of the score, for its unit.
        limit: of the budget on this cost; None for none.
        y_range: of `score_range`.
    """
    label, factor = _AXES[cost.partition("@")[0]]
    if cost == f"latency@{WORST}":
        label = "latency on the worst device (share of dense)"
    elif "@" in cost:
        label = label.replace(" (", f" on {cost.partition('@')[2]} (")
    complete = [t for t in _complete(trials) if cost in t.costs]
    figure = go.Figure()
    if complete:
        figure.add_scatter(
            name="trials",
            x=[t.costs[cost] * factor for t in complete],
            y=[_value(score, t.score) for t in complete],
            hovertext=[_hover(t, score) for t in complete],
            mode="markers",
            marker={"color": TRIAL, "size": 6, "opacity": 0.55},
        )
        stairs = sorted(front(complete, [cost]), key=lambda t: t.costs[cost])
        right = max(t.costs[cost] for t in complete)
        figure.add_scatter(
            name="best at this cost",
            x=[*(t.costs[cost] * factor for t in stairs), right * factor],
            y=[_value(score, t.score) for t in (*stairs, stairs[-1])],
            mode="lines",
            line={"color": FRONT, "width": 1.5, "shape": "hv"},
            hoverinfo="skip",
        )
    _add_points(figure, cost, factor, points, score)
    x = _dense_cost(cost, dense)
    if x is not None and dense.get("score") is not None:
        figure.add_scatter(
            name="dense",
            x=[x * factor],
            y=[_value(score, dense["score"])],
            hovertext=[f"dense<br>{format_cost(cost, x)}<br>{format_score(score, dense['score'])}"],
            mode="markers",
            marker={"color": DENSE, "size": 12, "symbol": "diamond"},
        )
    if limit is not None:
        figure.add_vline(
            x=limit * factor,
            line={"color": TRIAL, "width": 1, "dash": "dash"},
            annotation={"text": f"budget {format_cost(cost, limit)}", "textangle": -90, "yanchor": "bottom", "y": 0.02},
            annotation_position="bottom right",
        )
    if any(cost in measured_costs(point) for point in points):
        label += ": trials at upper ends, points measured" if complete else ", measured"
    return layout(figure, label, score, y_range, from_zero=True)


def progress_figure(
    *, dense: DenseFigures, trials: Sequence[Trial], score: str, y_range: tuple[float, float]
) -> go.Figure:
    """Score of each trial in order, the best so far, and at the lower edge those that were cut or failed."""
    complete = _complete(trials)
    figure = go.Figure()
    low, high = y_range
    figure.add_scatter(
        name="trials",
        x=[t.number for t in complete],
        y=[_value(score, t.score) for t in complete],
        hovertext=[_hover(t, score) for t in complete],
        mode="markers",
        marker={"color": TRIAL, "size": 6, "opacity": 0.8},
    )
    if complete:
        best = np.maximum.accumulate([_value(score, t.score) for t in complete]).tolist()
        figure.add_scatter(
            name="best so far",
            x=[*(t.number for t in complete), trials[-1].number],
            y=[*best, best[-1]],
            mode="lines",
            line={"color": FRONT, "width": 2, "shape": "hv"},
            hoverinfo="skip",
        )
    if dense.get("score") is not None and trials:
        figure.add_scatter(
            name="dense",
            x=[trials[0].number, trials[-1].number],
            y=[_value(score, dense["score"])] * 2,
            mode="lines",
            line={"color": DENSE, "width": 1, "dash": "dash"},
            hoverinfo="skip",
        )
    for state, name, colour, symbol in (("cut", "cut", TRIAL, "line-ns-open"), ("failed", "failed", FAILED, "x")):
        ended = [t for t in trials if t.state == state]
        if ended:
            figure.add_scatter(
                name=name,
                x=[t.number for t in ended],
                y=[low + 0.03 * (high - low)] * len(ended),
                hovertext=[_hover(t, score) for t in ended],
                mode="markers",
                marker={"color": colour, "size": 8, "symbol": symbol},
            )
    return layout(figure, "trial", score, y_range)


def score_range(
    *, dense: DenseFigures, trials: Sequence[Trial], points: Sequence[FrontPoint], score: str
) -> tuple[float, float]:
    """Part of the score axis to show: a few hopeless trials far below would flatten all the others."""
    trial_scores = [_value(score, trial.score) for trial in _complete(trials)]
    shown = [_value(score, v) for p in points for v in (untrained_score(p), p.finetuned) if v is not None]
    if dense.get("score") is not None:
        shown.append(_value(score, dense["score"]))
    if not trial_scores and not shown:
        return 0.0, 1.0
    high = max(trial_scores + shown)
    lows = shown
    if trial_scores:
        lows = [*shown, max(min(trial_scores), high - 2 * (high - float(np.median(trial_scores))))]
    margin = 0.08 * (high - min(lows)) or 0.5
    return min(lows) - margin, high + margin


def num_below(trials: Sequence[Trial], score: str, y_range: tuple[float, float]) -> int:
    """How many complete trials lie below the shown part of the axis."""
    return sum(_value(score, trial.score) < y_range[0] for trial in _complete(trials))


def _complete(trials: Sequence[Trial]) -> list[Trial]:
    return [trial for trial in trials if trial.state == "complete"]


def _add_points(figure: go.Figure, cost: str, factor: float, points: Sequence[FrontPoint], score: str) -> None:
    placed = [(i, p, x) for i, p in enumerate(points) if (x := _point_cost(cost, p)) is not None]
    if not placed:
        return
    names = [html.escape(point_name(p, i)) for i, p, _ in placed]
    xs = [x * factor for _, _, x in placed]
    tuned = [None if p.finetuned is None else _value(score, p.finetuned) for _, p, _ in placed]
    before = [_value(score, untrained_score(p)) for _, p, _ in placed]
    spread = [
        (m.high - m.low) / 2 * factor for m in (measured_costs(p).get(cost, Measured(0, 0, 0)) for _, p, _ in placed)
    ]
    if any(y is not None for y in tuned):
        lines = [(x, a, b) for x, a, b in zip(xs, before, tuned, strict=True) if b is not None]
        figure.add_scatter(
            x=[place for x, _, _ in lines for place in (x, x, None)],
            y=[value for _, a, b in lines for value in (a, b, None)],
            mode="lines",
            line={"color": TUNED, "width": 1, "dash": "dot"},
            hoverinfo="skip",
            showlegend=False,
        )
    # The number stands in the marker of the finished model: fine-tuned where it was, else as pruned or repaired.
    untrained = "pruned" if all(p.repaired is None for p in points) else "repaired"
    figure.add_scatter(
        name=untrained,
        x=xs,
        y=before,
        text=[name if after is None else "" for name, after in zip(names, tuned, strict=True)],
        hovertext=[
            _point_hover(n, cost, p, untrained_score(p), score, untrained)
            for n, (_, p, _) in zip(names, placed, strict=True)
        ],
        mode="markers+text",
        textfont={"color": "white", "size": 11},
        marker={
            "color": FRONT,
            "size": [_SIZE if after is None else _SIZE / 2 for after in tuned],
            "opacity": 1,  # Plotly fades and rims markers of several sizes unless told
            "line": {"width": 0},
        },
        error_x={"array": spread, "color": FRONT, "thickness": 1, "width": 3} if any(spread) else None,
    )
    if any(y is not None for y in tuned):
        figure.add_scatter(
            name="fine-tuned",
            x=xs,
            y=tuned,
            text=names,
            hovertext=[
                _point_hover(n, cost, p, p.finetuned, score, "fine-tuned")
                for n, (_, p, _) in zip(names, placed, strict=True)
            ],
            mode="markers+text",
            textfont={"color": "white", "size": 11},
            marker={"color": TUNED, "size": _SIZE},
        )


def _point_cost(cost: str, point: FrontPoint) -> float | None:
    found = measured_costs(point).get(cost)
    return point.costs.get(cost) if found is None else found[0]


def _dense_cost(cost: str, dense: DenseFigures) -> float | None:
    found = measured_costs(dense).get(cost)
    return dense.get("costs", {}).get(cost) if found is None else found[0]


def _value(score: str, value: float | None) -> float:
    assert value is not None
    return 100 * value if is_share(score) else value


def _hover(trial: Trial, score: str) -> str:
    costs = "".join(
        f"<br>{html.escape(cost_name(name))} {format_cost(name, value)}" for name, value in trial.costs.items()
    )
    message = f"<br>{html.escape(redact(trial.message)[:200])}" if trial.message else ""
    return f"trial {trial.number}, {trial.state}<br>{format_score(score, trial.score)}{costs}{message}"


def _point_hover(name: str, cost: str, point: FrontPoint, value: float | None, score: str, when: str) -> str:
    x = _point_cost(cost, point)
    assert x is not None
    found = measured_costs(point).get(cost)
    place = format_cost(cost, x) if found is None else format_measured(cost, found)
    return f"point {name} (trial {point.trial}), {when}<br>{place}<br>{format_score(score, value)}"


def layout(
    figure: go.Figure,
    x_title: str,
    score: str,
    y_range: tuple[float, float],
    *,
    from_zero: bool = False,
    remark: str = "",
) -> go.Figure:
    """Give a figure whose y axis is the score the style of all of them; `remark` says more of that score."""
    share = is_share(score)
    style(
        figure,
        x={"title": x_title, "rangemode": "tozero" if from_zero else "normal"},
        y={
            "title": f"{html.escape(score)} on the search split{remark}" + (" (%)" if share else ""),
            "range": y_range,
        },
    )
    return figure


def style(figure: go.Figure, *, x: Mapping[str, Any], y: Mapping[str, Any], height: int = _HEIGHT) -> None:
    """Give a figure the looks of the page; `x` and `y` are settings of its axes."""
    axis: Mapping[str, Any] = {"zeroline": False, "showline": False, "ticks": "", "title_standoff": 12}
    figure.update_traces(hovertemplate="%{hovertext}<extra></extra>", selector={"hoverinfo": None})
    figure.update_layout(
        template="none",
        height=height,
        margin={"l": 64, "r": 16, "t": 56, "b": 52},
        font={"family": _FONT, "size": 12},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        legend={
            "orientation": "h",
            "x": 0,
            "y": 1.02,
            "yanchor": "bottom",
            "font": {"size": 11},
        },
        hoverlabel={"align": "left", "font": {"family": _FONT, "size": 12}},
        xaxis={**axis, **x},
        yaxis={**axis, **y},
    )
