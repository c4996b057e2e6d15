"""Measure the KL table of a study: one group at a time, written down after each.

Every subnet goes through the pipeline that scores candidates (slice, then the study's recovery). Samples are of the
training split, un-augmented, another draw than what recovery reads, so that a repair is not judged by what it was
fitted to; never of the search or test split.

A table depends on weights, space, data and settings. They are in its fingerprint; with another one it is measured anew.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from autoprune import stopping
from autoprune.data.base import Inputs, batch_size_of, forward
from autoprune.divergences import Divergence, choose, compare
from autoprune.documents import Damaged, usable
from autoprune.estimate import estimate
from autoprune.evaluate import Evaluator
from autoprune.failures import describe_error
from autoprune.kl_table import KLTable, bends, spread
from autoprune.memory import Halving, join, smallest_batch
from autoprune.precision import autocast, device_of, prepare
from autoprune.progress import NO_PROGRESS, Progress
from autoprune.recalibrate import counted, estimating
from autoprune.recovery.ladder import RUNGS
from autoprune.reuse import Shared, can_be_watched
from autoprune.running import private_random
from autoprune.search_spaces import SearchSpace, UserError
from autoprune.search_spaces.runs import without_own_storage
from autoprune.search_spaces.tracer import tensors
from autoprune.search_spaces.types import Candidate
from autoprune.study import Study
from autoprune.workbench import HandedOver, check_prepared, rebuild_workbench, weights_fingerprint

if TYPE_CHECKING:
    from typing_extensions import Unpack

TABLE = Path("profile") / "kl.json"
"""Where a run folder keeps its KL table."""

MEMORY = 2**30
"""Bytes of the dense network's activations in one batch, and of all its outputs, that may be held."""

TOGETHER = 8
"""Subnets of a group that share one run of the dense network, and are held at once."""

MAX_OVERHEAD = 0.25
"""Share of a network's seconds that watching its ops may cost; with more, the ops are too small to share."""


def profile(
    run: str | Path,
    *,
    levels: int | str = "all",
    samples: int = 1024,
    divergence: str | Divergence = "auto",
    trust: bool = False,
    progress: Progress = NO_PROGRESS,
    **given: Unpack[HandedOver],
) -> KLTable:
    """Measure the KL table of a run, or go on where that was stopped; what is measured already is read.

    What was handed over in Python when the run began must be handed over again, as for `resume`.

    Args:
        run: the run folder; the table is written to its ``profile/kl.json``.
        levels, samples, divergence: see `measure_table`.
        trust: see `resume`.

    Raises:
        UserError: the folder cannot be used, weights, data or model are not those the run began with, or a setting
            is wrong.
    """
    with Study.open(Path(run)) as study:
        check_prepared(study.config, study.path)
        bench = rebuild_workbench(study.config, study.path, progress, trust=trust, **given)
        return measure_table(
            bench.evaluator,
            levels=levels,
            samples=samples,
            divergence=divergence,
            path=study.path / TABLE,
            progress=progress,
        )


def measure_table(
    evaluator: Evaluator,
    *,
    levels: int | str = "all",
    samples: int = 1024,
    divergence: str | Divergence = "auto",
    path: Path | None = None,
    share: bool | None = None,
    progress: Progress = NO_PROGRESS,
) -> KLTable:
    """Measure how much each cut hurts by itself.

    Args:
        evaluator: cuts and recovers the subnets, on the rung of its study.
        levels: "all"; a number, so many levels of every group, evenly spread; or "auto", those where a second-order
            estimate bends. Levels in between are interpolated, with "auto" along the estimate.
        samples: training samples that outputs are compared on.
        divergence: one of `divergences.DIVERGENCES`, or a function (dense output, output) -> numbers.
        path: read if it is there and whole, and written after every group; None keeps the table in memory.
        share: subnets take over what they have in common with the dense network, which changes no bit. None does so
            where it saves time, True wherever it can, False nowhere.

    Raises:
        UserError: a wrong setting, no sample, or a file at `path` that a newer release wrote.
    """
    space = evaluator.space
    if not isinstance(space, SearchSpace):
        raise UserError("A KL table needs a space that `autoprune.trace` made.")
    _check(levels, samples)
    batches = list(evaluator.data.train.draw(samples, evaluator.data.seed + 1))
    meter = Meter(evaluator, space, batches, divergence, share=share)
    settings = meter.settings()
    fingerprint = _fingerprint(evaluator, space, settings)
    table = KLTable.empty(space.groups, settings, fingerprint)
    before = None if path is None else usable(partial(KLTable.load, path), progress, "it is measured again")
    if before is not None:
        if before.fingerprint == fingerprint:
            table = before
        else:
            progress.say(f"{path} is of other weights, data or settings: it is measured anew.")
    if levels == "auto":
        if table.estimate is None:
            table = replace(table, estimate=estimate(evaluator, space, meter.batches, meter.name))
    else:
        table = replace(table, estimate=None)
    wanted = [_wanted(table, group, levels) for group in range(len(table.groups))]
    missing = [[k for k in chosen if k not in table.measured[g]] for g, chosen in enumerate(wanted)]
    total, left = sum(map(len, wanted)), sum(map(len, missing))
    with progress.task("Profiling", total=total, unit="levels", done=total - left) as task:
        for group, todo in enumerate(missing):
            if todo:
                found = meter.measure([_one_cut(space, group, level) for level in todo])
                table = table.with_measured(group, dict(zip(todo, found, strict=True)))
                if path is not None:
                    table.save(path)
                    stopping.check()
                task.advance(len(todo), note=table.groups[group])
    if path is not None and not left:
        table.save(path)  # another choice of levels
    return table


