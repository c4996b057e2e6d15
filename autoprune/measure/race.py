"""Run networks in turn, round after round, and say how long each takes.

A shared or warm machine changes its speed, so every network takes its turn beside the reference (the dense network), in
alternating order, and each round's time is also divided by that of the reference in the same round: slow minutes hit
both and fall out of the ratio.

At its turn a network runs twice, and the second run counts: the first one brings back what the others pushed out of the
processor's caches. Without that, the first and the last of a round, which follow themselves in every second round,
would look up to 5 % faster than those between them (docs/measuring.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from autoprune.measure.device import device_info
from autoprune.measure.energy import EnergyMeter
from autoprune.measure.measured import Latency
from autoprune.measure.quiet import quiet
from autoprune.measure.robust import drift, estimate, outliers, spread
from autoprune.progress import NO_PROGRESS, Progress, Task
from autoprune.runtimes import Runnable, Runtime, Times
from autoprune.runtimes.base import MeasuringFailed
from autoprune.search_spaces.types import FloatArray

WARMUP = 5
SETTLED_ROUNDS = 3
SETTLED_SHARE = 0.95
MAX_WARMUP = 4
"""Warm-up takes at least `WARMUP` rounds and ends when `SETTLED_ROUNDS` in a row made no network faster than
`SETTLED_SHARE` of its fastest round before, or after `MAX_WARMUP` times the least."""

GROWTH = 1.25
"""Accuracy is looked at when the rounds have grown by this factor: looking after every round would stop at the moment
that happens to look best."""

LEAST_MS = 250.0
"""A network may take this many milliseconds in any case, however many rounds that is: a small one runs in a fraction of
one, and is known well enough long before a large one has run as many rounds as are allowed."""

NOISY = 3.0
"""A measurement is refused where, after all rounds allowed, its interval is this many times wider than asked for.
Between once and this, the interval says how far the measurement got."""


class TooNoisy(MeasuringFailed):
    """The machine is too noisy for the accuracy that was asked for."""


def race(
    runs: Mapping[str, Runnable],
    runtime: Runtime,
    *,
    batch: int,
    precision: str,
    reference: str | None,
    accuracy: float,
    min_rounds: int,
    max_rounds: int,
    warmup: int = WARMUP,
    least_ms: float = 0.0,
    energy: EnergyMeter | None = None,
    progress: Progress | None = None,
) -> dict[str, Latency]:
    """Run all in turn until each is known to `accuracy`: the ratio to the reference, or the time where there is none.

    A network that is known well enough leaves the rounds; the reference stays as long as any other needs it.

    Args:
        runs: name -> what to run, all on `runtime`.
        batch, precision: for the record.
        reference: name of the network to compare with.
        accuracy: wanted half width of the 95 % intervals, relative; infinity takes `min_rounds` whatever they show.
        least_ms: more rounds than `max_rounds` are run as long as the fastest network has not run for so long in all.

    Raises:
        TooNoisy: after `max_rounds` an interval is more than `NOISY` times wider than asked for.
    """
    # a command, perhaps on another machine, warms up by itself
    tracks = {name: _Track(run, runs_before=0 if runtime.clock == "reported" else 1) for name, run in runs.items()}
    base = None if reference is None else tracks[reference]
    progress = progress or NO_PROGRESS
    active = list(tracks.values())
    with ExitStack() as stack:
        stack.enter_context(quiet())
        with progress.task("Warming up", MAX_WARMUP * warmup, "rounds") as task:
            rounds_before, settled = _warm_up(active, warmup, runtime.clock, task)
            task.advance(MAX_WARMUP * warmup - rounds_before)
        max_rounds = max(max_rounds, round(least_ms / max(min(track.fastest for track in active), 1e-3)))
        task = stack.enter_context(progress.task("Measuring latency", max_rounds, "rounds"))
        rounds, look = 0, min_rounds
        while active and rounds < max_rounds:
            _round(active, rounds, task)
            rounds += 1
            if rounds >= look:
                look = max(rounds + 1, round(rounds * GROWTH))
                active = _unsure(active, base, runtime.clock, accuracy)
        task.advance(max_rounds - rounds)
        if energy is not None:
            for track in tracks.values():
                track.energy_mj = energy.millijoules(track.run)
    common = {
        "reference": reference,
        "warmup": rounds_before,
        "settled": settled,
        "threads": runtime.threads,
        "batch": batch,
        "precision": precision,
        "device": runtime.device or device_info()["cpu"],
        "runtime": runtime.name,
        "version": runtime.version,
    }
    result = {name: _latency(track, base, runtime.clock, **common) for name, track in tracks.items()}
    for name, latency in result.items():
        if latency.accuracy > NOISY * accuracy and (name != reference or len(result) == 1):
            raise TooNoisy(_too_noisy(name, latency, accuracy))
    for remark in result[reference or next(iter(result))].remarks:  # the others' are much the same
        progress.say(f"While measuring latency: {remark}.")
    return result


@dataclass(eq=False)
class _Track:
    """One network in the race and its times so far."""

    run: Runnable
    runs_before: int
    times: list[Times] = field(default_factory=list)
    fastest: float = float("inf")
    energy_mj: float | None = None

    def turn(self) -> None:
        """Run, and keep the time of the last run."""
        for _ in range(self.runs_before):
            self.run()
        self.times.append(self.run())

    def ms(self, clock: str) -> FloatArray:
        """Its times on a clock, [rounds]; wall-clock times where nobody can tell the processor time."""
        return np.array([t.cpu if clock == "cpu" and t.cpu is not None else t.wall for t in self.times])

    def ratios(self, base: _Track, clock: str) -> FloatArray:
        """Its time over that of the base in the same round; the base is in every round, this one perhaps not."""
        return self.ms(clock) / base.ms(clock)[: len(self.times)]


def _warm_up(tracks: Sequence[_Track], least: int, clock: str, task: Task) -> tuple[int, bool]:
    """Run until times settle; return the number of rounds and whether they did. The times are forgotten."""
    fastest = np.full(len(tracks), np.inf)
    rounds = quiet_rounds = 0
    settled = least == 0
    while rounds < MAX_WARMUP * least and not settled:
        _round(tracks, rounds, task)
        latest = np.array([track.ms(clock)[-1] for track in tracks])
        quiet_rounds = 0 if (latest < SETTLED_SHARE * fastest).any() else quiet_rounds + 1
        fastest = np.minimum(fastest, latest)
        rounds += 1
        settled = rounds >= least and quiet_rounds >= SETTLED_ROUNDS
    for track in tracks:
        track.fastest = min(track.ms(clock), default=float("inf"))
        track.times.clear()
    return rounds, settled


def _round(tracks: Sequence[_Track], number: int, task: Task) -> None:
    """Give every network its turn; in odd rounds from the last to the first, so that a drift within rounds cancels."""
    for track in tracks if number % 2 == 0 else reversed(tracks):
        track.turn()
    task.advance(1)


def _unsure(active: Sequence[_Track], base: _Track | None, clock: str, accuracy: float) -> list[_Track]:
    """Those that need more rounds, with the base, which stays as long as any other needs it to compare with."""

    def is_sure(track: _Track) -> bool:
        return estimate(track.ms(clock) if base in (None, track) else track.ratios(base, clock)).accuracy <= accuracy

    others = [track for track in active if track is not base]
    unsure = [track for track in others or active if not is_sure(track)]
    return [track for track in active if track in unsure or (unsure and track is base)]


def _latency(track: _Track, base: _Track | None, clock: str, /, **common: Any) -> Latency:
    """What the times of a track say; `common` are the fields that all tracks share."""
    samples = track.ms(clock)
    found = estimate(samples)
    ratio = None if base is None else estimate(track.ratios(base, clock))
    q1, median, q3 = np.percentile(samples, [25, 50, 75])
    tells = all(t.cpu is not None for t in track.times)
    return Latency(
        ms=found.value,
        low_ms=found.low,
        high_ms=found.high,
        median_ms=float(median),
        p10_ms=float(np.percentile(samples, 10)),
        iqr_ms=float(q3 - q1),
        wall_ms=float(np.median([t.wall for t in track.times])),
        cpu_ms=float(np.median([t.cpu for t in track.times if t.cpu is not None])) if tells else None,
        ratio=None if ratio is None else ratio.value,
        ratio_low=None if ratio is None else ratio.low,
        ratio_high=None if ratio is None else ratio.high,
        repeats=len(samples),
        outliers=len(outliers(samples)),
        drift=drift((base or track).ms(clock)),
        energy_mj=track.energy_mj,
        clock="wall" if clock == "cpu" and not tells else clock,
        samples_ms=tuple(round(float(sample), 6) for sample in samples),
        **common,
    )


def _too_noisy(name: str, latency: Latency, accuracy: float) -> str:
    """What is wrong, how wrong, and what can be done."""
    what = "time" if latency.ratio is None or latency.reference == name else "ratio to the dense network"
    advice = ["close other programs", f"ask for no better than ±{latency.accuracy:.1%}"]
    if latency.clock == "wall" and latency.threads > 1:
        advice.append("use one thread: its processor time does not count what other programs take")
    remarks = f" ({'; '.join(latency.remarks)})" if latency.remarks else ""
    return (
        f"The machine is too noisy: the {what} of {name!r} is known to ±{latency.accuracy:.1%} after {latency.repeats} "
        f"rounds, ±{accuracy:.1%} was asked for; spread {spread(latency.samples_ms):.0%}, {latency.outliers} outliers"
        f"{remarks}. What helps: {', '.join(advice[:-1])}, or {advice[-1]}."
    )
