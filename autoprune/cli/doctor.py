"""`autoprune doctor`: what is wrong with a run folder, a line for each finding, or as JSON."""

from __future__ import annotations

from typing import Annotated

import typer

from autoprune.cli import options
from autoprune.cli.errors import guarded

app = typer.Typer(rich_markup_mode="rich")


@app.command(epilog="Example: [b]autoprune doctor runs/first[/]")
@guarded
def doctor(
    run: options.Run,
    mend: Annotated[
        bool,
        typer.Option(
            "--mend",
            help="Remove what killed processes left, and move damaged files that can be made again to NAME.damaged.",
        ),
    ] = False,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Check a run folder: what is damaged or missing, and what can be done. Exit code 1 where something has to be."""
    from dataclasses import asdict
    from json import dumps

    from autoprune import diagnosis
    from autoprune.terminal import printable

    done = diagnosis.mend(run) if mend else []
    found = diagnosis.doctor(run)
    well = diagnosis.is_well(found)
    if json:
        typer.echo(dumps({"run": str(run), "well": well, "findings": [asdict(f) for f in (*done, *found)]}, indent=2))
    else:
        for finding in (*done, *found):
            typer.echo(printable(str(finding)))
    if not well:
        raise typer.Exit(1)
