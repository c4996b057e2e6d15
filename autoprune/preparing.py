"""Before the first trial: find out that a search can work, and measure what is the same for all of its trials."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from autoprune.align import measured_align
from autoprune.bounds import ORDER, load_order, save_order
from autoprune.config import SearchConfig
from autoprune.failures import describe_error
from autoprune.importance import Loss, collect, describe_importance, reads_data, save_scores
from autoprune.keeping import TRIALS, Keeper
from autoprune.measure.race import TooNoisy
from autoprune.progress import Progress
from autoprune.search_spaces.budget import Budget
from autoprune.search_spaces.errors import UserError
from autoprune.search_spaces.projection import check_budget
from autoprune.search_spaces.types import Candidate
from autoprune.tables import format_score
from autoprune.workbench import Objects, Workbench, make_workbench


def prepare(bench: Workbench, loss: Loss | None, progress: Progress) -> Workbench:
    """Find out that the search can work, the cheapest check first; measure the devices where that is needed."""
    others = tuple(limit for limit in bench.budget.limits if limit.cost not in bench.gauges.costs)
    if others:
        _check_tightest(bench, Budget(others))  # before minutes are spent on a device
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
        learn_devices(bench, progress)
        _check_tightest(bench, bench.budget)
    return bench


def read_hardest_first(bench: Workbench, uniform: Candidate, run: Path | None = None) -> list[int] | None:
    """Let the evaluator read the search split hardest samples first; return the order, None where it cannot.

    Hardest for the `uniform` candidate of the budget: see docs/bounds.md. The order is fixed before the first trial and
    kept in the run folder. One that is missing there is made again: weights, data and settings are those that it was
    made from. It is used without bounds too, since in other batches the last bits of a score may be others.
    """
    order = None if run is None else load_order(run)
    if order is None:
        try:
            order = bench.evaluator.hardest_first(uniform)
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


def settle_align(config: SearchConfig, objects: Objects, bench: Workbench, progress: Progress) -> Workbench:
    """The workbench with levels in multiples of the runtime's channel step, where ``auto`` leaves that open."""
    runtimes = [gauge.runtime for gauge in bench.gauges.budgeted]
    align = measured_align(config, bench.space, runtimes, progress)
    return bench if align == bench.config.align else make_workbench(replace(config, align=align), objects)


def learn_devices(bench: Workbench, progress: Progress) -> None:
    """Measure what is needed to predict the costs that a trace cannot tell, and let the space tell them."""
    bench.gauges.learn_devices(bench.space, bench.config, progress)
    bench.gauges.add_costs(bench.space, bench.config.latency_confidence)


def load_devices(bench: Workbench, run: Path) -> None:
    """As `learn_devices`, from what a run folder holds.

    Raises:
        UserError: it holds nothing, something damaged, or what was learnt of another device.
    """
    bench.gauges.load(bench.space, run)
    bench.gauges.add_costs(bench.space, bench.config.latency_confidence)


def settle_measuring(bench: Workbench, uniform: Candidate, progress: Progress) -> str:
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
    except Exception:  # the user's model fails on this candidate: the trials will say so
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


def save_profile(bench: Workbench, folder: Path, order: Sequence[int] | None) -> None:
    """What was measured once for this model, device and data."""
    if order is not None:
        save_order(folder, order)
    bench.gauges.save(folder)
    if reads_data(bench.config.importance):
        save_scores(bench.space, bench.config.importance, folder, num_samples=bench.config.importance_samples)


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
