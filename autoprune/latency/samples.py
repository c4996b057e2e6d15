"""Measured subnets, and how a model gets its first ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from autoprune import stopping
from autoprune.latency.choose import informative
from autoprune.measure.device_profile import DeviceProfile, Entry, KeptSample
from autoprune.measure.stopwatch import Stopwatch
from autoprune.progress import Progress
from autoprune.search_spaces import Candidate, SearchSpace
from autoprune.search_spaces.tracer import tensors

TOGETHER = 8
"""Subnets in one race with the dense network: all of them are in memory at once."""


Ratio: TypeAlias = tuple[Candidate, float, float]
"""A subnet, its share of the dense network's latency, and the standard error of that."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A measured subnet.

    Attributes:
        ms: its measured cost, drift taken out where it was measured in turns with the dense network.
        se: standard error of `ms`; 0 where it is not known.
    """

    candidate: Candidate
    ms: float
    se: float = 0.0


def measure_samples(
    space: SearchSpace,
    stopwatch: Stopwatch,
    subnets: int,
    seed: int,
    accuracy: float | None,
    profile: DeviceProfile | None,
    progress: Progress,
) -> tuple[float, tuple[Sample, ...]]:
    """Latency of the dense network, and samples of informative subnets beside it.

    What the profile holds of the network is not measured again, unless the machine's speed has changed; what is
    measured is kept there, after every race.
    """
    entry = None if profile is None else profile.entry(stopwatch.runtime)
    known = {} if entry is None else _kept(space, stopwatch, entry, progress)
    candidates = [c for c in informative(space, subnets, seed) if c not in known]
    parts = (candidates[start : start + TOGETHER] for start in range(0, len(candidates), TOGETHER))
    ratios = list(known.values())
    for part in parts:
        found = list(_race(space, stopwatch, part, accuracy, progress))
        ratios += found
        if entry is not None and profile is not None:
            dense = stopwatch.dense
            kept = [KeptSample(c, value * dense.value, se * dense.value) for c, value, se in found]
            entry.keep(profile_key(space), stopwatch.batch, dense, kept)
            profile.save()
        stopping.check()
    dense_ms = stopwatch.dense_ms
    return dense_ms, tuple(Sample(c, value * dense_ms, se * dense_ms) for c, value, se in ratios)


def _kept(space: SearchSpace, stopwatch: Stopwatch, entry: Entry, progress: Progress) -> dict[Candidate, Ratio]:
    """What the profile holds; nothing where the machine has another speed today, which is said."""
    key = profile_key(space), stopwatch.batch
    network = entry.network(*key)
    if network is None:
        return {}
    stale = entry.stale(*key, stopwatch.dense)
    if stale is not None:
        progress.say(stale)
        entry.forget(*key)
        return {}
    dense_ms = network.dense.value
    return {c: (c, sample.ms / dense_ms, sample.se / dense_ms) for c, sample in network.samples.items()}


def profile_key(space: SearchSpace) -> str:
    """The network to a device profile: the same layers on images of another size are another one."""
    shapes = ("x".join(map(str, tensor.shape[1:])) for tensor in tensors(space.example_inputs))
    return "-".join([space.fingerprint, *shapes])


def _race(
    space: SearchSpace,
    stopwatch: Stopwatch,
    candidates: Sequence[Candidate],
    accuracy: float | None,
    progress: Progress,
) -> Iterator[Ratio]:
    """Ratios of a few subnets to the dense network, with their standard errors."""
    models = {str(i): space.materialise(c, share=True) for i, c in enumerate(candidates)}
    latencies = stopwatch.measure(models, accuracy=accuracy, progress=progress)
    for i, candidate in enumerate(candidates):
        latency = latencies[str(i)]
        assert latency.ratio is not None
        yield candidate, latency.ratio, latency.ratio_se
