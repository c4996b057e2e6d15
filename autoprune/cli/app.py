"""The command line: `autoprune search` and what is done with its run folder: `resume`, `show`, `profile`, `proxy`,
`finetune` and `export`. The commands on a model alone are in `models`.

Results go to stdout, progress and messages to stderr. Exit codes: 0 done, 2 something the user can mend (one line
that says what), 130 stopped with Ctrl-C (143 by SIGTERM, 129 by SIGHUP), 1 anything else. Heavy imports wait until a
command runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from autoprune.cli import doctor, models, options, worker
from autoprune.cli.errors import guarded

app = typer.Typer(
    name="autoprune",
    help="Prune PyTorch models under a budget: search per-layer ratios, fine-tune, export the front.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(models.app)
app.add_typer(doctor.app)
app.add_typer(worker.app)


def main() -> None:
    """Run the command that the process was started with."""
    app()


def _version(wanted: bool) -> None:
    if wanted:
        import autoprune

        typer.echo(f"autoprune {autoprune.__version__}")
        raise typer.Exit


@app.callback()
def _global(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    pass


@app.command(
    epilog="Example: [b]autoprune search --model torchvision:resnet18 --data cifar10 --model-arg num_classes=10 "
    "--weights dense.safetensors --budget latency=8ms --budget macs=0.5x --trials 60 --finetune-epochs 5 "
    "--run runs/first[/]"
)
@guarded
def search(
    model: options.Model,
    data: options.DataName,
    budget: options.Budget,
    run: options.NewRun,
    model_arg: options.ModelArg = None,
    weights: options.Weights = None,
    device: options.Device = "auto",
    data_root: options.DataRoot = None,
    search_size: options.SearchSize = None,
    batch_size: options.BatchSize = 128,
    align: options.Align = "auto",
    agent: options.Agent = "auto",
    agent_arg: options.AgentArg = None,
    prior: options.Prior = "kl",
    trials: options.Trials = 100,
    seed: options.Seed = 0,
    aim: options.Aim = "score",
    sweep: options.Sweep = None,
    score: options.Score = "accuracy",
    importance: options.Importance = "l2",
    importance_samples: options.ImportanceSamples = 1024,
    recovery: options.Recovery = "compensate",
    calibration_samples: options.CalibrationSamples = 2000,
    precision: options.Precision = "auto",
    bounds: options.Bounds = "exact",
    tolerance: options.Tolerance = 0.0,
    heuristic: options.Heuristic = False,
    error_rate: options.ErrorRate = 0.05,
    audit: options.Audit = 0.1,
    runtime: options.Runtimes = None,
    latency_batch: options.LatencyBatch = 1,
    throughput_batch: options.ThroughputBatch = 32,
    latency_threads: options.LatencyThreads = 1,
    latency_repeats: options.LatencyRepeats = 30,
    latency_accuracy: options.LatencyAccuracy = 0.02,
    latency_subnets: options.LatencySubnets = 24,
    latency_confidence: options.LatencyConfidence = 0.9,
    measure_trials: options.MeasureTrials = "auto",
    device_profile: options.DeviceProfile = None,
    points: options.Points = 4,
    format: options.Formats = None,
    finetune_epochs: options.FineTuneEpochs = 0,
    finetune_arg: options.FineTuneArg = None,
    storage: options.Storage = None,
    study: options.StudyName = None,
    workers: options.Workers = 1,
    executor: options.Executor = "local",
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Search the ratios of every layer under a budget, then fine-tune and export the best subnets."""
    from autoprune import api
    from autoprune.align import read_align
    from autoprune.models import ModelSource, parse_model_args
    from autoprune.progress import RichProgress

    result = api.search(
        ModelSource(model, parse_model_args(model_arg or []), None if weights is None else str(weights)),
        data=data,
        data_root=data_root,
        search_size=options.size(search_size),
        batch_size=batch_size,
        budget=budget,
        run=run,
        align=read_align(align),
        agent=agent,
        agent_options=parse_model_args(agent_arg or []),
        prior=prior,
        trials=trials,
        seed=seed,
        aim=aim,
        sweep=sweep or None,
        score=score,
        importance=importance,
        importance_samples=importance_samples,
        recovery=recovery,
        calibration_samples=calibration_samples,
        precision=precision,
        bounds=bounds,
        tolerance=tolerance,
        heuristic=heuristic,
        error_rate=error_rate,
        audit=audit,
        device=device,
        runtimes=runtime or "eager",
        latency_batch=latency_batch,
        throughput_batch=throughput_batch,
        latency_threads=latency_threads,
        latency_repeats=latency_repeats,
        latency_accuracy=latency_accuracy,
        latency_subnets=latency_subnets,
        latency_confidence=latency_confidence,
        measure_trials=measure_trials,
        device_profile=device_profile,
        points=points,
        formats=format or (),
        finetune=_fine_tune(finetune_epochs, finetune_arg),
        storage=storage,
        study=study,
        workers=workers,
        executor=executor,
        progress=RichProgress(),
    )
    _shown(result.run, json)


