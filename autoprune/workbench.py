"""Everything a search works with, put together from its configuration: model, data, space, evaluator, budget.

What the configuration cannot hold, the caller hands over again; `check_same` then makes sure that it is the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import torch
from torch import nn

from autoprune.agents.table import Table
from autoprune.align import resolve_align
from autoprune.config import FROM_PYTHON, SearchConfig
from autoprune.data import Data, data_from_loaders, load_data, to_device
from autoprune.evaluate import SCORES, Evaluator
from autoprune.gauges import Gauges, make_gauges
from autoprune.importance import Loss, rank_units, reads_data
from autoprune.importing import import_function
from autoprune.models import ModelSource, input_channels
from autoprune.precision import device_of
from autoprune.progress import NO_PROGRESS, Progress
from autoprune.scores import Score
from autoprune.search_spaces import CRITERIA, Budget, SearchSpace, UserError, trace
from autoprune.search_spaces.errors import unknown
from autoprune.trust import check_trusted

if TYPE_CHECKING:
    from typing_extensions import Unpack


@dataclass(frozen=True, kw_only=True)
class Objects:
    """What the caller handed over in Python; None for what the configuration names."""

    model: nn.Module | None = None
    data: Data | None = None
    example_inputs: Any = None
    score: Score | None = None
    importance_loss: Loss | None = None


@dataclass(frozen=True, kw_only=True)
class Workbench:
    """The parts of one search, ready for use.

    Attributes:
        config: the settings, what ``auto`` stood for in `align` included.
        score: name or function by which candidates are scored.
        source: how the dense model is built again; None for a module from Python.
        gauges: of the costs that have to be measured; without a limit on one, of the first runtime only.
        objects: what it was made from, model and data included, whether loaded or handed over.
        prior: losses of cuts by group and level, for the agent; None where it has none.
    """

    config: SearchConfig
    score: str | Score
    source: ModelSource | None
    data: Data
    space: SearchSpace
    evaluator: Evaluator
    budget: Budget
    gauges: Gauges
    objects: Objects
    prior: Table | None = None


def make_workbench(config: SearchConfig, objects: Objects) -> Workbench:
    """Build, load and trace.

    Raises:
        UserError: something cannot be found, does not fit the rest, or was handed over in Python and is missing now.
    """
    budget = Budget.parse(config.budget)
    if config.importance not in CRITERIA:
        raise unknown("importance", config.importance, CRITERIA)
    score = objects.score or _score(config.score)
    source = None if config.model is None else ModelSource(config.model, config.model_args, config.weights)
    model = objects.model
    if model is None:
        if source is None:
            raise _missing("a module", "model=...")
        model = source.build().to(usable_device(config.device))
    data = objects.data
    if data is None:
        if config.data is None:
            raise _missing("data loaders", "train=... or data=...")
        # Not split by the study's seed: a study with another seed must not score on what the dense model learnt from.
        data = load_data(
            config.data,
            root=config.data_root,
            search_size=config.search_size,
            batch_size=config.batch_size,
            channels=input_channels(model),
        )
    example = objects.example_inputs
    if example is None:
        example = to_device(data.example(config.latency_batch), device_of(model))
    config = replace(config, align=resolve_align(config))
    space = trace(model, example, align=int(config.align))
    evaluator = Evaluator(
        space,
        data,
        score=score,
        importance=config.importance,
        recovery=config.recovery,
        calibration_samples=config.calibration_samples,
        seed=config.seed,
        precision=config.precision,
    )
    return Workbench(
        config=config,
        score=score,
        source=source,
        data=data,
        space=space,
        evaluator=evaluator,
        budget=budget,
        gauges=make_gauges(config, budget, space),
        objects=replace(objects, model=model, data=data, example_inputs=example),
    )


class HandedOver(TypedDict, total=False):
    """What a search was given in Python and no file can hold: handed over again by all that goes on with its run."""

    model: nn.Module | None
    data: Data | str | None
    train: Iterable[Any] | None
    search: Iterable[Any] | None
    test: Iterable[Any] | None
    example_inputs: Any
    score: str | Score | None
    importance_loss: Loss | None


def handed_over(config: SearchConfig, **given: Unpack[HandedOver]) -> Objects:
    """Collect what was given in Python, loaders as a `Data`; what was given by name is in the configuration.

    Raises:
        TypeError: something else was given.
        UserError: data is given twice or in part, or the loaders cannot be used.
    """
    for name in given:
        if name not in HandedOver.__annotations__:
            raise TypeError(f"unexpected keyword argument {name!r}; known: {', '.join(HandedOver.__annotations__)}")
    data, train = given.get("data"), given.get("train")
    search, test = given.get("search"), given.get("test")
    score = given.get("score")
    own = data if isinstance(data, Data) else None
    if train is not None:
        if data is not None:
            raise UserError("Give either `data` or the loaders `train`, `search`, `test`, not both.")
        own = data_from_loaders(train, search, test, search_fraction=config.search_size)
    elif search is not None or test is not None:
        raise UserError("Loaders for `search` or `test` need one for `train` beside them.")
    return Objects(
        model=given.get("model"),
        data=own,
        example_inputs=given.get("example_inputs"),
        score=None if isinstance(score, str) else score,
        importance_loss=given.get("importance_loss"),
    )


def rebuild_workbench(
    config: SearchConfig,
    run: Path,
    progress: Progress = NO_PROGRESS,
    *,
    where: str = "",
    own: Collection[str] = (),
    trust: bool = False,
    **given: Unpack[HandedOver],
) -> Workbench:
    """As `make_workbench`, for a run that exists; `given` is what the search was given in Python.

    `where` says, for messages, where the run is found, empty for its folder; `own` names settings that the user of this
    process gave, which need no trust.

    Every command that goes on with a run comes through here, so here it is asked whether the run is trusted. Of a run
    that is still being prepared, the units may not be ranked yet, and the space may change with `align`.

    Raises:
        UserError: also where model, weights or data are not those the run began with, and where the configuration
            names what runs code or lies elsewhere, and nobody trusts it: see `trust`.
    """
    objects = handed_over(config, **given)
    nothing: dict[str, Any] = dict.fromkeys(own)
    check_trusted(replace(_without(config, objects), **nothing), where or str(run), trust=trust)
    bench = make_workbench(config, objects)
    check_same(config.fingerprints, fingerprints(bench), where or str(run))
    if config.prepared and reads_data(config.importance):
        rank_units(bench.space, bench.data, config, run, loss=objects.importance_loss, progress=progress)
    return bench


def _without(config: SearchConfig, objects: Objects) -> SearchConfig:
    """The configuration without what the caller hands over instead, and without what was asked for already."""
    config = replace(config, storage=None)  # when the study was opened
    if objects.model is not None:
        config = replace(config, model=None, model_args={}, weights=None)
    if objects.data is not None:
        config = replace(config, data=None, data_root=None)
    return config if objects.score is None else replace(config, score=FROM_PYTHON)


def check_prepared(config: SearchConfig, run: Path) -> None:
    """Refuse to work on a run that was stopped before its first trial could begin.

    Raises:
        UserError: saying how to go on.
    """
    if not config.prepared:
        raise UserError(f"{run} was stopped before its first trial. Go on with it first: autoprune resume {run}.")


def usable_device(name: str) -> str:
    """Resolve ``auto``, and refuse a device that is not here.

    Raises:
        UserError: no such device.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("cpu", "cuda"):
        raise unknown("device", name, ["auto", "cpu", "cuda"])
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("The device 'cuda' is not available here. Choose device 'cpu', or run where there is a GPU.")
    return name


