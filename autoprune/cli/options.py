"""The options that several commands share, with their help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

MODEL = "Model"
DATA = "Data"
SEARCH = "Search"
SCORE = "Score"
RESULT = "Result"
LATENCY = "Latency"
TRAINING = "Fine-tuning"
WORKERS = "Workers"

Run = Annotated[Path, typer.Argument(help="The run folder.", show_default=False, metavar="RUN")]
Point = Annotated[str, typer.Option(help="A point of the front: its number, or 'best'.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
Trust = Annotated[
    bool,
    typer.Option(
        "--trust",
        help="Once for a run from elsewhere: let it run the code and reach the files that its configuration names.",
    ),
]
Debug = Annotated[bool, typer.Option("--debug", help="On an error, show the Python traceback.")]

Model = Annotated[
    str,
    typer.Option(
        help="[b]torchvision:NAME[/], [b]timm:NAME[/] or [b]package.module:function[/].",
        rich_help_panel=MODEL,
        show_default=False,
    ),
]
ModelArg = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=VALUE", help="Argument of the model's constructor; repeatable.", rich_help_panel=MODEL),
]
Weights = Annotated[
    Path | None, typer.Option(help="Dense weights: .safetensors, or .pt read safely.", rich_help_panel=MODEL)
]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.", rich_help_panel=MODEL)]

DATA_HELP = (
    "[b]digits[/], [b]mnist[/], [b]fashion-mnist[/], [b]cifar10[/], [b]cifar100[/], [b]imagefolder:DIR[/] or "
    "[b]package.module:function[/] that returns loaders."
)
DataName = Annotated[
    str, typer.Option("--data", help=DATA_HELP, rich_help_panel=DATA, show_default=False, metavar="DATA")
]
OptionalDataName = Annotated[
    str | None, typer.Option("--data", help=DATA_HELP, rich_help_panel=DATA, show_default=False, metavar="DATA")
]
InputShape = Annotated[
    str | None,
    typer.Option(
        metavar="NxCxHxW",
        help="Shape of a random input. Default: a sample of --data, else 1xCx224x224.",
        rich_help_panel=DATA,
    ),
]
DataRoot = Annotated[Path | None, typer.Option(help="Folder of the data sets.", rich_help_panel=DATA)]
SearchSize = Annotated[
    float | None,
    typer.Option(
        help="Training samples (or a share below 1) set apart to score candidates. Default: 10 %, at most 10,000.",
        rich_help_panel=DATA,
    ),
]
BatchSize = Annotated[int, typer.Option(help="Samples a batch.", rich_help_panel=DATA)]

FineTuneArg = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=VALUE",
        help="Setting of fine-tuning, for example lr=0.01, optimizer=adamw, ema=0.999; repeatable.",
        rich_help_panel=TRAINING,
    ),
]

Budget = Annotated[
    list[str],
    typer.Option(
        metavar="COST=LIMIT",
        help="Limit on [b]macs[/], [b]flops[/], [b]params[/], [b]memory[/], [b]size[/], [b]latency[/], "
        "[b]throughput[/] or [b]energy[/]: macs=0.5x, params=2M, size=5MB, latency=8ms, throughput=500/s; on a device: "
        "latency@NAME=8ms, latency@worst=0.5x. Repeatable; every trial keeps all of them.",
        rich_help_panel=SEARCH,
        show_default=False,
    ),
]
OtherBudget = Annotated[
    list[str] | None,
    typer.Option(metavar="COST=LIMIT", help="As of a search. Default: that of the run.", show_default=False),
]
NewRun = Annotated[
    Path,
    typer.Option(help="Run folder to make.", rich_help_panel=RESULT, show_default=False),
]
Align = Annotated[
    str,
    typer.Option(
        metavar="1|8|16|auto",
        help="Channels are kept in multiples of this where a layer is wide enough. auto: the step at which the runtime "
        "is fast where the budget limits latency, throughput or energy; else 8.",
        rich_help_panel=SEARCH,
    ),
]
TraceAlign = Annotated[
    int, typer.Option(help="Levels are multiples of this many channels where a layer is wide enough: 1, 8, 16 ...")
]
Agent = Annotated[
    str,
    typer.Option(
        help="Who proposes: auto, tpe, gp, cmaes, nsga2, greedy, annealing, evolution, ddpg, sb3:NAME, bnb, kl, "
        "random, uniform.",
        rich_help_panel=SEARCH,
    ),
]
AgentArg = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=VALUE", help="Setting of the agent; repeatable.", rich_help_panel=SEARCH),
]
Prior = Annotated[
    str,
    typer.Option(
        help="kl: measure before the first trial how much cuts of each group alone hurt, for the agent; off: do not.",
        rich_help_panel=SEARCH,
    ),
]
Trials = Annotated[int, typer.Option(help="Candidates to evaluate.", rich_help_panel=SEARCH)]
Seed = Annotated[
    int,
    typer.Option(
        help="Of everything random in the search; the split of the data does not depend on it.", rich_help_panel=SEARCH
    ),
]
Aim = Annotated[
    str,
    typer.Option(
        help="score: the best score within the budget. front: also smaller subnets, for a front of many sizes.",
        rich_help_panel=SEARCH,
    ),
]
Sweep = Annotated[
    list[float] | None,
    typer.Option(
        metavar="SHARE",
        help="Make trials for this share of the budget, in turn with the others given: --sweep 1 --sweep 0.6 gives "
        "a front of two sizes. Default: 1, or what --aim front needs.",
        rich_help_panel=SEARCH,
    ),
]
Score = Annotated[
    str,
    typer.Option(
        help="accuracy, top5, worst_class_accuracy, kl (needs no labels), or package.module:function.",
        rich_help_panel=SCORE,
    ),
]
CRITERIA = ("l1", "l2", "fpgm", "bn_scale", "apoz", "mean_activation", "hrank", "rebuild", "taylor", "fisher", "random")
"""As in `autoprune.search_spaces.CRITERIA`, for which help need not wait."""

Importance = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help=f"Criterion by which channels are kept: {', '.join(CRITERIA)}.",
        rich_help_panel=SCORE,
    ),
]
ImportanceSamples = Annotated[
    int, typer.Option(help="Training samples that the criterion reads, from apoz on.", rich_help_panel=SCORE)
]
Recovery = Annotated[
    str,
    typer.Option(help="Before a candidate is scored: slice, recalibrate, compensate, repair.", rich_help_panel=SCORE),
]
CalibrationSamples = Annotated[
    int, typer.Option(help="Training samples that the recovery reads.", rich_help_panel=SCORE)
]
Precision = Annotated[str, typer.Option(help="auto, fp32 or bf16.", rich_help_panel=SCORE)]
Bounds = Annotated[
    str,
    typer.Option(
        help="When to stop a candidate: exact, once it is certain that it cannot join the front; statistical, once "
        "that is very likely; off, never.",
        rich_help_panel=SCORE,
    ),
]
Tolerance = Annotated[
    float,
    typer.Option(
        help="0.01: bounds also cut what costs up to 1 % less than a trial that scores as well; inf: only the best "
        "score counts.",
        rich_help_panel=SCORE,
    ),
]
Heuristic = Annotated[
    bool,
    typer.Option(
        "--heuristic", help="Skip candidates whose loss by the prior is far too high; audited.", rich_help_panel=SCORE
    ),
]
ErrorRate = Annotated[
    float,
    typer.Option(help="Of statistical bounds: chance, at most, that a good candidate is cut.", rich_help_panel=SCORE),
]
Audit = Annotated[
    float,
    typer.Option(help="Share of cuts without proof that are evaluated all the same.", rich_help_panel=SCORE),
]
Runtimes = Annotated[
    list[str] | None,
    typer.Option(
        "--runtime",
        metavar="[NAME=]RUNTIME",
        help="What latency is measured on: [b]eager[/], [b]compile[/], [b]onnxruntime[/], [b]openvino[/], with "
        "settings eager:precision=bf16, or a script of yours, phone=command:./time.sh. Repeatable: latency=8ms means "
        "the first, latency@phone=8ms another. Default: eager.",
        rich_help_panel=LATENCY,
        show_default=False,
    ),
]
PlainRuntimes = Annotated[
    list[str] | None,
    typer.Option(
        "--runtime",
        metavar="RUNTIME",
        help="[b]eager[/] (default), [b]compile[/], [b]onnxruntime[/], [b]openvino[/], or [b]command:SCRIPT[/] of your "
        "own; with settings: eager:precision=bf16. Repeatable.",
        rich_help_panel=LATENCY,
    ),
]
LatencyBatch = Annotated[int, typer.Option(help="Samples a batch when measuring.", rich_help_panel=LATENCY)]
ThroughputBatch = Annotated[
    int, typer.Option(help="Samples a batch where throughput is limited.", rich_help_panel=LATENCY)
]
LatencyThreads = Annotated[int, typer.Option(help="Threads when measuring on a CPU.", rich_help_panel=LATENCY)]
LatencyRepeats = Annotated[int, typer.Option(help="Least measurements of each front point.", rich_help_panel=LATENCY)]
LatencyAccuracy = Annotated[
    float,
    typer.Option(
        help="Wanted half width of a latency's 95 % interval; a machine too noisy for it is refused.",
        rich_help_panel=LATENCY,
    ),
]
LatencySubnets = Annotated[
    int, typer.Option(help="Subnets to measure first, to learn predicting the others.", rich_help_panel=LATENCY)
]
LatencyConfidence = Annotated[
    float,
    typer.Option(help="With which a candidate is below the latency predicted for it.", rich_help_panel=LATENCY),
]
MeasureTrials = Annotated[
    str,
    typer.Option(
        help="on: measure each candidate before it is scored, and move it to where it keeps the budget as measured; "
        "off: trust the prediction; auto: on where measuring takes less time than scoring.",
        rich_help_panel=LATENCY,
    ),
]
DeviceProfile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Keep here what is learnt about devices, for other searches.", rich_help_panel=LATENCY
    ),
]
Points = Annotated[int, typer.Option(help="Front points to finish and export.", rich_help_panel=RESULT)]
Formats = Annotated[
    list[str] | None,
    typer.Option(help="onnx or torch-export, beside the folder of each point; repeatable.", rich_help_panel=RESULT),
]
Storage = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="postgresql://... or mysql://...: keep the trials on a server, for workers on several machines.",
        rich_help_panel=WORKERS,
    ),
]
StudyName = Annotated[
    str | None,
    typer.Option("--study", help="Name of the study there. Default: that of the folder.", rich_help_panel=WORKERS),
]
Workers = Annotated[
    int, typer.Option(help="Processes that evaluate candidates, this one included.", rich_help_panel=WORKERS)
]
Executor = Annotated[str, typer.Option(help="Of further workers: local or ray.", rich_help_panel=WORKERS)]
FineTuneEpochs = Annotated[
    int, typer.Option(help="Fine-tune each point, the dense model as teacher.", rich_help_panel=TRAINING)
]


def size(value: float | None) -> float | None:
    """A whole number of samples as an int, a share as it is."""
    return int(value) if value is not None and value >= 1 and value == int(value) else value