@app.command(epilog="Example: [b]autoprune resume runs/first --trials 40[/]")
@guarded
def resume(
    run: options.Run,
    trials: Annotated[
        int | None, typer.Option(help="Trials to add to the plan. Default: finish the plan.", show_default=False)
    ] = None,
    measure_latency: Annotated[
        bool, typer.Option("--measure-latency", help="Measure again what predicts latency, on this device.")
    ] = False,
    storage: options.Storage = None,
    workers: options.Workers = 1,
    executor: options.Executor = "local",
    trust: options.Trust = False,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Go on with a search that was stopped or killed, or add trials to one that is done."""
    from autoprune import api
    from autoprune.progress import RichProgress

    result = api.resume(
        run,
        trials=trials,
        measure_latency=measure_latency,
        storage=storage,
        workers=workers,
        executor=executor,
        trust=trust,
        progress=RichProgress(),
    )
    _shown(result.run, json)


@app.command(epilog="Example: [b]autoprune show runs/first --trials[/]")
@guarded
def show(
    run: options.Run,
    trials: Annotated[bool, typer.Option("--trials", help="List every trial.")] = False,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Show a run: the front, the budget, and what became of the trials. Computes nothing."""
    _shown(run, json, every_trial=trials)


@app.command(epilog="Example: [b]autoprune proxy runs/first --candidates 24 --epochs 1[/]")
@guarded
def proxy(
    run: options.Run,
    candidates: Annotated[int, typer.Option(help="Random candidates to fine-tune; those already there count.")] = 24,
    epochs: Annotated[int, typer.Option(help="Passes over the training data for each.")] = 1,
    budget: options.OtherBudget = None,
    kd: Annotated[bool, typer.Option("--kd/--no-kd", help="With the dense model as teacher.")] = True,
    finetune_arg: options.FineTuneArg = None,
    trust: options.Trust = False,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Can the search be trusted? Fine-tune random candidates shortly and compare with how they were scored."""
    from autoprune.cli.proxy import print_proxy
    from autoprune.models import parse_model_args
    from autoprune.progress import RichProgress
    from autoprune.proxies import proxy as measure

    found = measure(
        run,
        candidates=candidates,
        epochs=epochs,
        finetune_options=parse_model_args(finetune_arg or []),
        kd=kd,
        budget=budget or None,
        trust=trust,
        progress=RichProgress(),
    )
    print_proxy(found, json=json)


@app.command(epilog="Example: [b]autoprune profile runs/first --levels 4[/]")
@guarded
def profile(
    run: options.Run,
    levels: Annotated[
        str,
        typer.Option(
            help="Levels of every group to measure: all, a number of them, or auto, where a cheap estimate bends. "
            "The others are interpolated."
        ),
    ] = "all",
    samples: Annotated[int, typer.Option(help="Training samples that outputs are compared on.")] = 1024,
    divergence: Annotated[
        str, typer.Option(help="auto, classes, tokens (both KL), or squares (any outputs).")
    ] = "auto",
    trust: options.Trust = False,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Measure how much each cut hurts by itself, or go on where that was stopped; kept with the run."""
    from autoprune import profiling
    from autoprune.cli.profile import print_profile, print_profile_json
    from autoprune.progress import RichProgress

    chosen = int(levels) if levels.isdecimal() else levels
    table = profiling.profile(
        run, levels=chosen, samples=samples, divergence=divergence, trust=trust, progress=RichProgress()
    )
    (print_profile_json if json else print_profile)(table, run / profiling.TABLE)


@app.command(epilog="Example: [b]autoprune finetune runs/first --point best --epochs 5[/]")
@guarded
def finetune(
    run: options.Run,
    point: options.Point = "best",
    epochs: Annotated[int, typer.Option(help="Passes over the training data.")] = 5,
    finetune_arg: options.FineTuneArg = None,
    trust: options.Trust = False,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Fine-tune one point of the front, the dense model as teacher, and export it again in its place.

    In several processes: torchrun --nproc-per-node 2 -m autoprune finetune ...
    """
    from autoprune import points
    from autoprune.distributed import joined
    from autoprune.progress import RichProgress
    from autoprune.search_spaces.errors import UserError

    with joined() as team:
        settings = _fine_tune(epochs, finetune_arg)
        if settings is None:
            raise UserError(f"Fine-tuning takes at least 1 epoch, but got {epochs}. Set --epochs.")
        points.fine_tune(run, settings, point=point, trust=trust, progress=RichProgress())
    if team.is_main:
        _shown(run, json)


@app.command(epilog="Example: [b]autoprune export runs/first --point 2 --format onnx --out small.onnx[/]")
@guarded
def export(
    run: options.Run,
    point: options.Point = "best",
    format: Annotated[str, typer.Option(help="folder, onnx or torch-export.")] = "folder",
    out: Annotated[
        Path | None, typer.Option(help="What to write. Default: named after run and point, in the current folder.")
    ] = None,
    trust: options.Trust = False,
    debug: options.Debug = False,
) -> None:
    """Write one point of the front to a file or folder; it is read back and compared first."""
    from autoprune import points

    typer.echo(points.export_point(run, format, point=point, out=out, trust=trust))


def _fine_tune(epochs: int, arguments: list[str] | None) -> Any:
    """The settings of `FineTune`, None for no epochs."""
    from autoprune.models import parse_model_args
    from autoprune.search_spaces.errors import UserError
    from autoprune.training import FineTune

    settings = FineTune.from_dict({"epochs": epochs, **parse_model_args(arguments or [])})
    if settings.epochs == 0 and arguments:
        raise UserError("Settings of fine-tuning were given, but no epochs. Set --finetune-epochs.")
    return settings if settings.epochs else None


def _shown(run: Path, as_json: bool, *, every_trial: bool = False) -> None:
    from autoprune.cli.show import print_json, print_run

    if as_json:
        print_json(run)
    else:
        print_run(run, every_trial=every_trial)
