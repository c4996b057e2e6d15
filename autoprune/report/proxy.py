"""The section of the report that says whether the search can be trusted: verdict, table, proxies against the truth."""

from __future__ import annotations

import html

import plotly.graph_objects as go

from autoprune.proxy_report import COLUMNS, ProxyReport, ProxyRow, format_correlation, proxy_cells
from autoprune.recovery.ladder import RUNGS
from autoprune.report.charts import FRONT, TUNED, layout
from autoprune.report.sections import figures_section
from autoprune.tables import format_score, is_share


def proxy_section(found: ProxyReport) -> str:
    """Verdict, the study's own score and the best one against the score after fine-tuning, all proxies, remarks."""
    shown = [found.row(found.own)]
    if found.best is not None and found.best.name != found.own:
        shown.append(found.best)
    heads = "".join(f"<th>{html.escape(name)}</th>" for name in COLUMNS)
    rows = []
    for name, *cells in proxy_cells(found):
        kind = ' class="best"' if name.endswith("(this study)") else ""
        text = "".join(f"<td>{html.escape(cell)}</td>" for cell in cells)
        rows.append(f'<tr{kind}><th scope="row">{html.escape(name)}</th>{text}</tr>')
    remarks = "".join(f"<li>{html.escape(remark)}</li>" for remark in found.remarks)
    return (
        f"<p>{html.escape(found.verdict)}</p>"
        + figures_section([proxy_figure(found, row) for row in shown], "proxy")
        + f'<div class="scroll"><table class="figures-table"><thead><tr>{heads}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
        f'<ul class="notes">{remarks}</ul>'
    )


def proxy_figure(found: ProxyReport, row: ProxyRow) -> go.Figure:
    """One dot for each candidate: the proxy's score, and the score after fine-tuning."""
    share = is_share(found.score)
    in_percent = (
        share and row.name in RUNGS
    )  # the rungs are scored by the score of the study, other proxies need not be
    dots = [(k, x, y) for k, (x, y) in enumerate(zip(row.scores, found.truths, strict=True)) if x is not None]
    unit = 100 if share else 1
    figure = go.Figure()
    figure.add_scatter(
        name=f"Spearman {format_correlation(row.spearman)}",
        x=[x * (100 if in_percent else 1) for _, x, _ in dots],
        y=[y * unit for _, _, y in dots],
        hovertext=[
            f"candidate {found.numbers[k]}<br>{format_score(found.score if in_percent else '', x)}<br>"
            f"{format_score(found.score, y)} fine-tuned"
            for k, x, y in dots
        ],
        mode="markers",
        marker={"color": FRONT if row.name == found.own else TUNED, "size": 9, "opacity": 0.8},
        showlegend=True,
    )
    low, high = min(found.truths) * unit, max(found.truths) * unit
    margin = 0.08 * (high - low) or 0.5
    x_title = html.escape(row.label) + (" (%)" if in_percent else "")
    return layout(figure, x_title, found.score, (low - margin, high + margin), remark=", fine-tuned")
