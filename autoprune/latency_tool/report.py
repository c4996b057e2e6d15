"""The page of `autoprune latency`: where the time goes and what cuts would save, offline, in one file.

Every text from outside is escaped: names of modules and groups, of the model, and messages.
"""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from pathlib import Path

import plotly.graph_objects as go

from autoprune.files import atomic_write
from autoprune.latency_tool.profile import Cut, LatencyProfile, Saving, describe_inputs
from autoprune.latency_tool.words import best_cuts, describe_energy, describe_layers, notes, percent, saved_ms
from autoprune.report.charts import style
from autoprune.report.page import card, page, section
from autoprune.report.sections import figures_section
from autoprune.search_spaces.budget import format_cost

SHOWN_LAYERS = 30
ROW, BOTTOM, MIN_HEIGHT = 22, 52, 420
"""Pixels: height of a row of a chart, of what is below the rows, and of the whole at least."""

BAR, MACS, REST = "#3b82f6", "#d9701c", "#94a3b8"
SHADES = ("#1e4fa3", "#3b82f6", "#a9c8fb", "#d6e5fd")
"""Of cuts, the smallest first: a larger saving shows behind a smaller one."""


def write_latency_report(path: Path, profiles: Sequence[LatencyProfile]) -> None:
    """Write the page, atomically.

    Args:
        profiles: one network on one runtime or several.

    Raises:
        OSError: the disk is full or the folder may not be written.
    """
    first = profiles[0]
    head = (
        f'<header><p class="brand">autoprune latency</p><h1>{html.escape(first.network)}</h1>'
        f'<p class="facts">{html.escape(_facts(first))}</p></header>'
    )
    sections = [head, *(part for index, profile in enumerate(profiles) for part in _sections(profile, index))]
    atomic_write(path, page(f"Latency of {first.network}", sections))


def _facts(profile: LatencyProfile) -> str:
    facts = [f"input {describe_inputs(profile.inputs)}", profile.dense.device]
    if profile.macs is not None and profile.params is not None:
        facts += [
            f"{format_cost('macs', profile.macs)} MACs",
            f"{format_cost('params', profile.params)} parameters",
            f"{len(profile.savings)} groups",
        ]
    return " · ".join(facts)


def _sections(profile: LatencyProfile, index: int) -> Iterator[str]:
    yield f'<h2 class="runtime">{html.escape(profile.runtime)}</h2><div class="cards">{"".join(_cards(profile))}</div>'
    layers = figures_section([layer_figure(profile)], f"layers-{index}") if profile.layers else ""
    _, rest = profile.top_layers(SHOWN_LAYERS)
    remarks = [f"{rest.module} modules take {percent(rest.share)}."] if rest else []
    remarks += [*profile.dense.remarks, *([f"Energy: {describe_energy(profile)}"] if profile.no_energy else [])]
    yield section("Where the time goes", html.escape(describe_layers(profile)), layers + _list(remarks))
    if profile.refusal:
        yield section("What a cut would save", "", f"<p>Nothing can be cut. {html.escape(profile.refusal)}</p>")
        return
    measured, total = profile.num_measured
    caption = " ".join([*best_cuts(profile), *(["Hatched bars are predicted."] if measured < total else [])])
    figure = figures_section([saving_figure(profile)], f"savings-{index}")
    yield section("What a cut of one group saves", html.escape(caption), figure)
    yield section("In numbers", "", saving_table(profile) + _list(notes(profile)))


def _list(lines: Sequence[str]) -> str:
    return "<ul class='notes'>" + "".join(f"<li>{html.escape(line)}</li>" for line in lines) + "</ul>"


