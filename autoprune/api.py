"""`search` and `resume`, from Python; the command line calls them too.

    import autoprune as ap

    result = ap.search(model, train=loader, test=test_loader, budget=["macs=0.5x", "latency=8ms"], run="runs/first")
    result = ap.resume("runs/first", trials=50, model=model, train=loader, test=test_loader)
    small = ap.load("runs/first/front/0", model=model)

Silent unless ``progress=RichProgress()`` is given.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

import autoprune
from autoprune.agents import agent_class
from autoprune.agents.base import Trial
from autoprune.beginning import begin, discarded_unless_prepared
from autoprune.config import FROM_PYTHON, SearchConfig
from autoprune.data import Data
from autoprune.distributed import check_alone
from autoprune.documents import usable
from autoprune.finetune import FineTune
from autoprune.finish import FORMATS, REPORT, finish
from autoprune.finished import FOLDER, Dense, Finished
from autoprune.front import FrontPoint
from autoprune.importance import Loss
from autoprune.models import ModelSource
from autoprune.precision import device_of
from autoprune.preparing import make_ready, settle_align
from autoprune.prior import with_prior
from autoprune.progress import NO_PROGRESS, Progress
from autoprune.scores import Score
from autoprune.search_spaces.budget import Budget
from autoprune.search_spaces.errors import UserError, unknown
from autoprune.searching import default_sweep, run_trials
from autoprune.statistical import AUDIT, ERROR
from autoprune.storage import Address
from autoprune.study import Study, check_new
from autoprune.trust import new_id
from autoprune.workbench import HandedOver, Workbench, handed_over, rebuild_workbench, usable_device
from autoprune.workers.crew import check_crew, crew

if TYPE_CHECKING:
    from typing_extensions import Unpack


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
    align: int | str = "auto",
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
    runtimes: str | Sequence[str] = "eager",
    latency_batch: int = 1,
    throughput_batch: int = 32,
    latency_threads: int = 1,
    latency_repeats: int = 30,
    latency_accuracy: float = 0.02,
    latency_subnets: int = 24,
    latency_confidence: float = 0.9,
    measure_trials: str = "auto",
    device_profile: str | Path | None = None,
    points: int = 4,
    finetune: FineTune | None = None,
    formats: Sequence[str] = (),
    storage: str | None = None,
    study: str | None = None,
    workers: int = 1,
    executor: str = "local",
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
        align: levels of every group are multiples of this many channels where it is wide enough: 1, 2, 4 ...; or
            ``auto``: the step at which the runtime is fast where the budget limits what is measured on it, else 8.
        agent: who proposes, one of `autoprune.agents.AGENTS` (docs/agents.md has a card for each); `agent_options` are
            its own.
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
        runtimes: what latency is measured on: ``eager``, ``compile``, ``onnxruntime``, ``openvino``, or
            ``phone=command:./time.sh`` for a device of your own (docs/runtimes.md). ``latency=8ms`` means the first,
            ``latency@phone=8ms`` another.
        latency_batch, throughput_batch: samples a batch; `latency_threads`: threads on a processor.
        latency_repeats: rounds at least of the last measurement of each front point.
        latency_accuracy: wanted half width of a latency's 95 % interval, as a share of the dense one: rounds are run
            until it is reached; a machine on which that takes too many is refused as too noisy.
        latency_subnets: how many to measure before the first trial, to learn predicting the others.
        latency_confidence: with which a candidate is below the latency that is predicted for it.
        measure_trials: ``on`` measures each candidate before it is scored, and moves it to where it keeps the budget as
            measured; ``off`` trusts the prediction; ``auto`` is on where measuring one takes less than scoring it.
        device_profile: file that keeps what is learnt about devices, for other searches on them.
        points: front points to finish and export at most.
        finetune: settings; None for no fine-tuning.
        formats: ``onnx`` and ``torch-export``, written beside each folder.
        storage: URL of a server (``postgresql://user@host/database``) that holds the trials, for workers on several
            machines; None for ``study.db`` in the run folder. Its password is written nowhere: it is asked of the
            environment (AUTOPRUNE_STORAGE, or what the driver reads) when the search goes on.
        study: name of the study there; None for that of the folder.
        workers: processes that evaluate candidates, this one included. With one, the same seed gives the same trials,
            bit for bit; with several the same numbers are tried, but each agent proposes by what was known by then.
        executor: of further workers: ``local``, on this machine, or ``ray``.
        progress: `RichProgress()` shows bars.

    Raises:
        UserError: something given cannot be used; before the first trial, no folder is left behind.
    """
    path = Path(run)
    check_new(path)
    check_alone("search")
    if data is None and train is None:
        raise UserError("A search needs data: give `data`, the name of a data set or a `Data`, or the loader `train`.")
    source = ModelSource(model) if isinstance(model, str) else model if isinstance(model, ModelSource) else None
    own = model if isinstance(model, nn.Module) else None
    for name in formats:
        if name not in FORMATS:
            raise unknown("format", name, FORMATS)
    if heuristic and prior == "off":
        raise UserError("The heuristic skips by the prior: set prior to 'kl', or heuristic to False.")
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
        align=align,
        agent=agent,
        agent_options=dict(agent_options or {}),
        prior=prior,
        trials=trials,
        seed=seed,
        aim=aim,
        sweep=tuple(default_sweep(agent, aim) if sweep is None else sweep),
        score=score if isinstance(score, str) else FROM_PYTHON,
        importance=importance,
        importance_samples=importance_samples,
        importance_loss=None if importance_loss is None else FROM_PYTHON,
        recovery=recovery,
        calibration_samples=calibration_samples,
        precision=precision,
        bounds=bounds,
        tolerance=tolerance,
        heuristic=heuristic,
        error_rate=error_rate,
        audit=audit,
        runtimes=(runtimes,) if isinstance(runtimes, str) else tuple(runtimes),
        latency_batch=latency_batch,
        throughput_batch=throughput_batch,
        latency_threads=latency_threads,
        latency_repeats=latency_repeats,
        latency_accuracy=latency_accuracy,
        latency_subnets=latency_subnets,
        latency_confidence=latency_confidence,
        measure_trials=measure_trials,
        device_profile=None if device_profile is None else str(Path(device_profile).expanduser().absolute()),
        storage=None if storage is None else Address.named(storage).shown,
        study=path.absolute().name if study is None and storage is not None else study,
        points=points,
        finetune=None if finetune is None else finetune.to_dict(),
        formats=tuple(formats),
        versions={"autoprune": autoprune.__version__, "torch": str(torch.__version__)},
        id=new_id(),
    )
    check_crew(config, workers, executor)
    objects = handed_over(
        config,
        model=own,
        data=data,
        train=train,
        search=search,
        test=test,
        example_inputs=example_inputs,
        score=score,
        importance_loss=importance_loss,
    )
    begun, bench = begin(path, config, objects, progress)
    with begun, discarded_unless_prepared(begun):
        return _go_on(begun, bench, workers, executor, progress)


