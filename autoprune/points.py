"""What is done to one point of a finished front: fine-tune it for longer, write it in another format."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from autoprune.architecture import Architecture
from autoprune.config import SearchConfig
from autoprune.distributed import Team, joined
from autoprune.files import atomic_folder
from autoprune.finetune import FineTune
from autoprune.finish import FORMATS, assist, export, keep_recipe, report, tune, write_format
from autoprune.finished import FOLDER, Finished
from autoprune.front import FrontPoint
from autoprune.loading import load
from autoprune.progress import NO_PROGRESS, Progress
from autoprune.search_spaces.errors import UserError, unknown
from autoprune.study import Study
from autoprune.tables import best_index, final_score, format_score
from autoprune.trust import check_trusted
from autoprune.workbench import HandedOver, rebuild_workbench

if TYPE_CHECKING:
    from typing_extensions import Unpack

_MOST_VALUES = 2**30
"""In one example input: a file that asks for more is damaged, and would fill the memory."""


def fine_tune(
    run: str | Path,
    settings: FineTune,
    *,
    point: int | str = "best",
    trust: bool = False,
    progress: Progress = NO_PROGRESS,
    **given: Unpack[HandedOver],
) -> FrontPoint:
    """Fine-tune one point of a finished front, from the pruned weights, and export it again in place.

    A result that is worse on the search split does not replace the point.

    Under torchrun every process makes this call and trains its part of each batch. Process 0 alone writes to the run,
    reports and raises; where it fails, the others end.

    Args:
        run: the run folder.
        settings: how; the dense model is the teacher.
        point: its number, or ``best``.
        trust: see `resume`.
        given: model, data, train, search, test, example_inputs, score: what the search was given in Python.

    Raises:
        UserError: the run is not finished, or has no such point.
    """
    with joined() as team:
        path = Path(run)
        if team.is_main:
            tuned = _fine_tuned(path, settings, point, progress, team, trust=trust, **given)
            team.share(json.dumps(tuned.to_dict()))
            return tuned
        finished, bench = _finished(path), rebuild_workbench(SearchConfig.read(path), path, trust=trust, **given)
        assist(finished.points[point_index(finished, point)], bench, settings, team)
        return FrontPoint.from_dict(json.loads(team.share(None)))


def _fine_tuned(
    run: Path,
    settings: FineTune,
    point: int | str,
    progress: Progress,
    team: Team,
    *,
    trust: bool,
    **given: Unpack[HandedOver],
) -> FrontPoint:
    with Study.open(run) as study:
        finished = _finished(study.path)
        index = point_index(finished, point)
        bench = rebuild_workbench(study.config, study.path, progress, trust=trust, **given)
        what = f"Fine-tuning point {index}"
        tuned, network = tune(finished.points[index], study.path, bench, settings, progress, what, team)
        if settings.epochs and tuned.recipe is None:
            raise UserError(f"Fine-tuning point {index} failed, for the reason above: it stays as it was.")
        before, after = final_score(finished.points[index]), final_score(tuned)
        if after < before:
            shown = [format_score(study.config.score, value) for value in (after, before)]
            progress.say(f"Point {index} stays as it was: {shown[0]} on the search split would replace {shown[1]}.")
            return finished.points[index]
        keep_recipe(study.path, tuned.trial, settings)
        points = [tuned if i == index else old for i, old in enumerate(finished.points)]
        finished = replace(finished, points=tuple(points))
        export(index, network, finished, study, bench)
        report(finished, study, bench)
        finished.write(study.path)
        return _finished(study.path).points[index]


def export_point(
    run: str | Path,
    kind: str,
    *,
    point: int | str = "best",
    out: str | Path | None = None,
    model: nn.Module | None = None,
    trust: bool = False,
) -> Path:
    """Write one point of a finished front as ``onnx``, ``torch-export`` or ``folder``.

    Args:
        run: the run folder.
        kind: the format.
        point: its number, or ``best``.
        out: file or folder to write; by default in the current folder, named after run and point.
        model: the dense model, where the search was given one in Python.
        trust: see `resume`.

    Returns:
        What was written, after it was read back and compared.

    Raises:
        UserError: an unknown format, `out` exists, or the format cannot hold the model.
    """
    if kind not in ("folder", *FORMATS):
        raise unknown("format", kind, ["folder", *FORMATS])
    path = Path(run)
    index = point_index(_finished(path), point)
    folder = path / FOLDER / str(index)
    ending = "" if kind == "folder" else Path(FORMATS[kind]).suffix
    target = Path(out) if out is not None else Path(f"{path.resolve().name}-{index}{ending}")
    if target.exists():
        raise UserError(f"{target} exists. Choose another name: --out.")
    if not folder.is_dir():
        raise UserError(f"The folder {folder} of point {index} is missing. Make it again: autoprune resume {path}.")
    if model is None:
        _check_trusted(path, folder, trust)
    pruned = load(folder, model=model, trust=True)  # a damaged point is refused before anything is written
    target.parent.mkdir(parents=True, exist_ok=True)
    if kind == "folder":
        with atomic_folder(target, replace=False) as copy:
            shutil.copytree(folder, copy, dirs_exist_ok=True)
            load(copy, model=model, trust=True)
    else:
        write_format(kind, pruned, example_inputs(folder), target)
    return target


def _check_trusted(run: Path, folder: Path, trust: bool) -> None:
    """Ask for trust in the function that builds the dense model of an exported point: the one of its run, or not."""
    source = Architecture.read(folder).source
    if source is not None:
        config = SearchConfig.read(run)
        builder = SearchConfig(budget=config.budget, id=config.id, model=source["spec"], model_args=source["kwargs"])
        check_trusted(builder, str(folder), trust=trust)


def example_inputs(folder: Path) -> tuple[Any, Any]:
    """Positional and keyword arguments of the shapes that an exported folder names; floats drawn with a fixed seed."""
    generator = torch.Generator().manual_seed(0)

    def make(value: Any) -> Any:
        if isinstance(value, dict) and value.keys() == {"shape", "dtype"}:
            shape, dtype = value["shape"], getattr(torch, str(value["dtype"]), None)
            whole = isinstance(shape, list) and all(isinstance(size, int) and size >= 0 for size in shape)
            if not isinstance(dtype, torch.dtype) or not whole or math.prod(shape) > _MOST_VALUES:
                raise UserError(f"{folder} is damaged: its inputs cannot be of the shape {shape!r:.80}, {dtype}.")
            if dtype.is_floating_point:
                return torch.randn(shape, generator=generator).to(dtype)
            return torch.zeros(shape, dtype=dtype)
        if isinstance(value, dict):
            return {name: make(part) for name, part in value.items()}
        return [make(part) for part in value] if isinstance(value, list) else value

    inputs = Architecture.read(folder).inputs
    if not isinstance(inputs.get("args"), list) or not isinstance(inputs.get("kwargs"), dict):
        raise UserError(f"{folder} is damaged: its inputs are no list of args and dict of kwargs.")
    return tuple(make(inputs["args"])), make(inputs["kwargs"])


def point_index(finished: Finished, point: int | str) -> int:
    """Number of the point called `point`: a number, or ``best``, see `best_index`.

    Raises:
        UserError: there is none.
    """
    numbers = range(len(finished.points))
    if point == "best":
        return best_index(finished.points) or 0
    if (isinstance(point, int) or point.isdecimal()) and int(point) in numbers:
        return int(point)
    raise UserError(f"There is no point {point!r}: the front has the points 0 to {numbers[-1]}, and best.")


def _finished(run: Path) -> Finished:
    SearchConfig.read(run)
    finished = Finished.read(run)
    if finished is None:
        raise UserError(f"The run {run} is not finished. Finish it first: autoprune resume {run}.")
    return finished
