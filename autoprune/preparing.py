"""Before the first trial: find out that a search can work, and measure what is the same for all of its trials.

`check` is cheap and comes before there is a run folder. The rest goes step by step: each looks into the run folder
first, and stores there what it had to find out, long ones piece by piece. So a search that is killed goes on in the
middle of any of them, and one that is resumed later does nothing but read.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from autoprune import stopping
from autoprune.align import needs_steps, resolve_align, worthwhile_steps
from autoprune.bounds import ORDER, load_order, save_order
from autoprune.config import SearchConfig
from autoprune.documents import usable
from autoprune.failures import describe_error, disk_error
from autoprune.importance import describe_importance, rank_units, reads_data, scores_digest
from autoprune.keeping import TRIALS, Keeper
from autoprune.measure.device_profile import DeviceProfile
from autoprune.measure.race import TooNoisy
from autoprune.progress import Progress
from autoprune.races import check_race
from autoprune.search_spaces.budget import Budget
from autoprune.search_spaces.errors import UserError
from autoprune.search_spaces.projection import check_budget
from autoprune.search_spaces.types import Candidate
from autoprune.searching import make_seats
from autoprune.study import Study
from autoprune.tables import format_score
from autoprune.verifying import forget_verified
from autoprune.workbench import Workbench, fingerprints, make_workbench

DEVICE = Path("profile") / "device.json"
"""What a run folder keeps of devices while they are measured, where no file for several searches was named."""


def check(bench: Workbench, progress: Progress) -> None:
    """Find out that the search can work, the cheapest check first, as far as nothing has to be measured for it."""
    unmeasured = tuple(limit for limit in bench.budget.limits if limit.cost not in bench.gauges.costs)
    if unmeasured:
        _check_tightest(bench, Budget(unmeasured))
    budget = Budget(unmeasured) if unmeasured else Budget.parse("macs=1x")
    make_seats(replace(bench, budget=budget, config=replace(bench.config, sweep=(1.0,))))  # options of the agent
    if bench.config.bounds == "statistical":
        check_race(bench.evaluator, ())  # the order is found later
    score_dense = _score_dense(bench)  # model, data and score fit each other, or this says why not
    unweighted = bench.source is not None and bench.source.weights is None
    progress.say(
        f"The dense model scores {format_score(bench.config.score, score_dense)} on the search split"
        + (", with the weights its constructor gave it: none were named." if unweighted else ".")
    )


def settle_align(study: Study, bench: Workbench, progress: Progress) -> Workbench:
    """The workbench with levels in multiples of the runtime's channel step, where ``auto`` leaves that open."""
    if study.config.align != "auto":
        return bench
    steps = {}
    if needs_steps(study.config):
        runtimes = [gauge.runtime for gauge in bench.gauges.budgeted]
        profile = device_profile(study.config, study.path, progress)
        steps = worthwhile_steps(bench.space, runtimes, profile, progress)
    align = resolve_align(study.config, steps)
    if align != bench.config.align:
        bench = make_workbench(replace(bench.config, align=align), bench.objects)
    study.change(align=align, fingerprints=fingerprints(bench))
    return bench


def make_ready(study: Study, bench: Workbench, progress: Progress, *, measure_again: bool = False) -> list[int] | None:
    """Rank the units, learn the devices, order the samples, settle what is ``auto``: all that trials need.

    Args:
        bench: of `settle_align`; its gauges, its space and its evaluator are made ready.
        measure_again: learn the devices anew.

    Returns:
        The order in which samples of the search split are read; None where it cannot be chosen.

    Raises:
        UserError: the search cannot work.
    """
    config, prepared = study.config, study.config.prepared
    bench.gauges.lend = study.lend
    if reads_data(config.importance) and not prepared:  # else `rebuild_workbench` did it
        loss = bench.objects.importance_loss
        rank_units(bench.space, bench.data, config, study.path, loss=loss, progress=progress)
        digest = scores_digest(bench.space, config.importance)
        study.change(fingerprints={**study.config.fingerprints, "importance": digest})
        progress.say(f"Units ranked by {describe_importance(config.importance, config.importance_samples)}.")
        stopping.check()
    if bench.gauges.costs:
        ready_devices(bench, study, progress, again=measure_again)
        if not prepared:
            _check_tightest(bench, bench.budget)
    uniform = make_seats(bench)[0].agent.uniform()
    order = read_hardest_first(bench, uniform, study.path, progress)
    if not prepared:
        if config.bounds == "statistical":
            check_race(bench.evaluator, order)
        stopping.check()
        # What "auto" came to is written down: on a machine that decides otherwise a resumed search would mix scores.
        study.change(measure_trials=_settle_measuring(bench, uniform, progress), prepared=True)
    return order