class Meter:
    """Measures subnets against the dense network, on the same batches.

    Attributes:
        name: of the divergence.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        space: SearchSpace,
        batches: list[tuple[Inputs, Any]],
        divergence: str | Divergence,
        *,
        share: bool | None,
    ) -> None:
        if not batches:
            raise UserError("A KL table needs training samples, but there are none.")
        self.batches = batches
        self._evaluator, self._space, self._divergence = evaluator, space, divergence
        self._device = device_of(space.model)
        self._model = without_own_storage(space.model).eval()
        self._halving = Halving(smallest_batch(self._model))
        self._outputs: dict[int, Any] = {}
        self._room = MEMORY
        self._can_share = share is not False and evaluator.recovery in RUNGS[:2] and not evaluator.replaces_steps
        self._always = share is True
        try:
            self.name = choose(divergence, self._dense(0), batches[0][1])
        except UserError:
            raise
        except Exception as error:  # the user's model runs in here
            raise UserError(f"The dense model does not run on the training samples: {describe_error(error)}") from error

    def settings(self) -> dict[str, Any]:
        """What the values depend on, beside weights, space and data."""
        return {
            "divergence": self.name,
            "split": "train",
            "samples": sum(batch_size_of(inputs) for inputs, _ in self.batches),
            "recovery": self._evaluator.recovery,
            "calibration_samples": self._evaluator.calibration_samples,
            "importance": self._evaluator.importance,
            "precision": self._evaluator.precision,
            "seed": self._evaluator.seed,
        }

    def measure(self, candidates: Sequence[Candidate]) -> list[float]:
        """The divergence of every candidate."""
        found: list[float] = []
        for start in range(0, len(candidates), TOGETHER):
            part = candidates[start : start + TOGETHER]
            if self._can_share:
                try:
                    if self._is_checked:
                        found += self._together(part)
                        continue
                except UserError:
                    raise
                except Exception:  # random numbers, or code that does not run under a dispatch mode: then one by one
                    self._can_share = False
            found += [self._alone(candidate) for candidate in part]
        return found

    def _alone(self, candidate: Candidate) -> float:
        network = self._evaluator.network(candidate, share=True).eval()
        halving = Halving(smallest_batch(network))
        return self._compared(lambda index: [self._fitted(network, index, halving)], 1)[0]

    def _together(self, candidates: Sequence[Candidate]) -> list[float]:
        reference, *networks = (
            self._evaluator.network(candidate, "slice", share=True).eval()
            for candidate in (self._space.dense, *candidates)
        )
        pays = True
        if self._evaluator.recovery == "recalibrate" and self._evaluator.num_norms:
            shared = Shared(reference, networks, MEMORY, always=self._always)
            with ExitStack() as stack:
                for network in (reference, *networks):
                    stack.enter_context(estimating(network))
                for batch in self._calibration:
                    inputs = self._prepared(batch)
                    shared(partial(self._forward, inputs=inputs), inputs)
            self._note(shared)
            pays = shared.pays  # if not, the reference has not all of its statistics
        if not pays:
            return self._compared(lambda index: [self._run(network, index) for network in networks], len(networks))
        shared = Shared(reference, networks, MEMORY, always=self._always)

        def run(index: int) -> list[Any]:
            inputs = self._prepared(self.batches[index][0])
            return shared(lambda network: self._run(network, index, inputs), inputs)

        found = self._compared(run, len(networks))
        self._note(shared)
        return found

    @cached_property
    def _is_checked(self) -> bool:
        return can_be_watched(lambda: self._run(self._model, 0), self._dense(0))

    def _note(self, shared: Shared) -> None:
        if shared.overhead > MAX_OVERHEAD and not self._always:
            self._can_share = False

    def _compared(self, run: Callable[[int], list[Any]], num: int) -> list[float]:
        """Mean divergence of the outputs that `run` gives for a batch, of `num` networks."""
        totals, count = [0.0] * num, 0
        for index, (inputs, _) in enumerate(self.batches):
            size = batch_size_of(inputs)
            count += size
            dense = self._dense(index)
            for which, output in enumerate(run(index)):
                totals[which] += size * compare(self.name, self._divergence, dense, output)
        return [total / count for total in totals]

    def _dense(self, index: int) -> Any:
        """Output of the dense network for a batch; held as far as there is room."""
        if index in self._outputs:
            return self._outputs[index]
        output = self._fitted(self._model, index, self._halving)
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors(output))
        if size <= self._room:
            self._room -= size
            self._outputs[index] = output
        return output

    def _fitted(self, network: nn.Module, index: int, halving: Halving) -> Any:
        """As `_run`, in parts where the whole batch does not fit in memory."""
        inputs = self.batches[index][0]
        return halving(lambda: join([self._run(network, index, self._prepared(p)) for p in halving.parts(inputs)]))

    def _run(self, network: nn.Module, index: int, inputs: Any = None) -> Any:
        """Output of a network for a batch; what it draws at random depends on the batch only."""
        inputs = self._prepared(self.batches[index][0]) if inputs is None else inputs
        with private_random(self._device, self._evaluator.seed, 3, index):
            return self._forward(network, inputs=inputs)

    def _forward(self, network: nn.Module, inputs: Any) -> Any:
        with torch.no_grad(), autocast(self._evaluator.precision, self._device):
            return forward(network, inputs)

    def _prepared(self, inputs: Inputs) -> Any:
        return prepare(inputs, self._device, self._evaluator.precision)

    @cached_property
    def _calibration(self) -> Sequence[Inputs]:
        return counted(self._evaluator.data.calibration(self._evaluator.calibration_samples))


def _check(levels: int | str, samples: int) -> None:
    if samples < 1:
        raise UserError(f"`samples >= 1` must hold, but got {samples}.")
    if isinstance(levels, str) and levels not in ("all", "auto"):
        raise UserError(f"Levels are 'all', 'auto' or a number from 1 on, but got {levels!r}.")
    if isinstance(levels, int) and levels < 1:
        raise UserError(f"Levels are 'all', 'auto' or a number from 1 on, but got {levels}.")


def _wanted(table: KLTable, group: int, levels: int | str) -> list[int]:
    units = table.levels[group]
    if levels == "auto":
        assert table.estimate is not None
        return bends(units, table.estimate[group])
    return spread(len(units), len(units) if levels == "all" else int(levels))


def usable_table(evaluator: Evaluator, run: Path) -> KLTable | None:
    """The table that `run` keeps, if every group was measured and it is of this model, data and pipeline."""
    space = evaluator.space
    if not isinstance(space, SearchSpace):
        return None
    try:
        table = KLTable.load(run / TABLE)
    except Damaged:
        return None
    same = table.fingerprint == _fingerprint(evaluator, space, table.settings)
    return table if same and all(table.measured) else None


def _one_cut(space: SearchSpace, group: int, level: int) -> Candidate:
    return (*space.dense[:group], level, *space.dense[group + 1 :])


def _fingerprint(evaluator: Evaluator, space: SearchSpace, settings: Mapping[str, Any]) -> str:
    ranking = hashlib.sha256()
    for order in space.ranking(evaluator.importance):
        ranking.update(order.tobytes())
    parts = [
        weights_fingerprint(space.model),
        space.fingerprint,
        evaluator.data.fingerprint,
        ranking.hexdigest(),
        evaluator.score_name if evaluator.replaces_steps else "",
        settings,
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