def fingerprints(workbench: Workbench) -> dict[str, str]:
    """Digests of what a resumed search must find unchanged."""
    return {
        "space": workbench.space.fingerprint,
        "weights": weights_fingerprint(workbench.space.model),
        "data": workbench.data.fingerprint,
    }


def weights_fingerprint(model: nn.Module) -> str:
    """Hex digest of the names, types and values of all parameters and buffers."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(repr((name, tensor.dtype, tuple(tensor.shape))).encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def check_same(before: Mapping[str, str], now: Mapping[str, str], run: Path | str) -> None:
    """Refuse to go on with a run whose weights, data or model are not those it began with.

    Raises:
        UserError: naming what changed.
    """
    described = {
        "weights": "The dense weights are not those",
        "data": "The data (its name, size, split or first batch) is not the data",
        "space": "The model's prunable groups or parameter shapes are not those",
    }
    for name in described:
        if before.get(name) != now[name]:
            raise UserError(
                f"{described[name]} that {run} began with: its trials would not be comparable with new ones. "
                "Restore what was changed (see config.toml), or start a new run."
            )


def _score(name: str) -> str | Score:
    if name in SCORES:
        return name
    if name == FROM_PYTHON:
        raise _missing("a scoring function", "score=...")
    if ":" in name:
        return import_function(name, "score")
    raise unknown("score", name, [*SCORES, "package.module:function"])


def _missing(what: str, argument: str) -> UserError:
    return UserError(
        f"This run was started from Python with {what}, which no file can hold. Go on from Python and hand it over "
        f"again: autoprune.resume(run, {argument})."
    )