def ready_devices(bench: Workbench, study: Study, progress: Progress, *, again: bool = False) -> None:
    """Let the space tell the costs that a trace cannot tell: by what the run folder holds of the devices, or by
    measuring them.

    Trials that were made with other measurements stay; nothing more is learnt from these.

    Args:
        again: measure, whatever it holds.

    Raises:
        UserError: it holds what was learnt of another device.
    """
    gauges, run = bench.gauges, study.path
    if again and study.config.device_profile is None:
        (run / DEVICE).unlink(missing_ok=True)
    missing = gauges.budgeted if again else gauges.load(bench.space, run, progress)
    if missing and study.config.prepared:
        progress.say(f"Measuring again what predicts latency on {', '.join(gauge.device for gauge in missing)}.")
        forget_verified(run)
        study.change(readings_from=1 + max((trial.number for trial in study.trials), default=-1))
    if missing:
        profile = device_profile(study.config, run, progress)
        gauges.learn_devices(missing, bench.space, bench.config, run, profile, progress)
    gauges.add_costs(bench.space, bench.config.latency_confidence)


def load_devices(bench: Workbench, run: Path, progress: Progress) -> None:
    """As `ready_devices`, for those who only take part: nothing is measured.

    Raises:
        UserError: the run folder does not hold what is needed, or what was learnt of another device.
    """
    missing = bench.gauges.load(bench.space, run, progress)
    if missing:
        raise UserError(
            f"{run} does not hold what predicts latency on {missing[0].device}. Measure it: autoprune resume {run}."
        )
    bench.gauges.add_costs(bench.space, bench.config.latency_confidence)


def device_profile(config: SearchConfig, run: Path, progress: Progress) -> DeviceProfile:
    """The file that keeps what is learnt about devices: the one that was named, or the run's own."""
    return DeviceProfile(run / DEVICE if config.device_profile is None else config.device_profile, progress=progress)


def read_hardest_first(bench: Workbench, uniform: Candidate, run: Path, progress: Progress) -> list[int] | None:
    """Let the evaluator read the search split hardest samples first; return the order, None where it cannot.

    Hardest for the `uniform` candidate of the budget: see docs/bounds.md. The order is fixed before the first trial and
    kept in the run folder. One that is missing or damaged there is made again: weights, data and settings are those
    that it was made from. It is used without bounds too, since in other batches the last bits of a score may be others.
    """
    order = usable(lambda: load_order(run), progress)
    if order is not None:
        try:
            bench.evaluator.use_order(order)
            return order
        except UserError as error:
            progress.say(f"{run / ORDER} is damaged: {error} It is made again.")
    try:
        order = bench.evaluator.hardest_first(uniform)
    except UserError:
        raise
    except Exception as error:  # the user's model fails on this candidate: the trials will say so, in any order
        if disk_error(error):
            raise
        stopping.check()  # which reaches the processes that load data as well
        return None
    if order is not None:
        bench.evaluator.use_order(order)
        save_order(run, order)
    return order


def _settle_measuring(bench: Workbench, uniform: Candidate, progress: Progress) -> str:
    """``on`` or ``off``: whether trials are measured, where the configuration leaves that open."""
    config = bench.config
    if not bench.gauges.costs:
        return "off"
    if config.measure_trials != "auto":
        return config.measure_trials
    keeper = Keeper(bench.space, bench.gauges, accuracy=TRIALS * config.latency_accuracy)
    try:
        seconds = [_seconds(lambda: keeper.measure(uniform)), _seconds(lambda: bench.evaluator.evaluate(uniform))]
    except TooNoisy:
        return "off"
    except UserError:
        raise
    except Exception as error:  # the user's model fails on this candidate: the trials will say so
        if disk_error(error):
            raise
        stopping.check()  # which reaches the processes that load data as well
        return "off"
    measured = seconds[0] < seconds[1]
    progress.say(
        f"Candidates are {'' if measured else 'not '}measured before they are scored: measuring one takes "
        f"{seconds[0]:.2g} s, scoring {seconds[1]:.2g} s."
    )
    return "on" if measured else "off"


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


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
