"""What cuts of single groups save: whole subnets are timed in turn with the dense network, the deepest cuts first.

Where time does not suffice for all, a `LatencyModel` that knows the measured ones predicts the others. A device profile
keeps what was measured, and the next call goes on from there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple, TypeVar

import numpy as np

from autoprune import stopping
from autoprune.latency import LatencyModel
from autoprune.latency.samples import profile_key
from autoprune.latency_tool.profile import Cut, Saving
from autoprune.measure import Latency, Stopwatch, TooNoisy
from autoprune.measure.device_profile import DeviceProfile, Entry, KeptSample
from autoprune.progress import Progress
from autoprune.search_spaces import Candidate, SearchSpace

TOGETHER = 8
"""Subnets that are timed in turn with each other and the dense network: more would hold too much memory."""
MODEL_SUBNETS = 15
"""Whole subnets, next to the measured cuts, from which the cuts that were not measured are predicted."""
CONTENT = 4.0
"""Where the machine is too noisy, intervals may be this many times as wide as asked for."""
_Z = 1.96
_Found = TypeVar("_Found")


class Ratio(NamedTuple):
    """Latency of a subnet / that of the dense network, and the standard error of that."""

    value: float
    error: float

    @classmethod
    def of(cls, latency: Latency) -> Ratio:
        """The paired ratio that was measured."""
        assert latency.ratio is not None, "a stopwatch compares every network with the dense one"
        return cls(latency.ratio, latency.ratio_se)


Table = list[list[Candidate | None]]
"""For each group and each cut the subnet, None where the group has no level near the cut."""


def cut_table(space: SearchSpace, cuts: Sequence[float]) -> Table:
    """The subnets with one group alone cut, to the level nearest to each cut."""
    table: Table = []
    for index, group in enumerate(space.groups):
        row: list[Candidate | None] = []
        for cut in cuts:
            level = int(np.argmin(np.abs(np.array(group.levels) - (1 - cut) * group.num_units)))
            whole = level == len(group.levels) - 1
            row.append(None if whole else (*space.dense[:index], level, *space.dense[index + 1 :]))
        table.append(row)
    return table


def find_savings(
    space: SearchSpace,
    stopwatch: Stopwatch,
    cuts: Sequence[float],
    *,
    dense: Latency,
    seconds: float,
    accuracy: float,
    profile: DeviceProfile | None,
    progress: Progress,
) -> tuple[tuple[Saving, ...], str]:
    """What the cuts save, and what predicted those that were not measured ("" where all were).

    Args:
        cuts: shares of the units of a group, ascending.
        dense: latency of the dense network: savings are shares of it.
        accuracy: half-width of the interval of a ratio at which measuring stops.
        seconds: about how long to measure cuts; what predicts the others takes its own time.
        profile: of the device: subnets in it are not measured again, what is measured is added.
    """
    table = cut_table(space, cuts)
    deepest_first = [row[column] for column in reversed(range(len(cuts))) for row in table]
    wanted = list(dict.fromkeys(candidate for candidate in deepest_first if candidate is not None))
    entry = None if profile is None else profile.entry(stopwatch.runtime)
    known = {} if entry is None else _recall(space, stopwatch, dense.batch, entry, progress)
    measured = {candidate: known[candidate] for candidate in wanted if candidate in known}
    unknown = [candidate for candidate in wanted if candidate not in known]
    for block in _measure(space, stopwatch, unknown, seconds, accuracy, progress):
        measured.update(block)
        if entry is not None and profile is not None:
            ms = stopwatch.dense_ms
            kept = (KeptSample(candidate, r.value * ms, r.error * ms) for candidate, r in block.items())
            entry.keep(profile_key(space), dense.batch, stopwatch.dense, kept)
            profile.save()
        stopping.check()
    missing = [candidate for candidate in wanted if candidate not in measured]
    predicted: dict[Candidate, Ratio] = {}
    predictor = ""
    if missing:
        learn = partial(LatencyModel.measure, space, stopwatch, subnets=MODEL_SUBNETS, seed=0)
        model = _measured(partial(learn, profile=profile, progress=progress), accuracy)
        learnt = {sample.candidate for sample in model.samples}
        for candidate, ratio in measured.items():
            if candidate not in learnt:
                model.learn(candidate, ratio.value * model.dense_ms, ratio.error * model.dense_ms)
        mean, deviation = (values / model.dense_ms for values in model.predict(space.units(missing)))
        values = zip(missing, mean.tolist(), deviation.tolist(), strict=True)
        predicted = {candidate: Ratio(value, error) for candidate, value, error in values}
        predictor = str(model.error)
    return _savings(space, table, measured, predicted, dense.ms), predictor


def _recall(
    space: SearchSpace, stopwatch: Stopwatch, batch: int, entry: Entry, progress: Progress
) -> dict[Candidate, Ratio]:
    """Subnets that the device profile knows, unless the machine has changed since."""
    key = profile_key(space), batch
    stale = entry.stale(*key, stopwatch.dense)
    if stale is not None:
        progress.say(stale)
        entry.forget(*key)
    network = entry.network(*key)
    if network is None:
        return {}
    dense = network.dense.value
    return {candidate: Ratio(kept.ms / dense, kept.se / dense) for candidate, kept in network.samples.items()}


def _measure(
    space: SearchSpace,
    stopwatch: Stopwatch,
    wanted: Sequence[Candidate],
    seconds: float,
    accuracy: float,
    progress: Progress,
) -> Iterator[dict[Candidate, Ratio]]:
    """Time subnets, a few together, for as long as the next ones are likely to be done within `seconds`."""
    start, slowest = time.monotonic(), 0.0
    with progress.task("Measuring cuts", total=len(wanted), unit="subnets") as task:
        for first in range(0, len(wanted), TOGETHER):
            before = time.monotonic()
            if seconds <= 0 or before + slowest > start + seconds:
                break
            block = wanted[first : first + TOGETHER]
            models = {_name(space, candidate): space.materialise(candidate, share=True) for candidate in block}
            latencies = _measured(partial(stopwatch.measure, models), accuracy)
            yield {candidate: Ratio.of(latencies[_name(space, candidate)]) for candidate in block}
            slowest = max(slowest, time.monotonic() - before)
            task.advance(len(block))


def _measured(measure: Callable[..., _Found], accuracy: float) -> _Found:
    """What `measure` finds at an accuracy; where the machine was too noisy, again, and content with less."""
    try:
        return measure(accuracy=accuracy)
    except TooNoisy:
        return measure(accuracy=CONTENT * accuracy)


def _name(space: SearchSpace, candidate: Candidate) -> str:
    """What a message calls a subnet in which one group is cut: ``layer1.0.conv1: 32 of 64``."""
    group, level = next(
        (g, level) for g, level, whole in zip(space.groups, candidate, space.dense, strict=True) if level != whole
    )
    return f"{group.name}: {group.levels[level]} of {group.num_units}"


def _savings(
    space: SearchSpace,
    table: Table,
    measured: Mapping[Candidate, Ratio],
    predicted: Mapping[Candidate, Ratio],
    dense_ms: float,
) -> tuple[Saving, ...]:
    """Ratios as savings, with the MACs and parameters that go with them."""
    ratios = {**measured, **predicted}
    macs, params = (
        dict(zip(ratios, (1 - space.cost(name, list(ratios)) / space.cost(name, [space.dense])).tolist(), strict=True))
        for name in ("macs", "params")
    )

    def cut(group: int, candidate: Candidate) -> Cut:
        ratio = ratios[candidate]
        saved_ms, half_ms = (1 - ratio.value) * dense_ms, _Z * ratio.error * dense_ms
        return Cut(
            kept=space.groups[group].levels[candidate[group]],
            saved_ms=saved_ms,
            low_ms=saved_ms - half_ms,
            high_ms=saved_ms + half_ms,
            saved=1 - ratio.value,
            macs=macs[candidate],
            params=params[candidate],
            measured=candidate in measured,
        )

    return tuple(
        Saving(
            group=group.name,
            units=group.num_units,
            cuts=tuple(None if candidate is None else cut(index, candidate) for candidate in row),
        )
        for index, (group, row) in enumerate(zip(space.groups, table, strict=True))
    )
