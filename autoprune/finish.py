"""From trials to finished subnets: choose front points, measure and repair, fine-tune, test, export, report.

Every stage may be killed and run again: fine-tuning goes on from its checkpoint, exported folders are whole or
absent, and ``front.json``, written last, says that all is done. `show` reads that file and computes nothing.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import nn

from autoprune import stopping
from autoprune.card import card
from autoprune.data.base import batch_size_of
from autoprune.distributed import ALONE, Team
from autoprune.documents import parsing, read_document, write_document
from autoprune.evaluate import EvaluationFailed, Evaluator
from autoprune.export import export_folder, export_onnx, export_program
from autoprune.failures import describe_error
from autoprune.finetune import FineTune, FineTuneFailed, finetune
from autoprune.finished import FILE, FOLDER, Dense, Finished
from autoprune.front import FrontPoint, choose, front
from autoprune.measure.device import device_info
from autoprune.memory import is_out_of_memory, release
from autoprune.notes import annotate
from autoprune.progress import NO_PROGRESS, Progress
from autoprune.proxy_report import read_report
from autoprune.report import write_report
from autoprune.scores import accuracy
from autoprune.search_spaces.errors import UserError, unknown
from autoprune.study import Study, objectives
from autoprune.tables import is_share
from autoprune.verifying import verified
from autoprune.workbench import Workbench

REPORT = "report.html"

RECIPE_FORMAT = 1

FORMATS = {"onnx": "model.onnx", "torch-export": "model.pt2"}
"""What a point can be exported to beside its folder, and the name of the file."""


def finish(study: Study, bench: Workbench, progress: Progress) -> Finished:
    """Choose points of the front, hold them against the budget, then fine-tune, test, export and report them.

    Raises:
        UserError: no trial is complete, a step does not work, or fine-tuning failed for every point; the points are
            then finished as they were before it.
    """
    config, run = study.config, study.path
    settings = None if config.finetune is None else FineTune.from_dict(config.finetune)
    costs = objectives(config.budget)[1:]
    chosen = choose(front(study.trials, costs), costs, config.points)
    if not chosen:
        raise UserError(f"None of the {len(study.trials)} trials of {run} is complete. See why: autoprune show {run}.")
    kept, latencies = verified(
        [FrontPoint(trial=t.number, candidate=t.candidate, costs=t.costs, score=t.score or 0.0) for t in chosen],
        bench,
        run,
        progress,
    )
    (run / FILE).unlink(missing_ok=True)  # from here on the folders may be those of other points
    points: list[FrontPoint] = []
    models: dict[str, nn.Module] = {}
    for index, point in enumerate(kept):
        what = f"Fine-tuning point {index} ({index + 1} of {len(kept)})"
        tuned, model = tune(point, run, bench, own_recipe(run, point.trial) or settings, progress, what)
        stopping.check()
        points.append(tuned)
        models[str(index)] = model
    dense = Dense(
        costs=bench.space.cost_dict(bench.space.dense),
        score=bench.evaluator.score_dense,
        test=test_accuracy(bench.space.model, bench),
        latency=latencies[bench.gauges.gauges[0].name],
        latencies=latencies,
        measured=bench.gauges.measured(latencies),
    )
    finished = Finished(
        dense=dense,
        points=tuple(points),
        num_trials=len(study.trials),
        device=device_info(),
        notes=tuple(
            f"{gauge.device}, batch {gauge.batch}: predictions {gauge.predictor.error}."
            for gauge in bench.gauges.budgeted
        ),
    )
    with progress.task("Exporting", total=len(points), unit="points") as task:
        for index in range(len(points)):
            stopping.check()
            export(index, models[str(index)], finished, study, bench)
            task.advance()
    for folder in (run / FOLDER).iterdir():
        if folder.is_dir() and folder.name.isdecimal() and int(folder.name) >= len(points):  # of an earlier front
            shutil.rmtree(folder)
    report(finished, study, bench)
    finished.write(run)
    if settings is not None and settings.epochs and all(point.recipe is None for point in points):
        raise UserError(
            "Fine-tuning failed for every point, for the reasons above: all are exported as pruned. Try other "
            f"settings: autoprune finetune {run} --point best --epochs {settings.epochs} --finetune-arg lr=... (or "
            "batch_size=...)"
        )
    return Finished.read(run) or finished


def tune(
    point: FrontPoint,
    run: Path,
    bench: Workbench,
    settings: FineTune | None,
    progress: Progress,
    description: str,
    team: Team = ALONE,
) -> tuple[FrontPoint, nn.Module]:
    """Build the subnet of a point and repair it, score it on the test split, fine-tune it where `settings` are given,
    score again.

    In a `team`, process 0 does all this while the others `assist`.

    Returns:
        The point with its scores, and the finished network.
    """
    point, model = _repaired(point, bench.evaluator, progress)
    before = test_accuracy(model, bench)
    if settings is None or settings.epochs == 0:
        return replace(point, test_before=before, finetuned=None, recipe=None, test_after=None), model
    # a point that was moved has other shapes than the next one that its trial may be moved to
    made_of = settings.to_dict() if point.proposed is None else [settings.to_dict(), *point.candidate]
    checkpoint = run / "finetune" / str(point.trial) / f"{_digest(made_of)}.checkpoint"
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    try:
        tuned = finetune(
            model,
            bench.data,
            settings,
            teacher=bench.space.model,
            seed=bench.config.seed,
            team=team,
            checkpoint=checkpoint,
            progress=progress,
            description=description,
        ).model
    except FineTuneFailed as error:
        if error.best is None:
            raise
        progress.say(str(error))  # the other points are worth having, and so is what this one was before
        if not error.best.best_epoch:
            return replace(point, test_before=before, finetuned=None, recipe=None, test_after=None), model
        tuned = error.best.model
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        size = batch_size_of(next(iter(bench.data.train))[0]) if settings.batch_size is None else settings.batch_size
        progress.say(
            f"{description} ran out of memory in batches of {size} samples ({describe_error(error)}) Try "
            f"--finetune-arg batch_size={max(2, size // 2)}."
        )
        release(error)
        return replace(point, test_before=before, finetuned=None, recipe=None, test_after=None), model
    point = replace(
        point,
        test_before=before,
        finetuned=bench.evaluator.score(tuned),
        recipe=settings.to_dict(),
        test_after=test_accuracy(tuned, bench),
    )
    return point, tuned


def assist(point: FrontPoint, bench: Workbench, settings: FineTune, team: Team) -> None:
    """What the other processes do of `tune`: train with process 0, which gives the weights; nothing is written."""
    model = bench.evaluator.subnet(point.candidate)
    with suppress(FineTuneFailed):  # on all alike, and process 0 makes the best of it
        finetune(model, bench.data, settings, teacher=bench.space.model, seed=bench.config.seed, team=team)


def _repaired(
    point: FrontPoint, evaluator: Evaluator, progress: Progress = NO_PROGRESS
) -> tuple[FrontPoint, nn.Module]:
    """The network of a point on the highest rung of recovery, where that is better on the search split.

    A search scores thousands on a lower rung; the few that it chose are worth the seconds, and fine-tuning that begins
    with a repaired network ends higher (docs/recovery.md).
    """
    model = evaluator.subnet(point.candidate)
    point = replace(point, repaired=None)
    if evaluator.recovery in ("slice", "repair") or not evaluator.knows_the_cut:
        return point, model
    try:
        repaired = evaluator.network(point.candidate, "repair").eval()
        score = evaluator.score(repaired)
    except EvaluationFailed:
        return point, model
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        progress.say(f"The point of trial {point.trial} is not repaired: {describe_error(error)}")
        release(error)
        return point, model
    return (replace(point, repaired=score), repaired) if score > point.score else (point, model)


def own_recipe(run: Path, trial: int) -> FineTune | None:
    """Settings that this trial's subnet was fine-tuned with by hand; a new front takes them instead of the run's."""
    path = recipe_path(run, trial)
    return read_recipe(path) if path.is_file() else None


def read_recipe(path: Path) -> FineTune:
    """Read what `keep_recipe` wrote.

    Raises:
        Damaged: somebody chose these settings, so they are not made again.
    """
    content = read_document(path, RECIPE_FORMAT)
    with parsing(path):
        return FineTune.from_dict(content)


def keep_recipe(run: Path, trial: int, settings: FineTune) -> None:
    """Remember a fine-tuning by hand beside its checkpoint, which gives its weights again without training."""
    write_document(recipe_path(run, trial), RECIPE_FORMAT, settings.to_dict())


def recipe_path(run: Path, trial: int) -> Path:
    """Where `keep_recipe` writes."""
    return run / "finetune" / str(trial) / "recipe.json"


def test_accuracy(model: nn.Module, bench: Workbench) -> float | None:
    """Top-1 accuracy in [0, 1] on the test split; None where there is none, or no classes to be right about.

    Raises:
        UserError: the test split does not fit a model that is scored by accuracy.
    """
    if bench.data.test is None:
        return None
    try:
        return accuracy(model, bench.data.test, precision=bench.evaluator.precision, split="test")
    except UserError:
        if is_share(bench.config.score):
            raise
        return None  # scored without classes


def export(index: int, model: nn.Module, finished: Finished, study: Study, bench: Workbench) -> None:
    """Write point `index` to ``front/index``: the folder, then the further formats of the configuration."""
    point, folder = finished.points[index], study.path / FOLDER / str(index)
    export_folder(
        folder,
        model=model,
        space=bench.space,
        candidate=point.candidate,
        importance=study.config.importance,
        source=bench.source,
        card=card(index, finished, study.config),
        meta={
            "point": index,
            **{k: v for k, v in point.to_dict().items() if k not in ("path", "latency", "latencies", "candidate")},
        },
    )
    for name in study.config.formats:
        write_format(name, model, bench.space.example_inputs, folder / FORMATS[name])


def write_format(name: str, model: nn.Module, example: Any, path: Path) -> float:
    """Write `model` as ``onnx`` or ``torch-export`` to `path`; return the largest difference to PyTorch's output."""
    if name not in FORMATS:
        raise unknown("format", name, FORMATS)
    return export_onnx(model, example, path) if name == "onnx" else export_program(model, example, path)


def report(finished: Finished, study: Study, bench: Workbench) -> None:
    """Write ``report.html``, and the notes that optuna-dashboard shows."""
    config = study.config
    limits = bench.budget.resolve(finished.dense.costs)
    proxies, unusable = read_report(study.path, config.fingerprints)
    notes = list(finished.notes)
    write_report(
        study.path / REPORT,
        title=study.path.resolve().name,
        config=asdict(config),
        dense=finished.figures(),
        trials=study.trials,
        front=finished.points,
        keep_ratios=[bench.space.keep_ratios(point.candidate) for point in finished.points],
        score=config.score,
        limits=limits,
        environment={**finished.device, **config.versions},
        notes=[*notes, unusable] if unusable and proxies is None else notes,
        proxies=proxies,
    )
    annotate(study, finished, limits)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]
