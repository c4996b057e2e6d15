"""`search` and `resume`, from Python; the command line calls them too.

    import autoprune as ap

    result = ap.search(model, train=loader, test=test_loader, budget=["macs=0.5x", "latency=8ms"], run="runs/first")
    result = ap.resume("runs/first", trials=50, model=model, train=loader, test=test_loader)
    small = ap.load("runs/first/front/0", model=model)

Silent unless ``progress=RichProgress()`` is given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import autoprune
from autoprune.agents import agent_class, make_agent, option_names
from autoprune.agents.base import FRONT_SHARES, Trial
from autoprune.bounds import ORDER, load_order, save_order
from autoprune.config import FROM_PYTHON, SearchConfig
from autoprune.controller import Controller, Seat, describe_error
from autoprune.data import Data
from autoprune.files import remove_leftovers
from autoprune.finetune import FineTune
from autoprune.finish import FORMATS, finish
from autoprune.finished import FOLDER, Dense, Finished
from autoprune.front import FrontPoint
from autoprune.importance import Loss, collect, describe_importance, reads_data, save_scores
from autoprune.latency import LatencyTable, describe
from autoprune.models import ModelSource
from autoprune.precision import device_of
from autoprune.prior import with_prior
from autoprune.progress import NO_PROGRESS, Progress
from autoprune.races import Races, check_race
from autoprune.scores import Score
from autoprune.search_spaces.budget import Budget
from autoprune.search_spaces.errors import UserError, unknown
from autoprune.search_spaces.projection import check_budget
from autoprune.search_spaces.types import Candidate
from autoprune.statistical import AUDIT, ERROR
from autoprune.study import Study, check_new, objectives
from autoprune.tables import format_score
from autoprune.workbench import (
    TABLE,
    Workbench,
    fingerprints,
    handed_over,
    load_table,
    make_workbench,
    rebuild_workbench,
    usable_device,
    use_table,
)

DEFAULT_AGENT = "tpe"
"""What ``agent="auto"`` stands for."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a search found.

    Attributes:
        run: the run folder.
        budget: that every trial and every point keeps, as predicted; `FrontPoint.misses` says which points do not as
            measured.
        dense: the dense model.
        front: the finished points, best score first, each exported to its `path`.
        trials: everything that was tried.
    """

    run: Path
    budget: Budget
    dense: Dense
    front: tuple[FrontPoint, ...]
    trials: tuple[Trial, ...]


def search(
    model: nn.Module | ModelSource | str,
    *,
    budget: Budget | str | Iterable[str],
    run: str | Path,
    data: Data | str | None = None,
    train: Iterable[Any] | None = None,
    search: Iterable[Any] | None = None,
    test: Iterable[Any] | None = None,
    example_inputs: Any = None,
    agent: str = "auto",
    agent_options: Mapping[str, Any] | None = None,
    prior: str = "kl",
    trials: int = 100,
    seed: int = 0,
    aim: str = "score",
    sweep: Sequence[float] | None = None,
    score: str | Score = "accuracy",
    importance: str = "l2",
    importance_samples: int = 1024,
    importance_loss: Loss | None = None,
    recovery: str = "compensate",
    calibration_samples: int = 2000,
    search_size: float | None = None,
    batch_size: int = 128,
    data_root: str | Path | None = None,
    precision: str = "auto",
    bounds: str = "exact",
    tolerance: float = 0.0,
    heuristic: bool = False,
    error_rate: float = ERROR,
    audit: float = AUDIT,
    device: str = "auto",
    latency_batch: int = 1,
    latency_threads: int = 1,
    latency_repeats: int = 30,
    points: int = 4,
    finetune: FineTune | None = None,
    formats: Sequence[str] = (),
    progress: Progress = NO_PROGRESS,
) -> Result:
    """Search the keep ratios of every group of channels, then finish and export the best subnets.

    Args:
        model: a module with its weights, which is never changed; ``torchvision:NAME``, ``timm:NAME``,
            ``package.module:function``; or a `ModelSource` with arguments and weights.
        budget: upper limits, for example ``["macs=0.5x", "latency=8ms"]``; every trial keeps all of them.
        run: folder to make; holds everything (docs/guide.md lists what).
        data: the name of a data set or a `Data`; or give loaders:
        train, search, test: loaders of (inputs, targets) batches. Without `search` it is carved from `train`; `test`
            is for final numbers only.
        example_inputs: what the model is traced and its latency measured with: a tensor, a tuple of positional or a
            dict of keyword arguments. None takes `latency_batch` samples of the training data.
        agent: who proposes: ``auto`` (``tpe``), or another of `autoprune.agents.AGENTS` (docs/agents.md has a card for
            each); `agent_options` are its own.
        prior: ``kl`` measures, before the first trial, how much cuts of each group alone hurt, for agents that take
            such a table; ``off`` does not.
        trials: how many candidates to evaluate.
        seed: of everything random; the same seed gives the same trials.
        aim: ``score``, the best score within the budget; or ``front``, a front of sizes within it, for which agents
            look by themselves where they can, and by a sweep where they cannot.
        sweep: shares of the budget that trials are made for in turn; ``(1.0, 0.8, 0.6)`` for a front of several sizes.
            None for the whole budget only, or what `aim` asks for.
        score: ``accuracy``, ``top5``, ``worst_class_accuracy``, ``kl`` (no labels needed), a `WorstOf`, or a function
            (model, batches) -> float, higher is better.
        importance: by which units are ranked: ``l1``, ``l2``, ``fpgm``, ``bn_scale``, ``apoz``, ``mean_activation``,
            ``hrank``, ``rebuild``, ``taylor``, ``fisher``, ``random`` (docs/importance.md has a card for each).
        importance_samples: training samples that a criterion reads, where it reads data; the scores are kept in the
            run folder.
        importance_loss: (output, targets) -> mean loss, for ``taylor`` and ``fisher``; None for cross entropy.
        recovery: what is done to a cut network before it is scored: ``slice``, ``recalibrate``, ``compensate`` or
            ``repair`` (docs/recovery.md).
        calibration_samples: training samples that the recovery reads.
        search_size: samples (or their share) carved from the training data for scoring.
        batch_size, data_root: of a data set given by name.
        precision: ``auto``, ``fp32`` or ``bf16``.
        bounds: ``exact`` stops a candidate when it is certain that it cannot join the front, ``statistical`` when that
            is very likely, ``off`` never (docs/bounds.md). A scoring function of your own has no bound and is always
            evaluated in full.
        tolerance: 0.01 lets bounds cut a candidate that costs up to 1 % less than a trial that scores as well; where it
            is infinite, only the best score counts, at whatever cost within the budget.
        heuristic: skip candidates whose loss by the prior is far above that of a trial that costs no more: not proved.
        error_rate: of ``statistical``: the chance, at most, that a candidate as good as its incumbent is cut.
        audit: share of the cuts without proof that are evaluated all the same, to measure how many are wrong.
        device: ``auto``, ``cpu`` or ``cuda``, for a model given by name; a module stays where it is.
        latency_batch, latency_threads, latency_repeats: how latency is measured.
        points: front points to finish and export at most.
        finetune: settings; None for no fine-tuning.
        formats: ``onnx`` and ``torch-export``, written beside each folder.
        progress: `RichProgress()` shows bars.

    Raises:
        UserError: something given cannot be used; before the first trial, no folder is left behind.
    """
    path = Path(run)
    check_new(path)
    if data is None and train is None:
        raise UserError("A search needs data: give `data`, the name of a data set or a `Data`, or the loader `train`.")
    source = ModelSource(model) if isinstance(model, str) else model if isinstance(model, ModelSource) else None
    own = model if isinstance(model, nn.Module) else None
    for name in formats:
        if name not in FORMATS:
            raise unknown("format", name, FORMATS)
    if heuristic and prior == "off":
        raise UserError("The heuristic skips by the prior: set prior to 'kl', or heuristic to False.")
    agent = DEFAULT_AGENT if agent == "auto" else agent
    agent_class(agent)
    config = SearchConfig(
        budget=tuple(str(limit) for limit in _budget(budget).limits),
        model=None if source is None else source.spec,
        model_args={} if source is None else source.kwargs,
        weights=None if source is None or source.weights is None else str(Path(source.weights).expanduser().absolute()),
        device=usable_device(device) if own is None else device_of(own).type,
        data=data if isinstance(data, str) else None,
        data_root=None if data_root is None else str(Path(data_root).expanduser().absolute()),
        search_size=search_size,
        batch_size=batch_size,
        agent=agent,
        agent_options=dict(agent_options or {}),
        prior=prior,
        trials=trials,
        seed=seed,
        aim=aim,
        sweep=tuple(_default_sweep(agent, aim) if sweep is None else sweep),
        score=score if isinstance(score, str) else FROM_PYTHON,
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
        latency_batch=latency_batch,
        latency_threads=latency_threads,
        latency_repeats=latency_repeats,
        points=points,
        finetune=None if finetune is None else finetune.to_dict(),
        formats=tuple(formats),
        versions={"autoprune": autoprune.__version__, "torch": str(torch.__version__)},
    )
    objects = handed_over(
        config,
        model=own,
        data=data,
        train=train,
        search=search,
        test=test,
        example_inputs=example_inputs,
        score=score,
    )
    bench = _prepare(make_workbench(config, objects), importance_loss, progress)
    order = _order(bench, _seats(bench))
    if config.bounds == "statistical":
        check_race(bench.evaluator, order)
    # What "auto" came to is written down: on a machine that decides otherwise a resumed search would mix scores.
    config = replace(config, precision=bench.evaluator.precision, fingerprints=fingerprints(bench))
    with Study.create(path, config, fill=lambda folder: _save_profile(bench, folder, order)) as study:
        return _go_on(study, replace(bench, config=config), order, progress)


def resume(
    run: str | Path,
    *,
    trials: int | None = None,
    model: nn.Module | None = None,
    data: Data | None = None,
    train: Iterable[Any] | None = None,
    search: Iterable[Any] | None = None,
    test: Iterable[Any] | None = None,
    example_inputs: Any = None,
    score: Score | None = None,
    measure_latency: bool = False,
    progress: Progress = NO_PROGRESS,
) -> Result:
    """Go on with a search that was stopped or killed, or add trials to one that is done.

    The result is that of a search that was never interrupted. What was handed over in Python must be handed over
    again; what was given by name is loaded again.

    Args:
        run: the run folder.
        trials: how many to add to the plan; None finishes the plan.
        measure_latency: measure the latency table again, on this device. Trials made with another table stay.

    Raises:
        UserError: the folder cannot be used, or weights, data or model are not those the run began with.
    """
    if trials is not None and trials < 1:
        raise UserError(f"`trials`, how many to add, must be at least 1, but got {trials}.")
    with Study.open(Path(run)) as study:
        objects = handed_over(
            study.config,
            model=model,
            data=data,
            train=train,
            search=search,
            test=test,
            example_inputs=example_inputs,
            score=score,
        )
        bench = rebuild_workbench(study.config, objects, study.path)
        if "latency" in bench.budget.costs:
            if measure_latency:
                bench = use_table(bench, _measure_table(bench, progress))
                (study.path / TABLE).parent.mkdir(exist_ok=True)
                _save_table(bench.table, study.path)
            else:
                bench = use_table(bench, load_table(study.path))
        order = _order(bench, _seats(bench), study.path)
        if trials is not None:
            study.change(trials=study.config.trials + trials)
        return _go_on(study, replace(bench, config=study.config), order, progress)


def _prepare(bench: Workbench, loss: Loss | None, progress: Progress) -> Workbench:
    """Find out that the search can work, the cheapest check first; measure the latency table where it is needed."""
    others = tuple(limit for limit in bench.budget.limits if limit.cost != "latency")
    if others:
        _check_tightest(bench, Budget(others))  # before minutes are spent on a table
    score_dense = _score_dense(bench)  # model, data and score fit each other, or this says why not
    unweighted = bench.source is not None and bench.source.weights is None
    progress.say(
        f"The dense model scores {format_score(bench.config.score, score_dense)} on the search split"
        + (", with the weights its constructor gave it: none were named." if unweighted else ".")
    )
    config = bench.config
    if reads_data(config.importance):
        collect(
            bench.space, config.importance, bench.data,
            num_samples=config.importance_samples, loss=loss, seed=config.seed,
        )  # fmt: skip
        progress.say(f"Units ranked by {describe_importance(config.importance, config.importance_samples)}.")
    if len(others) < len(bench.budget.limits):
        bench = use_table(bench, _measure_table(bench, progress))
        _check_tightest(bench, bench.budget)
    return bench


def _go_on(study: Study, bench: Workbench, order: Sequence[int] | None, progress: Progress) -> Result:
    bench = with_prior(bench, study, progress)
    config, evaluator = bench.config, bench.evaluator
    races = Races(evaluator, order, study.path, seed=config.seed, error=config.error_rate, audit=config.audit)
    trials = Controller(
        study=study,
        space=bench.space,
        seats=_seats(bench),
        budget=bench.budget,
        evaluate=evaluator.evaluate,
        evaluate_above=evaluator.evaluate_above if config.bounds == "exact" and evaluator.bounded else None,
        race=races if config.bounds == "statistical" else None,
        predict=_predictor(bench) if config.heuristic else None,
        audit=config.audit,
        tolerance=config.tolerance,
        progress=progress,
        label=lambda score: format_score(study.config.score, score),
    ).run()
    finished = Finished.read(study.path)
    if finished is None or finished.num_trials != len(trials) or not finished.is_whole():
        (study.path / FOLDER).mkdir(exist_ok=True)
        remove_leftovers(study.path / FOLDER)
        finished = finish(study, bench, progress)
    return Result(
        run=study.path, budget=bench.budget, dense=finished.dense, front=finished.points, trials=tuple(trials)
    )


def _predictor(bench: Workbench) -> Callable[[Candidate], float] | None:
    """The loss of a candidate by the prior; None where it could not be measured."""
    table = bench.prior
    return None if table is None else lambda candidate: float(table.predict(np.array([candidate]))[0])


def _seats(bench: Workbench) -> list[Seat]:
    """One agent for each share of the budget."""
    config = bench.config
    options = dict(config.agent_options)
    if bench.prior is not None and "table" in option_names(config.agent):
        options.setdefault("table", bench.prior)
    if config.aim == "front" and "costs" in option_names(config.agent):
        options.setdefault("costs", objectives(config.budget)[1:])
    return [
        Seat(make_agent(config.agent, bench.space, bench.budget.scaled(share), seed=config.seed, **options), share)
        for share in config.sweep
    ]


def _default_sweep(agent: str, aim: str) -> Sequence[float]:
    """Shares of the budget for a search that was given none."""
    return FRONT_SHARES if aim == "front" and "costs" not in option_names(agent) else (1.0,)


def _order(bench: Workbench, seats: Sequence[Seat], run: Path | None = None) -> list[int] | None:
    """Let the evaluator read the search split hardest samples first; return the order, None where it cannot.

    Hardest for the uniform candidate: see docs/bounds.md. The order is fixed before the first trial and kept in the run
    folder. One that is missing there is made again: weights, data and settings are those that it was made from. It is
    used without bounds too, since in other batches the last bits of a score may be others.
    """
    order = None if run is None else load_order(run)
    if order is None:
        try:
            order = bench.evaluator.hardest_first(seats[0].agent.uniform())
        except UserError:
            raise
        except Exception:  # the user's model fails on this candidate: the trials will say so, in any order
            return None
    if order is not None:
        try:
            bench.evaluator.use_order(order)
        except UserError as error:
            raise UserError(f"{ORDER} of the run is damaged: {error} Delete it, and it is made again.") from None
    return order


def _score_dense(bench: Workbench) -> float:
    try:
        return bench.evaluator.score_dense
    except UserError:
        raise
    except Exception as error:  # the user's model, data and score run in here
        raise UserError(
            f"The dense model cannot be scored, so nothing can be searched: {describe_error(error)} "
            "Check its weights, the data and the score."
        ) from error


def _check_tightest(bench: Workbench, budget: Budget) -> None:
    """Raise a UserError where no subnet fits the budget at the smallest share of the sweep."""
    share = min(bench.config.sweep)
    try:
        check_budget(bench.space, budget.scaled(share))
    except UserError as error:
        if share == 1:
            raise
        raise UserError(f"At the share {share:g} of the budget that the sweep asks for: {error}") from None


def _measure_table(bench: Workbench, progress: Progress) -> LatencyTable:
    table = LatencyTable.measure(bench.space, threads=bench.config.latency_threads, progress=progress)
    progress.say(f"Latency table: {describe(table)}.")
    return table


def _save_profile(bench: Workbench, folder: Path, order: Sequence[int] | None) -> None:
    """What was measured once for this model, device and data."""
    if order is not None:
        save_order(folder, order)
    _save_table(bench.table, folder)
    if reads_data(bench.config.importance):
        save_scores(bench.space, bench.config.importance, folder, num_samples=bench.config.importance_samples)


def _save_table(table: LatencyTable | None, folder: Path) -> None:
    if table is not None:
        (folder / TABLE).parent.mkdir(exist_ok=True)
        table.save(folder / TABLE)


def _budget(budget: Budget | str | Iterable[str]) -> Budget:
    return budget if isinstance(budget, Budget) else Budget.parse(budget)
