"""Hold the points of a front against the budget as measured, before anything more is spent on them.

All points run in turn with the dense network on every device. One that misses a limit is moved to the next smaller
candidate, scored again and measured again; so is one that its prediction made smaller than it need be. What still
misses says so, and is never the point to recommend.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from autoprune import stopping
from autoprune.documents import parsing, read_document, usable, write_document
from autoprune.failures import describe_error, ends_search
from autoprune.front import FrontPoint
from autoprune.keeping import Keeper
from autoprune.measure import Latency
from autoprune.progress import Progress
from autoprune.search_spaces.types import Candidate
from autoprune.workbench import Workbench

VERIFIED = Path("profile") / "verified.json"

FORMAT = 1

ROUNDS = 3
"""Times that all points are measured at most: the last time nothing is moved any more."""


def verify(
    points: Sequence[FrontPoint], bench: Workbench, progress: Progress
) -> tuple[list[FrontPoint], dict[str, Latency]]:
    """Measure points and move those that miss the budget.

    Returns:
        The points, best score first, without those that became the same; and the dense latency by gauge name.
    """
    gauges, space = bench.gauges, bench.space
    keeper = Keeper(space, gauges, bench.prior)
    found = list(points)
    if gauges.costs and bench.config.measure_trials != "on":
        found = _distinct(_moved(point, keeper, bench, progress) for point in found)
    for round_number in range(ROUNDS):
        models = {str(i): space.materialise(point.candidate, share=True) for i, point in enumerate(found)}
        measured = gauges.measure(
            models,
            accuracy=None if gauges.costs else math.inf,  # where nothing is limited nothing is refused
            min_rounds=bench.config.latency_repeats,
            progress=progress,
        )
        gauges.recheck(measured, progress)
        found = [
            _with_latencies(point, {name: m[str(i)] for name, m in measured.items()}, keeper, bench)
            for i, point in enumerate(found)
        ]
        if round_number == ROUNDS - 1 or not any(point.misses for point in found):
            break
        moved = _distinct(_moved(point, keeper, bench, progress) if point.misses else point for point in found)
        if [point.candidate for point in moved] == [point.candidate for point in found]:
            break
        found = moved
    found.sort(key=lambda point: -point.score)
    return found, {name: m["dense"] for name, m in measured.items()}


def _moved(point: FrontPoint, keeper: Keeper, bench: Workbench, progress: Progress) -> FrontPoint:
    """The point at a candidate that keeps the budget as measured; as it was, where there is none or it scores less."""
    try:
        kept = keeper.keep(point.candidate, bench.budget)
        bench.gauges.learn(kept.readings)
        if kept.candidate == point.candidate or kept.misses:
            return point
        score = bench.evaluator.evaluate(kept.candidate)
    except Exception as error:  # the user's model and score run in here, on a candidate that is new to them
        if ends_search(error):
            raise
        stopping.check()  # which reaches the processes that load data as well
        progress.say(f"The point of trial {point.trial} was not moved: {describe_error(error)}")
        return point
    larger = all(new >= old for new, old in zip(kept.candidate, point.candidate, strict=True))
    if larger and score < point.score:
        return point
    progress.say(
        f"The point of trial {point.trial} was moved to {'use' if larger else 'keep'} the budget as measured: "
        f"score {point.score:.4g}, now {score:.4g}."
    )
    return replace(
        point,
        candidate=kept.candidate,
        proposed=point.candidate if point.proposed is None else point.proposed,
        costs=bench.space.cost_dict(kept.candidate),
        score=score,
    )


def _with_latencies(point: FrontPoint, found: dict[str, Latency], keeper: Keeper, bench: Workbench) -> FrontPoint:
    """The point with what was measured, and the limits that it misses by that."""
    used = keeper.used(bench.budget, bench.gauges.values(found))
    return replace(
        point,
        costs=bench.space.cost_dict(point.candidate),
        latency=found[bench.gauges.gauges[0].name],
        latencies=found,
        measured=bench.gauges.measured(found),
        misses=tuple(cost for cost, share in used.items() if share > 1),
    )


def _distinct(points: Iterable[FrontPoint]) -> list[FrontPoint]:
    """One point for each candidate, the first."""
    seen: dict[Candidate, FrontPoint] = {}
    for point in points:
        seen.setdefault(point.candidate, point)
    return list(seen.values())


def verified(
    points: Sequence[FrontPoint], bench: Workbench, run: Path, progress: Progress
) -> tuple[list[FrontPoint], dict[str, Latency]]:
    """`verify`, once for each front: what it found is kept in the run folder until other points are chosen.

    A killed fine-tuning goes on with the subnets it began with, whatever another measurement would say.
    """
    chosen = [[point.trial, *point.candidate] for point in points]
    kept = usable(lambda: read_verified(run / VERIFIED), progress, "the points are measured again")
    if kept is not None and kept[0] == chosen:
        return kept[1:]
    found, dense = verify(points, bench, progress)
    content = {
        "chosen": chosen,
        "points": [point.to_dict() for point in found],
        "dense": {name: latency.to_dict() for name, latency in dense.items()},
    }
    write_document(run / VERIFIED, FORMAT, content)
    return found, dense


def read_verified(path: Path) -> tuple[list[list[int]], list[FrontPoint], dict[str, Latency]]:
    """What was chosen, and what `verify` found then.

    Raises:
        Damaged: there is no such file, or it cannot be read.
    """
    content = read_document(path, FORMAT)
    with parsing(path):
        dense = {name: Latency.from_dict(found) for name, found in content["dense"].items()}
        return content["chosen"], [FrontPoint.from_dict(point) for point in content["points"]], dense


def forget_verified(run: Path) -> None:
    """Let the points be measured again."""
    (run / VERIFIED).unlink(missing_ok=True)
