"""Measure how well each proxy ranks candidates: random subnets are scored by all of them, then fine-tuned shortly.

Candidate k, its order of batches and its augmentation are functions of (study seed, k). Every candidate is stored as
soon as it is done, so a measurement that is killed goes on where it was and ends with the same scores, bit for bit,
and one with more candidates only adds to what is there. Trials are neither read nor written.

Source of the question: Li et al. 2020, "EagleEye", arXiv:2007.02491, sec. 3.1, who first asked how accuracy as cut
correlates with accuracy after fine-tuning. Differs: more proxies, intervals, a verdict for the network at hand.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch

from autoprune import stopping
from autoprune.controller import MAX_FAILURES
from autoprune.correlation import MIN_PAIRS
from autoprune.data.rng import key_seed
from autoprune.documents import usable
from autoprune.evaluate import Evaluator
from autoprune.failures import describe_error
from autoprune.finetune import FineTune, FineTuneFailed, finetune
from autoprune.finish import report
from autoprune.finished import Finished
from autoprune.kl_table import KLTable
from autoprune.precision import device_of
from autoprune.preparing import ready_devices
from autoprune.profiling import usable_table
from autoprune.progress import NO_PROGRESS, Progress
from autoprune.proxy_file import FILE, FINETUNE, Measured, Record
from autoprune.proxy_report import ProxyReport, evaluate_proxies
from autoprune.recovery.ladder import RUNGS
from autoprune.running import EvaluationFailed, private_random
from autoprune.scores import DivergenceFromDense
from autoprune.search_spaces import Budget, SearchSpace, UserError
from autoprune.search_spaces.projection import check_budget
from autoprune.search_spaces.quantities import is_measured
from autoprune.search_spaces.types import Candidate
from autoprune.study import Study
from autoprune.workbench import HandedOver, Workbench, check_prepared, rebuild_workbench

if TYPE_CHECKING:
    from typing_extensions import Unpack

ScoreFunction: TypeAlias = Callable[[Evaluator, Sequence[Candidate]], Sequence[float]]
"""(evaluator of the study, candidates) -> a score for each, higher is better; a function of the candidate."""

FAILURES = (EvaluationFailed, FineTuneFailed, torch.linalg.LinAlgError)  # type: ignore[attr-defined]
"""What ends one candidate and not the measurement: it would happen again."""

_DRAW, _TUNE = 11, 12
"""Parts of the keys under which random numbers are drawn here and nowhere else."""

_STALE = 300
"""So many draws in a row that give no new candidate: a small space is taken to hold no more."""

_RUNG_LABELS = {
    "slice": "magnitude only",
    "recalibrate": "recalibrated",
    "compensate": "compensated",
    "repair": "repaired layer by layer",
}


@dataclass(frozen=True, slots=True)
class Proxy:
    """A way to score a candidate without training.

    Attributes:
        score: see `ScoreFunction`; it is called with one candidate at a time, which is also how its cost is measured.
        label: what it is, in words.
        option: of `autoprune search` that selects it; empty where there is none.
    """

    score: ScoreFunction
    label: str
    option: str = ""


def _from_table(table: KLTable) -> ScoreFunction:
    def score(evaluator: Evaluator, candidates: Sequence[Candidate]) -> list[float]:
        worst = np.finfo(np.float64).max  # a cut that broke the network was measured as infinite
        return [-min(float(value), worst) for value in table.predict(candidates)]

    return score


def proxies(evaluator: Evaluator) -> dict[str, Proxy]:
    """Every proxy of a study by name, the rungs of the ladder first, lowest first."""
    rungs = RUNGS if evaluator.calibration_samples else RUNGS[:1]
    found = {}
    for rung in rungs:
        label = _RUNG_LABELS.get(rung, rung)
        if rung == "slice" and evaluator.importance not in ("l1", "l2"):
            label = f"ranked by {evaluator.importance} only"
        found[rung] = Proxy(_on_rung(rung), label, f"--recovery {rung}")
    if evaluator.score_name != "kl":
        own = found[evaluator.recovery].label
        found["kl"] = Proxy(_Divergence(), f"{own}, minus KL to the dense model", "--score kl")
    return found


def proxy(
    run: str | Path,
    *,
    candidates: int = 24,
    epochs: int = 1,
    finetune_options: Mapping[str, Any] | None = None,
    kd: bool = True,
    budget: Budget | str | Iterable[str] | None = None,
    extra: Mapping[str, ScoreFunction] | None = None,
    trust: bool = False,
    progress: Progress = NO_PROGRESS,
    **given: Unpack[HandedOver],
) -> ProxyReport:
    """Measure whether the scores of a search rank candidates as a short fine-tuning does, and say so.

    Stored in the run folder; called again, it measures what is missing only. The report of a finished run is rewritten.

    Args:
        run: the run folder, finished or not.
        candidates: how many random ones to fine-tune, at least 5; those that are there already count.
        epochs: passes over the training split for each.
        finetune_options: settings of `FineTune` that differ from the run's own, or where it has none from the defaults.
        kd: whether the dense model is the teacher.
        budget: that the candidates keep; None for the run's.
        extra: further proxies of your own by name.
        trust: see `resume`.
        given: model, data, train, search, test, example_inputs, score: what the search was given in Python.
        progress: where to report to.

    Raises:
        UserError: the run, the budget or a setting cannot be used; figures under other settings are there; or fewer
            than 5 fine-tunings worked.
    """
    if candidates < MIN_PAIRS:
        raise UserError(f"A rank correlation needs at least {MIN_PAIRS} candidates, but got {candidates}.")
    if epochs < 1:
        raise UserError(f"The short fine-tuning takes at least 1 epoch, but got {epochs}.")
    with Study.open(Path(run)) as study:
        config = study.config
        limits = Budget.parse(config.budget) if budget is None else _budget(budget)
        settings = FineTune.from_dict({**(config.finetune or {}), **(finetune_options or {}), "epochs": epochs})
        check_prepared(config, study.path)
        bench = rebuild_workbench(config, study.path, progress, trust=trust, **given)
        if any(map(is_measured, limits.costs)):
            missing = [cost for cost in limits.costs if is_measured(cost) and cost not in bench.gauges.costs]
            if missing:
                raise UserError(
                    f"The run {run} knows nothing of {missing[0]}, since its own budget does not limit it. Give limits "
                    "on macs, params, size or memory."
                )
            ready_devices(bench, study, progress)
        session = _Session(study, bench, limits, settings, kd, dict(extra or {}), progress)
        found = session.run(candidates)
        finished = Finished.read(study.path)
        if finished is not None:
            report(finished, study, bench)
    return found


@dataclass
class _Session:
    """One call of `proxy`."""

    study: Study
    bench: Workbench
    budget: Budget
    settings: FineTune
    kd: bool
    extra: dict[str, ScoreFunction]
    progress: Progress
    proxies: dict[str, Proxy] = field(init=False)

    def __post_init__(self) -> None:
        self.proxies = proxies(self.bench.evaluator)
        table = usable_table(self.bench.evaluator, self.study.path)
        if table is not None:
            self.proxies["kl_table"] = Proxy(_from_table(table), "minus the sum of the KL table")
        for name, function in self.extra.items():
            if name in self.proxies or name == FINETUNE:
                raise UserError(f"There is a proxy called {name!r} already: give yours another name.")
            self.proxies[name] = Proxy(function, name)

    def run(self, wanted: int) -> ProxyReport:
        """Measure what is missing, store it, and return the figures."""
        path, space = self.study.path, self.bench.space
        measured = self.measured(wanted)
        drawn = draw(space, self.budget, max(wanted, len(measured.records)), seed=self.bench.config.seed)
        if len(drawn) < MIN_PAIRS:
            raise UserError(
                f"Under {self.budget} only {len(drawn)} different candidates were found, but a rank correlation needs "
                f"{MIN_PAIRS}. Give a looser --budget."
            )
        if len(drawn) < wanted:
            self.progress.say(f"Only {len(drawn)} different candidates were found under {self.budget}.")
        measured.planned = len(drawn)
        if [record.candidate for record in measured.records] != drawn[: len(measured.records)]:
            raise UserError(f"{path / FILE} holds other candidates than these settings give. Delete it, or restore it.")
        done = sum(self.is_whole(record) for record in measured.records)
        with self.progress.task("Measuring proxies", total=len(drawn), unit="candidates", done=done) as task:
            for number, candidate in enumerate(drawn):
                old = measured.records[number] if number < len(measured.records) else None
                if old is not None and self.is_whole(old):
                    continue
                measured.records[number : number + 1] = [self.measure(number, candidate, old)]
                measured.write(path)
                self.check(measured)
                task.advance()
                stopping.check()
        measured.write(path)
        found = evaluate_proxies(measured)
        if found is None:
            self.check(measured, limit=1)
            raise AssertionError("enough candidates, none of which failed")
        return found

    def measured(self, wanted: int) -> Measured:
        """What is there, made under these settings, or nothing yet."""
        config, evaluator = self.bench.config, self.bench.evaluator
        settings = {
            "budget": [str(limit) for limit in self.budget.limits],
            "seed": config.seed,
            "finetune": self.settings.to_dict(),
            "kd": self.kd,
            "score": config.score,
            "importance": config.importance,
            "importance_samples": config.importance_samples,
            "recovery": evaluator.recovery,
            "calibration_samples": config.calibration_samples,
            "precision": evaluator.precision,
        }
        described = {name: (entry.label, entry.option) for name, entry in self.proxies.items()}
        found = usable(lambda: Measured.read(self.study.path), self.progress, "it is measured again")
        if found is None:
            return Measured(
                settings=settings,
                fingerprints=dict(config.fingerprints),
                planned=wanted,
                num_samples=self.bench.data.search.num_samples,
                own=evaluator.recovery,
                proxies=described,
            )
        path = self.study.path / FILE
        if found.fingerprints != config.fingerprints:
            raise UserError(f"{path} belongs to other weights or data. Delete it to measure again.")
        for name, value in settings.items():
            if found.settings.get(name) != value:
                raise UserError(
                    f"{path} was measured with {name} = {_shown(found.settings.get(name))}, not {_shown(value)}: give "
                    "the same settings to go on with it, or delete it to measure again."
                )
        found.proxies |= described
        return found

    def is_whole(self, record: Record) -> bool:
        """Whether a record says all there is to know of its candidate."""
        return self.proxies.keys() <= record.scores.keys() and (record.truth is not None or record.message is not None)

    def measure(self, number: int, candidate: Candidate, old: Record | None) -> Record:
        """Score a candidate by every proxy that has not scored it yet, and fine-tune it unless that was done."""
        evaluator = self.bench.evaluator
        scores = {} if old is None else dict(old.scores)
        seconds = {} if old is None else dict(old.seconds)
        for name, entry in self.proxies.items():
            if name in scores:
                continue
            start = time.perf_counter()
            scores[name] = _scored(name, entry.score, evaluator, candidate)
            seconds[name] = time.perf_counter() - start
        if old is not None:
            return Record(**{**vars(old), "scores": scores, "seconds": seconds})
        truth, improved, message = None, True, None
        start = time.perf_counter()
        try:
            tuned = finetune(
                evaluator.subnet(candidate),
                self.bench.data,
                self.settings,
                teacher=self.bench.space.model if self.kd else None,
                seed=key_seed(self.bench.config.seed, _TUNE, number),
                last=True,  # the best one may be the start, whose score is that of the study's own proxy
                progress=self.progress,
                description=f"Fine-tuning candidate {number}",
            )
            improved = tuned.score_after >= tuned.score_before
            truth = evaluator.score(tuned.model)
        except FAILURES as error:
            message = str(error) if isinstance(error, FineTuneFailed) else describe_error(error)
            self.progress.say(f"Candidate {number} failed: {message}")
        seconds[FINETUNE] = time.perf_counter() - start
        return Record(
            number=number,
            candidate=candidate,
            scores=scores,
            truth=truth,
            improved=improved,
            seconds=seconds,
            message=message,
        )

    def check(self, measured: Measured, limit: int = MAX_FAILURES) -> None:
        """Give up where nothing works, or too little did."""
        failed = [record for record in measured.records if record.truth is None]
        worked = len(measured.records) - len(failed)
        if len(failed) >= limit and worked < (1 if limit > 1 else MIN_PAIRS):
            raise UserError(
                f"{len(failed)} of {len(measured.records)} fine-tunings failed, the last with: {failed[-1].message} "
                f"Delete {self.study.path / FILE} and try other settings (--finetune-arg lr=...)."
            )


def draw(space: SearchSpace, budget: Budget, count: int, *, seed: int) -> list[Candidate]:
    """At most `count` different candidates within the budget: wishes uniform in [0, 1] per group, projected onto it.

    The first of a longer list are those of a shorter one. There are fewer where the space seems to hold no more.

    Raises:
        UserError: no subnet keeps the budget.
    """
    check_budget(space, budget)
    found: dict[Candidate, int] = {}
    attempt = stale = 0
    while len(found) < count and stale < _STALE:
        wishes = np.random.default_rng(key_seed(seed, _DRAW, attempt)).random(len(space.groups))
        last = found.setdefault(space.project(wishes.tolist(), budget), attempt)
        stale = 0 if last == attempt else stale + 1
        attempt += 1
    return list(found)


def _on_rung(rung: str) -> ScoreFunction:
    def score(evaluator: Evaluator, candidates: Sequence[Candidate]) -> list[float]:
        return [evaluator.score(evaluator.network(candidate, rung, share=True)) for candidate in candidates]

    return score


class _Divergence:
    """Minus the mean KL(dense || subnet) on the search split, subnets on the rung of the study."""

    def __init__(self) -> None:
        self._from_dense: DivergenceFromDense | None = None

    def __call__(self, evaluator: Evaluator, candidates: Sequence[Candidate]) -> list[float]:
        dense = evaluator.space.model
        if self._from_dense is None:
            self._from_dense = DivergenceFromDense(dense, evaluator.precision)
        scores = []
        for candidate in candidates:
            network = evaluator.network(candidate, share=True)
            with private_random(device_of(dense), evaluator.seed, 1):
                scores.append(self._from_dense(network, evaluator.data.search))
        return scores


def _scored(name: str, function: ScoreFunction, evaluator: Evaluator, candidate: Candidate) -> float | None:
    """The score of one candidate; None where it has none.

    Raises:
        UserError: a proxy of the user's gave no number.
    """
    try:
        values = function(evaluator, [candidate])
    except FAILURES:
        return None
    try:
        (value,) = values
        number = float(value)
    except (TypeError, ValueError):
        raise UserError(
            f"The proxy {name!r} must return one number for each candidate, but for one it returned {values!r}."
        ) from None
    return number if math.isfinite(number) else None


def _budget(budget: Budget | str | Iterable[str]) -> Budget:
    return budget if isinstance(budget, Budget) else Budget.parse(budget)


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}={part}" for name, part in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
