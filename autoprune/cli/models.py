"""The commands that take a model and no run folder: `autoprune trace`, `latency` and `train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from autoprune.cli import options
from autoprune.cli.errors import guarded

app = typer.Typer(rich_markup_mode="rich")


@app.command(epilog="Example: [b]autoprune trace --model torchvision:resnet50[/]")
@guarded
def trace(
    model: options.Model,
    model_arg: options.ModelArg = None,
    data: options.OptionalDataName = None,
    data_root: options.DataRoot = None,
    input_shape: options.InputShape = None,
    align: options.TraceAlign = 8,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Show what can be pruned in a model: groups, units, MACs per layer, and what stays and why."""
    from autoprune.cli.trace import print_trace
    from autoprune.models import ModelSource, parse_model_args

    print_trace(
        ModelSource(model, parse_model_args(model_arg or [])),
        data=data,
        data_root=data_root,
        shape=input_shape,
        align=align,
        json=json,
    )


@app.command(
    epilog="Example: [b]autoprune latency --model torchvision:resnet18 --runtime onnxruntime --out page.html[/]"
)
@guarded
def latency(
    model: options.Model,
    runtime: options.PlainRuntimes = None,
    model_arg: options.ModelArg = None,
    weights: options.Weights = None,
    data: options.OptionalDataName = None,
    data_root: options.DataRoot = None,
    input_shape: options.InputShape = None,
    batch: Annotated[
        int | None,
        typer.Option(help="Samples a run. Default: as in --input-shape, else 1.", rich_help_panel=options.DATA),
    ] = None,
    threads: Annotated[int, typer.Option(help="Threads of one run.", rich_help_panel=options.LATENCY)] = 1,
    device: Annotated[
        str, typer.Option(help="cpu; eager and compile also run on cuda.", rich_help_panel=options.LATENCY)
    ] = "cpu",
    cut: Annotated[
        list[float] | None,
        typer.Option(
            metavar="SHARE",
            help="Share of a group's units to cut; repeatable. Default: 0.1, 0.25 and 0.5.",
            rich_help_panel=options.LATENCY,
        ),
    ] = None,
    align: Annotated[
        str,
        typer.Option(
            metavar="1|8|16|auto",
            help="Channels are kept in multiples of this where a layer is wide enough. auto: the step at which the "
            "runtime is fast, found by measuring for half a minute; 8 for compile, commands and narrow networks.",
            rich_help_panel=options.LATENCY,
        ),
    ] = "8",
    seconds: Annotated[
        float,
        typer.Option(
            help="About how long to measure cuts on each runtime, the deepest first; the others are predicted.",
            rich_help_panel=options.LATENCY,
        ),
    ] = 120.0,
    accuracy: Annotated[
        float,
        typer.Option(
            help="Measure until latencies are known to this share of themselves.", rich_help_panel=options.LATENCY
        ),
    ] = 0.01,
    device_profile: Annotated[
        Path | None,
        typer.Option(
            help="File of what is known of devices: what is in it is not measured again, what is new is added.",
            show_default=False,
            rich_help_panel=options.LATENCY,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Page with charts to write, .html.", show_default=False, rich_help_panel=options.RESULT),
    ] = None,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Where does the time go? Latency of a network, share of each layer, and what cuts of each group would save."""
    from autoprune.align import read_align
    from autoprune.cli.latency import print_latency
    from autoprune.models import ModelSource, parse_model_args
    from autoprune.progress import RichProgress

    print_latency(
        ModelSource(model, parse_model_args(model_arg or []), None if weights is None else str(weights)),
        runtime or ["eager"],
        data=data,
        data_root=data_root,
        shape=input_shape,
        batch=batch,
        threads=threads,
        device=device,
        cuts=cut or (0.1, 0.25, 0.5),
        align=read_align(align),
        seconds=seconds,
        accuracy=accuracy,
        device_profile=device_profile,
        out=out,
        json=json,
        progress=RichProgress(),
    )


@app.command(
    epilog="Example: [b]autoprune train --model autoprune.nets:digits_resnet --data digits --epochs 15 "
    "--out dense.safetensors[/]"
)
@guarded
def train(
    model: options.Model,
    data: options.DataName,
    out: Annotated[Path, typer.Option(help="Weights to write, .safetensors.", show_default=False)],
    epochs: Annotated[int, typer.Option(help="Passes over the training data.")] = 10,
    lr: Annotated[float, typer.Option(help="Learning rate at its peak.")] = 0.1,
    finetune_arg: options.FineTuneArg = None,
    model_arg: options.ModelArg = None,
    weights: options.Weights = None,
    device: options.Device = "auto",
    data_root: options.DataRoot = None,
    search_size: options.SearchSize = None,
    batch_size: options.BatchSize = 128,
    seed: Annotated[int, typer.Option(help="Of shuffling and augmentation.")] = 0,
    debug: options.Debug = False,
) -> None:
    """Train a dense network from scratch, so that there is something to prune."""
    from autoprune.models import ModelSource, parse_model_args
    from autoprune.progress import RichProgress
    from autoprune.train import train_dense

    found = train_dense(
        ModelSource(model, parse_model_args(model_arg or []), None if weights is None else str(weights)),
        data,
        out,
        settings={"epochs": epochs, "lr": lr, **parse_model_args(finetune_arg or [])},
        data_root=data_root,
        search_size=options.size(search_size),
        batch_size=batch_size,
        device=device,
        seed=seed,
        progress=RichProgress(),
    )
    typer.echo(f"{out}: {found}")