def resume(
    run: str | Path,
    *,
    trials: int | None = None,
    measure_latency: bool = False,
    storage: str | None = None,
    workers: int = 1,
    executor: str = "local",
    trust: bool = False,
    progress: Progress = NO_PROGRESS,
    **given: Unpack[HandedOver],
) -> Result:
    """Go on with a search that was stopped or killed, or add trials to one that is done.

    The result is that of a search that was never interrupted. What was handed over in Python must be handed over
    again; what was given by name is loaded again.

    Args:
        run: the run folder.
        trials: how many to add to the plan; None finishes the plan.
        measure_latency: measure the devices again, for the models that predict. Trials made with others stay.
        storage: URL of the storage that the run names, with the password that the run does not.
        workers, executor: as for `search`.
        trust: let a run from elsewhere run the code that its configuration names, now and later (docs/security.md).

    Raises:
        UserError: the folder cannot be used, or weights, data or model are not those the run began with.
    """
    check_alone("resume")
    if trials is not None and trials < 1:
        raise UserError(f"`trials`, how many to add, must be at least 1, but got {trials}.")
    if storage is not None:
        named, kept = Address.named(storage).shown, SearchConfig.read(Path(run)).storage
        if named != kept:
            where = "study.db in its folder" if kept is None else kept
            raise UserError(
                f"{run} keeps its trials in {where}, not in {named}. Leave --storage out, or name that one."
            )
    with Study.open(Path(run)) as study:
        check_crew(study.config, workers, executor)
        bench = rebuild_workbench(study.config, study.path, progress, trust=trust, **given)
        return _go_on(study, bench, workers, executor, progress, more=trials or 0, measure_again=measure_latency)


def _go_on(
    study: Study,
    bench: Workbench,
    workers: int,
    executor: str,
    progress: Progress,
    *,
    more: int = 0,
    measure_again: bool = False,
) -> Result:
    bench = settle_align(study, bench, progress)
    with bench.gauges:
        order = make_ready(study, bench, progress, measure_again=measure_again)
        if more:
            study.change(trials=study.config.trials + more)
        bench = with_prior(replace(bench, config=study.config), study, progress)
        study.share()
        with crew(study, workers, executor, progress):
            trials = run_trials(study, bench, order, progress)
        finished = usable(lambda: Finished.read(study.path), progress)
        if finished is None or finished.num_trials != len(trials) or not _is_whole(finished, study.path, progress):
            (study.path / FOLDER).mkdir(exist_ok=True)
            finished = finish(study, bench, progress)
    return Result(
        run=study.path, budget=bench.budget, dense=finished.dense, front=finished.points, trials=tuple(trials)
    )


def _is_whole(finished: Finished, run: Path, progress: Progress) -> bool:
    damage = finished.damage(run)
    if not (run / REPORT).is_file():
        damage[run / REPORT] = "is missing"
    for path, why in damage.items():
        progress.say(f"{path} {why}: the points are finished again.")
    return not damage


def _budget(budget: Budget | str | Iterable[str]) -> Budget:
    if isinstance(budget, Budget):
        return budget
    if not isinstance(budget, str):
        limits = list(budget) if isinstance(budget, Iterable) else [budget]
        if not all(isinstance(limit, str) for limit in limits):
            raise UserError(
                f"A budget is a limit or a list of limits, for example 'macs=0.5x' or ['macs=0.5x', 'latency=8ms'], "
                f"but got {budget!r}."
            )
        budget = limits
    return Budget.parse(budget)