def _cards(profile: LatencyProfile) -> Iterator[str]:
    dense = profile.dense
    threads = "1 thread" if dense.threads == 1 else f"{dense.threads} threads"
    yield card("latency", None, dense.short, f"{dense.clock_name}, batch {dense.batch}, {threads}")
    yield card("throughput", None, f"{profile.throughput:.4g} /s", f"samples at batch {dense.batch}")
    if dense.energy_mj is None:
        yield card("energy", None, "–", "not measured: see the notes")
    else:
        yield card("energy", None, f"{dense.energy_mj:.3g} mJ", "a run, the whole processor (RAPL)")
    for best in profile.ranking[:1]:
        if best.deepest is not None and best.deepest.low_ms > 0:
            kept = f"{best.group}: {best.deepest.kept} of {best.units} kept"
            yield card("best single cut", None, f"{best.deepest.saved_ms:.3g} ms saved", kept)


def layer_figure(profile: LatencyProfile) -> go.Figure:
    """Share of the time of each module as a bar, the largest on top."""
    # the rest would be the longest bar of a deep network: it is said instead
    rows, _ = profile.top_layers(SHOWN_LAYERS)
    names = [html.escape(layer.module or "(model)") for layer in rows]
    figure = go.Figure()
    figure.add_bar(
        orientation="h",
        y=names,
        x=[100 * layer.share for layer in rows],
        text=[f"{layer.share:.1%}" for layer in rows],
        textposition="outside",
        cliponaxis=False,
        textfont={"size": 11},
        marker={"color": BAR},
        hovertext=[
            f"{name}<br>{html.escape(layer.kind)}<br>{layer.ms:.4g} ms, {layer.share:.1%}"
            for name, layer in zip(names, rows, strict=True)
        ],
    )
    _rows(figure, names, "share of the time of all layers (%)")
    return figure


def saving_figure(profile: LatencyProfile) -> go.Figure:
    """What each cut of each group saves, the best groups on top, with the MACs that the deepest one saves.

    Milliseconds (below) and shares of the dense network (above) are one scale, so a mark far right of its bar is a
    group whose MACs promise more than time gives.
    """
    ranked, last = profile.ranking, len(profile.cuts) - 1
    names = [html.escape(saving.group) for saving in ranked]
    figure = go.Figure()
    for column in reversed(range(len(profile.cuts))):  # the deepest, the longest bar, lies behind the others
        found = [(name, cut) for name, saving in zip(names, ranked, strict=True) if (cut := saving.cuts[column])]
        for measured in sorted({cut.measured for _, cut in found}, reverse=True):
            _add_bars(
                figure,
                [(name, cut) for name, cut in found if cut.measured == measured],
                f"{100 * profile.cuts[column]:g}% of the units",
                rank=column,
                color=SHADES[min(column + max(2 - last, 0), len(SHADES) - 1)],
                with_error=column == last,
            )
    deepest = [(name, saving.deepest) for name, saving in zip(names, ranked, strict=True) if saving.deepest]
    figure.add_scatter(
        name=f"MACs saved by {100 * profile.cuts[-1]:g}%",
        legendrank=len(names) + last,
        y=[name for name, _ in deepest],
        x=[100 * cut.macs for _, cut in deepest],
        xaxis="x2",
        mode="markers",
        marker={"color": MACS, "size": 10, "symbol": "line-ns-open", "line": {"width": 3, "color": MACS}},
        hovertext=[_hover(name, cut) for name, cut in deepest],
    )
    low, high = _range(profile)
    figure.update_layout(
        barmode="overlay",
        xaxis2={
            "overlaying": "x",
            "side": "top",
            "tickmode": "auto",
            "range": [100 * low, 100 * high],
            "title": {"text": "share of the dense network (%)", "standoff": 6},
            "showgrid": False,
            "zeroline": False,
            "ticks": "",
        },
    )
    _rows(figure, names, "saved (ms)", top=96)
    figure.update_layout(
        xaxis={"range": [low * profile.dense.ms, high * profile.dense.ms]},
        legend={"yref": "container", "y": 0.995, "yanchor": "top"},
    )
    return figure


