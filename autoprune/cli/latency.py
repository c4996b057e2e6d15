"""`autoprune latency`: where the time goes and what cuts would save, as tables, as a page, or as JSON."""

from __future__ import annotations

import json as json_module
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from autoprune.cli.show import say, stdout
from autoprune.cli.trace import example_of
from autoprune.latency_tool.profile import Cut, LatencyProfile, Saving
from autoprune.latency_tool.report import write_latency_report
from autoprune.latency_tool.tool import profile_latency
from autoprune.latency_tool.words import best_cuts, describe_layers, facts, notes, percent, saved_ms
from autoprune.models import ModelSource
from autoprune.runtimes import make_runtime
from autoprune.search_spaces.errors import UserError

SHOWN_LAYERS = 12
BAR_WIDTH = 16
_EIGHTHS = " ▏▎▍▌▋▊▉█"


def print_latency(
    source: ModelSource,
    runtimes: Sequence[str],
    *,
    data: str | None,
    data_root: Path | None,
    shape: str | None,
    batch: int | None,
    out: Path | None,
    json: bool,
    threads: int,
    device: str,
    **settings: Any,
) -> None:
    """Profile the model on each runtime, print what was found, and write the page.

    Args:
        settings: as of `profile_latency`.

    Raises:
        UserError: something the user gave cannot be used, or the machine is too noisy.
    """
    # a wrong name says so before anything is run
    chosen = [make_runtime(name, threads=threads, device=device) for name in runtimes]
    if out is not None and not out.absolute().parent.is_dir():
        raise UserError(f"Cannot write {out}: there is no folder {out.parent}. Make it, or choose another --out.")
    model = source.build()
    inputs = example_of(model, data=data, data_root=data_root, shape=shape, batch=batch)
    profiles = [profile_latency(model, inputs, runtime=each, network=source.spec, **settings) for each in chosen]
    if out is not None:
        write_latency_report(out, profiles)
    if json:
        typer.echo(json_module.dumps({"profiles": [profile.to_dict() for profile in profiles]}, indent=2))
    else:
        print_profiles(profiles, out)


def print_profiles(profiles: Sequence[LatencyProfile], page: Path | None) -> None:
    """Print one network on several runtimes, and where the page is."""
    console = stdout()
    for number, profile in enumerate(profiles):
        if number:
            say(console, "")
        _print_profile(console, profile)
    if page is not None:
        say(console, f"Report: {page}")


def bar(share: float, width: int = BAR_WIDTH) -> str:
    """A bar of `width` cells at a share of 1, in eighths of a cell."""
    eighths = round(max(0.0, min(share, 1.0)) * width * 8)
    return ("█" * (eighths // 8) + _EIGHTHS[eighths % 8]).rstrip()


def _print_profile(console: Console, profile: LatencyProfile) -> None:
    for line in facts(profile):
        say(console, line)
    if profile.layers:
        console.print(_layer_table(profile))
    say(console, describe_layers(profile))
    if profile.refusal:
        say(console, f"Nothing can be cut. {profile.refusal}")
        return
    console.print(_saving_table(profile))
    for line in (*best_cuts(profile), *notes(profile)):
        say(console, line)


def _layer_table(profile: LatencyProfile) -> Table:
    table = Table("module", "kind", title="Where the time goes")
    for name in ("ms", "share"):
        table.add_column(name, justify="right")
    table.add_column("")
    shown, rest = profile.top_layers(SHOWN_LAYERS)
    largest = max(layer.share for layer in shown)
    for layer in shown:
        cells = f"{layer.ms:.3f}", f"{layer.share:.1%}", Text(bar(layer.share / largest), style="cyan")
        table.add_row(Text(layer.module or "(model)"), layer.kind, *cells)
    if rest is not None:
        table.add_row(rest.module, "", f"{rest.ms:.3f}", f"{rest.share:.1%}", "", style="dim")
    return table


def _saving_table(profile: LatencyProfile) -> Table:
    """One row a group, those that save most first."""
    table = Table("group", title="What a cut of one group saves")
    table.add_column("units", justify="right")
    for cut in profile.cuts:
        table.add_column(f"{100 * cut:g}% cut\nms", justify="right")
    deepest = f"{100 * profile.cuts[-1]:g}% cut"
    for name in ("time", "MACs", "params"):
        table.add_column(f"{deepest}\n{name}", justify="right")
    table.add_column("time saved")
    most = max((s.deepest.saved for s in profile.savings if s.deepest), default=0.0) or 1.0
    for saving in profile.ranking:
        table.add_row(
            Text(saving.group),
            str(saving.units),
            *(_ms(cut, profile.dense.ms) for cut in saving.cuts),
            *_shares(saving),
            _bar(saving, most),
        )
    return table


def _ms(cut: Cut | None, dense_ms: float) -> Text:
    """What a cut saves, dim where it may as well be nothing."""
    if cut is None:
        return Text("–", style="dim")
    return Text(saved_ms(cut, dense_ms), style="" if cut.certain else "dim")


def _shares(saving: Saving) -> list[str]:
    cut = saving.deepest
    return ["–"] * 3 if cut is None else [percent(share) for share in (cut.saved, cut.macs, cut.params)]


def _bar(saving: Saving, most: float) -> Text:
    return Text(bar(saving.deepest.saved / most) if saving.deepest else "", style="green")
