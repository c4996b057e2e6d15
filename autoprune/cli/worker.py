"""The command of a further worker: `autoprune worker`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from autoprune.cli import options
from autoprune.cli.errors import guarded

app = typer.Typer(rich_markup_mode="rich")


@app.command(epilog="Example: [b]autoprune worker --storage postgresql://ann@db.example.org/studies --study first[/]")
@guarded
def worker(
    run: Annotated[
        Path | None, typer.Argument(help="Run folder, where this machine sees it.", show_default=False)
    ] = None,
    storage: options.Storage = None,
    study: options.StudyName = None,
    weights: options.Weights = None,
    data_root: options.DataRoot = None,
    trust: options.Trust = False,
    debug: options.Debug = False,
) -> None:
    """Take part in a search that was begun by another process or on another machine, until its trials are done."""
    from autoprune.progress import RichProgress
    from autoprune.workers.work import work

    done = work(
        run,
        storage=storage,
        study=study,
        weights=weights,
        data_root=data_root,
        trust=trust,
        progress=RichProgress(),
    )
    typer.echo(f"{done} trials are stored. The process that searches finishes the run, or: autoprune resume RUN")