def _add_bars(
    figure: go.Figure, cuts: Sequence[tuple[str, Cut]], name: str, *, rank: int, color: str, with_error: bool
) -> None:
    """Cuts that were all measured, or all predicted: those are hatched."""
    measured = cuts[0][1].measured
    figure.add_bar(
        name=name if measured else f"{name}, predicted",
        legendrank=rank,
        orientation="h",
        y=[group for group, _ in cuts],
        x=[cut.saved_ms for _, cut in cuts],
        marker={
            "color": color,
            "pattern": {"shape": "" if measured else "/", "size": 5, "solidity": 0.2},
            "line": {"width": 0},
        },
        error_x={"array": [_half(cut) for _, cut in cuts], "color": REST, "thickness": 1, "width": 2}
        if with_error
        else None,
        hovertext=[_hover(group, cut) for group, cut in cuts],
    )


def _range(profile: LatencyProfile) -> tuple[float, float]:
    """Ends of the axis of savings, as shares of the dense network."""
    cuts = [cut for saving in profile.savings for cut in saving.cuts if cut is not None]
    low = min([0.0, *(cut.saved for cut in cuts)])
    high = max([0.01, *(cut.saved for cut in cuts), *(cut.macs for cut in cuts)])
    margin = 0.04 * (high - low)
    return low - margin if low < 0 else 0.0, high + margin


def _rows(figure: go.Figure, names: Sequence[str], title: str, *, top: int = 12) -> None:
    """The style of a chart with one row for each of `names`, the first on top."""
    style(
        figure,
        x={"title": title, "zeroline": True, "zerolinewidth": 1, "zerolinecolor": REST},
        y={
            "categoryorder": "array",
            "categoryarray": names[::-1],
            "range": [-0.7, len(names) - 0.3],
            "automargin": True,
            "dtick": 1,
            "showgrid": False,
            "tickfont": {"size": 11},
            "ticklabelstandoff": 6,
        },
        height=max(top + BOTTOM + ROW * len(names), MIN_HEIGHT),
    )
    figure.update_layout(bargap=0.25, margin={"l": 8, "r": 40, "t": top, "b": BOTTOM}, showlegend=top > 12)


def _hover(name: str, cut: Cut) -> str:
    how = "measured" if cut.measured else "predicted"
    return (
        f"{name}: {cut.kept} units kept<br>saves {cut.saved_ms:.3g} ± {_half(cut):.2g} ms, {how}<br>that is "
        f"{percent(cut.saved)} of the time, {percent(cut.macs)} of the MACs, {percent(cut.params)} of the parameters"
    )


def saving_table(profile: LatencyProfile) -> str:
    """One row a group, as ranked: for each cut the units kept, and the time, MACs and parameters saved."""
    heads = "".join(f'<th colspan="3">{100 * cut:g}% cut</th>' for cut in profile.cuts)
    columns = "<th>kept</th><th>saved ms<br>share</th><th>MACs<br>params</th>" * len(profile.cuts)
    rows = "".join(_row(number, saving, profile.dense.ms) for number, saving in enumerate(profile.ranking, 1))
    return (
        f'<div class="scroll"><table class="figures-table"><thead><tr class="groups"><th colspan="2"></th>{heads}</tr>'
        f"<tr><th>group</th><th>units</th>{columns}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _row(number: int, saving: Saving, dense_ms: float) -> str:
    cells = "".join("<td>–</td>" * 3 if cut is None else _cells(cut, dense_ms) for cut in saving.cuts)
    name = f"<small>{number}</small> {html.escape(saving.group)}"
    return f'<tr><th scope="row">{name}</th><td>{saving.units}</td>{cells}</tr>'


def _cells(cut: Cut, dense_ms: float) -> str:
    kind = "" if cut.certain else ' class="unsure"'
    saved = f"{saved_ms(cut, dense_ms)}<br><small>{percent(cut.saved)}</small>"
    costs = f"{percent(cut.macs)}<br><small>{percent(cut.params)}</small>"
    return f"<td>{cut.kept}</td><td{kind}>{saved}</td><td>{costs}</td>"


def _half(cut: Cut) -> float:
    return (cut.high_ms - cut.low_ms) / 2
