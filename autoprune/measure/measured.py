"""`Latency`: what was measured of one network, with how sure that is and under which circumstances."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from autoprune.measure.robust import Estimate, estimate

BUSY = 1.15
"""One thread alone on a core: wall-clock and processor time are the same. From this ratio on other programs take
part of the core."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Times of one network in milliseconds for a batch.

    `ms`, `low_ms` and `high_ms`, `median_ms`, `p10_ms`, `iqr_ms` and `samples_ms` are on the `clock` of the runtime.

    Attributes:
        ms: THE figure, see `robust.QUANTILE`; `low_ms`, `high_ms`: its 95 % confidence interval. It holds for the speed
            that the machine had then; the ratio holds longer.
        median_ms, p10_ms: of the repeats.
        iqr_ms: distance from the first to the third quartile: the spread of single runs.
        wall_ms, cpu_ms: median wall-clock and processor time; None where the runtime does not tell, or an older
            release did not store it.
        ratio: median over rounds of this network's time / the reference's in the same round, with its 95 %
            confidence interval `ratio_low`, `ratio_high`; None without a reference.
        reference: name of the network that `ratio` compares with.
        repeats, warmup: rounds counted, rounds before.
        settled: whether the warm-up ended because times no longer fell.
        outliers: repeats far above the others, see `autoprune.measure.robust.outliers`; they are counted, not left out.
        drift: the reference's late / early time where the machine changed its speed while measuring, else None.
        energy_mj: millijoules of the processor package for one run; None where it was not measured.
        threads, batch, precision, runtime, version, device: what was measured, and how.
        clock: "cpu" (processor time), "wall", "cuda events" or "reported".
        samples_ms: every repeat, in order.
    """

    ms: float
    low_ms: float
    high_ms: float
    median_ms: float
    p10_ms: float
    iqr_ms: float
    cpu_ms: float | None
    ratio: float | None
    reference: str | None
    repeats: int
    warmup: int
    settled: bool
    threads: int
    batch: int
    precision: str
    device: str
    clock: str = "wall"
    runtime: str = "eager"
    version: str = ""
    wall_ms: float | None = None
    ratio_low: float | None = None
    ratio_high: float | None = None
    outliers: int = 0
    drift: float | None = None
    energy_mj: float | None = None
    samples_ms: tuple[float, ...] = ()

    def __str__(self) -> str:
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        runtime = f"{self.runtime} {self.version}".strip()
        how = f"batch {self.batch}, {threads}, {runtime} {self.precision}, {self.clock_name}"
        return f"{self.short} (95 %), {self.repeats} repeats, {how}"

    @property
    def short(self) -> str:
        """The figure and half its interval: ``8.2 ms ± 0.3``, to the interval's first digit and two of the figure."""
        half = (self.high_ms - self.low_ms) / 2
        decimals = 1
        while decimals < 4 and (half < 10**-decimals or self.ms < 10 ** (1 - decimals)):
            decimals += 1
        return f"{self.ms:.{decimals}f} ms ± {half:.{decimals}f}"

    @property
    def clock_name(self) -> str:
        """The clock, for people."""
        return {"cpu": "processor time", "wall": "wall-clock time"}.get(self.clock, self.clock)

    @property
    def accuracy(self) -> float:
        """Half the width of the 95 % interval, relative: of the ratio; of `ms` for the reference and without one."""
        is_reference = self.ratio_low == self.ratio_high == 1
        if self.ratio is None or self.ratio_low is None or self.ratio_high is None or is_reference:
            return Estimate(self.ms, self.low_ms, self.high_ms).accuracy
        return Estimate(self.ratio, self.ratio_low, self.ratio_high).accuracy

    @property
    def ratio_se(self) -> float:
        """Standard error of `ratio`, which must be there: half the width of its 95 % interval over 1.96."""
        assert self.ratio_low is not None
        assert self.ratio_high is not None
        return (self.ratio_high - self.ratio_low) / (2 * 1.96)

    @property
    def busy(self) -> float | None:
        """Wall-clock over processor time where other programs took part of the core (from `BUSY` on), else None."""
        if self.threads != 1 or not self.cpu_ms or not self.wall_ms:
            return None
        return self.wall_ms / self.cpu_ms if self.wall_ms / self.cpu_ms > BUSY else None

    @property
    def remarks(self) -> tuple[str, ...]:
        """What a reader of the figure should know about the measurement; empty where it went well."""
        found = []
        if not self.settled:
            found.append("times still fell at the end of the warm-up")
        if self.drift is not None:
            word = f"{self.drift:.1f}x slower" if self.drift > 1 else f"{1 / self.drift:.1f}x faster"
            found.append(f"the machine became {word} while measuring: trust the ratios, not the milliseconds")
        if self.busy is not None:
            found.append(f"the machine is busy: wall-clock time is {self.busy:.1f}x the processor time")
        return tuple(found)

    def to_dict(self) -> dict[str, Any]:
        """Return the values for JSON."""
        return {**asdict(self), "samples_ms": list(self.samples_ms)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Latency:
        """Undo `to_dict`; what earlier releases did not write (`ms` and its interval) is computed from the samples."""
        samples = tuple(values["samples_ms"])
        if "ms" not in values:
            found = estimate(samples or (values["median_ms"],))
            wall = values["median_ms"] if values.get("clock") == "wall" else None
            values = {"ms": values["median_ms"], "low_ms": found.low, "high_ms": found.high, "wall_ms": wall, **values}
        return cls(**{**values, "samples_ms": samples})
