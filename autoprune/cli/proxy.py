"""`autoprune proxy`: the figures as a table and the verdict, or as JSON."""

from __future__ import annotations

import json as json_module

import typer
from rich.table import Table

from autoprune.cli.show import say, stdout
from autoprune.proxy_report import COLUMNS, ProxyReport, proxy_cells


def print_proxy(found: ProxyReport, *, json: bool = False) -> None:
    """Print what `autoprune.proxy` returned."""
    if json:
        typer.echo(json_module.dumps(found.to_dict(), indent=2, allow_nan=False))
        return
    console = stdout()
    table = Table(*COLUMNS)
    for cells in proxy_cells(found):
        table.add_row(*cells)
    console.print(table)
    for remark in found.remarks:
        say(console, remark)
    say(console, found.verdict)
