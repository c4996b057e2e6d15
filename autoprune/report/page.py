"""What pages are made of: one document that loads nothing, its sections, and cards with one big figure each."""

from __future__ import annotations

import html
from collections.abc import Sequence

import plotly.offline

from autoprune.report.style import STYLE

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data: blob:"


def page(title: str, sections: Sequence[str]) -> str:
    """A whole document; `sections` are HTML."""
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            f"<title>{html.escape(title)} · autoprune</title>",
            f"<style>{STYLE}</style>",
            f"<script>{plotly.offline.get_plotlyjs()}</script>",
            "</head>\n<body>\n<main>",
            *sections,
            "</main>\n</body>\n</html>\n",
        ]
    )


def section(title: str, caption: str, body: str) -> str:
    """A panel with a heading, all of it HTML; nothing where there is no body."""
    if not body:
        return ""
    text = f'<p class="caption">{caption}</p>' if caption else ""
    return f"<section><h2>{title}</h2>{text}\n{body}</section>"


def card(name: str, before: str | None, after: str, note: str) -> str:
    """One big figure, and what it was before; all of it text."""
    arrow = "" if before is None else f'<span class="before">{html.escape(before)} →</span> '
    return (
        f'<div class="card"><p class="name">{html.escape(name)}</p><p class="value">{arrow}{html.escape(after)}</p>'
        f'<p class="note">{html.escape(note)}</p></div>'
    )
