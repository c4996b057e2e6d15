"""`autoprune profile`: the KL table of a run as a table, or as JSON."""

from __future__ import annotations

import json as json_module
import math
from pathlib import Path
from typing import Any

import typer
from rich.table import Table

from autoprune.cli.show import say, stdout
from autoprune.kl_table import KLTable

RATIOS = (0.75, 0.5, 0.25)
UNITS = {"classes": "KL in nats", "tokens": "KL in nats a token", "squares": "relative squared error"}


def print_profile(table: KLTable, path: Path) -> None:
    """Print what each cut costs, and which groups feel it most and least."""
    console = stdout()
    settings = table.settings
    unit = UNITS.get(str(settings["divergence"]), str(settings["divergence"]))
    say(
        console,
        f"{unit} between dense network and subnet, one group cut at a time; {settings['samples']:,} training samples, "
        f"recovery {settings['recovery']}, units ranked by {settings['importance']}.",
    )
    shown = Table("group", "units", *(f"about {ratio:.0%} kept" for ratio in RATIOS), "levels measured")
    for group, name in enumerate(table.groups):
        levels = table.levels[group]
        shown.add_row(
            name,
            str(levels[-1]),
            *(cell(table, group, ratio) for ratio in RATIOS),
            f"{len(table.measured[group])} of {len(levels) - 1}",
        )
    console.print(shown)
    order = [table.groups[group] for group in table.by_sensitivity()]
    if len(order) > 1:
        say(console, f"Most sensitive: {', '.join(order[:3])}. Least: {', '.join(order[:-4:-1])}.")
    say(console, f"Table: {path}")


def print_profile_json(table: KLTable, path: Path) -> None:
    """Print the table as one JSON object; infinite values are null."""
    content: dict[str, Any] = {
        "path": str(path),
        "fingerprint": table.fingerprint,
        "settings": dict(table.settings),
        "groups": [
            {
                "name": name,
                "levels": list(table.levels[group]),
                "measured": {str(table.levels[group][k]): number(v) for k, v in table.measured[group].items()},
                "raw": [number(value) for value in table.raw[group]],
                "values": [number(value) for value in table.values[group]],
            }
            for group, name in enumerate(table.groups)
        ],
        "by_sensitivity": [table.groups[group] for group in table.by_sensitivity()],
    }
    typer.echo(json_module.dumps(content, indent=2))


def cell(table: KLTable, group: int, ratio: float) -> str:
    """``0.0123 (12)``: the value at the level nearest to a keep ratio, and its units."""
    level = table.level_at(group, ratio)
    return f"{table.values[group][level]:.4g} ({table.levels[group][level]})"


def number(value: float) -> float | None:
    """What JSON can hold."""
    return float(value) if math.isfinite(value) else None
