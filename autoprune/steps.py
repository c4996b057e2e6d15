"""The channel step of a runtime: which multiples of channels it is fast at, per kind of op, found by measuring.

Networks of one kind of op are timed at a ladder of widths. Around a width w0 that is a multiple of every step, the step
s is judged by the fourth difference of the times, h = s / 2 apart:

    penalty(s) = (4 t(w0 - h) + 4 t(w0 + h) - t(w0 - 2h) - 6 t(w0) - t(w0 + 2h)) / (8 t(w0))

Multiples of s stand with weights that add to 8 against odd multiples of h with the same, so it is what the latter cost
more, relative; it is 0 for any smooth cost (exactly for polynomials up to the third degree, as are those of layers).

A step matters where the penalties at several widths and sizes of the input lie above `WORTH` by the one-sided Wilcoxon
signed-rank test, in which a few disturbed times do not decide. Steps are tested from small to large up to the first
that does not matter, which keeps the chance that a step too large is found below `FALSE_ALARM` per kind of op without
a correction for the number of steps (a fixed-sequence test: Maurer, Hothorn and Lehmacher 1995). A smaller step matters
wherever a larger one does, since w0 is a multiple of both.

Letters: w width in channels, t milliseconds, n places (widths and sizes of the input) at which penalties are measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from scipy.stats import wilcoxon
from torch import Tensor, nn

from autoprune.measure.stopwatch import DENSE, Stopwatch
from autoprune.progress import NO_PROGRESS, Progress
from autoprune.runtimes import Runtime
from autoprune.search_spaces.tracer import Op
from autoprune.search_spaces.types import FloatArray

STEPS = (2, 4, 8, 16, 32)
CENTRES = (96, 160, 224, 288)
"""Widths around which steps are judged: odd multiples of 32, so far apart that only the outermost times of step 32
(at 128, 192 and 256) count for two of them."""

FALSE_ALARM = 0.05
WORTH = 0.02
"""Coarser levels must save more than this: they also leave the search less to choose from."""

ROUNDS = 15
"""Runs of each network; their medians are compared."""

_ENDS = 32
"""Channels before and behind the layers whose width varies."""


@dataclass(frozen=True, slots=True)
class Probe:
    """Networks of one kind of op.

    Attributes:
        kind: ``conv``, ``depthwise`` or ``linear``.
        name: of the probe, for people.
        layers: width -> layers with `_ENDS` channels at both ends and that width inside.
        inputs: shapes of the inputs.
    """

    kind: str
    name: str
    layers: Callable[[int], list[nn.Module]]
    inputs: tuple[tuple[int, ...], ...]


def _convolutions(kernel: int) -> Callable[[int], list[nn.Module]]:
    def layers(width: int) -> list[nn.Module]:
        inner = [nn.Conv2d(width, width, kernel, padding=kernel // 2) for _ in range(2)]
        return [nn.Conv2d(_ENDS, width, 1), *inner, nn.Conv2d(width, _ENDS, 1)]

    return layers


def _inverted_residuals(width: int) -> list[nn.Module]:
    def block() -> list[nn.Module]:
        depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        return [nn.Conv2d(_ENDS, width, 1), depthwise, nn.Conv2d(width, _ENDS, 1)]

    return [*block(), *block()]


def _products(width: int) -> list[nn.Module]:
    return [nn.Linear(_ENDS, width), nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, _ENDS)]


PROBES = (
    Probe("conv", "3x3 convolutions", _convolutions(3), ((1, _ENDS, 7, 7), (1, _ENDS, 14, 14))),
    Probe("conv", "1x1 convolutions", _convolutions(1), ((1, _ENDS, 14, 14), (1, _ENDS, 28, 28))),
    Probe(  # no network has depthwise convolutions alone: their neighbours share the width
        "depthwise", "depthwise between 1x1", _inverted_residuals, ((1, _ENDS, 14, 14), (1, _ENDS, 28, 28))
    ),
    Probe("linear", "linear layers", _products, ((1, 49, _ENDS), (1, 196, _ENDS))),
)

KINDS = tuple(dict.fromkeys(probe.kind for probe in PROBES))


class ProbeNet(nn.Sequential):
    """Layers of a probe at one width, with ReLU between them."""

    def __init__(self, probe: Probe, width: int) -> None:
        with torch.device("meta"):
            layers = probe.layers(width)
        super().__init__(*(part for layer in layers[:-1] for part in (layer, nn.ReLU())), layers[-1])
        self.width = width
        self.to_empty(device="cpu")
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(_weights(parameter.numel()).view_as(parameter))


@dataclass(frozen=True, slots=True)
class Evidence:
    """Whether one step matters to one probe.

    Attributes:
        penalty: median over the n places of what widths beside the multiples cost more, 0.1 = 10 %.
        p: chance of penalties as large or larger where none is above `WORTH`.
    """

    step: int
    penalty: float
    p: float


def find_steps(
    runtime: Runtime, kinds: Iterable[str] = KINDS, *, progress: Progress = NO_PROGRESS, rounds: int = ROUNDS
) -> dict[str, int]:
    """The step of each kind of op on a runtime; 1 where widths do not matter. Takes about half a minute.

    Args:
        kinds: those that a network has, see `kinds_of`.

    Raises:
        UserError: the runtime cannot run one of the probes.
    """
    wanted = set(kinds)
    steps = dict.fromkeys((kind for kind in KINDS if kind in wanted), 1)
    for probe in PROBES:
        if probe.kind in wanted:
            _, step = judge(time_probe(runtime, probe, progress=progress, rounds=rounds), probe.kind)
            steps[probe.kind] = max(steps[probe.kind], step)
    return steps


def kinds_of(ops: Iterable[Op]) -> tuple[str, ...]:
    """The kinds of the ops of a network (`SearchSpace.ops`) for which there are probes."""
    return tuple(dict.fromkeys(kind for op in ops if (kind := _kind(op)) is not None))


def _kind(op: Op) -> str | None:
    name = op.func.overloadpacket.__name__
    if name == "convolution":
        return "depthwise" if op.args[8] > 1 and op.args[1].shape[1] == 1 else "conv"
    return "linear" if name in ("mm", "addmm") else None


def ladder(centre: int) -> tuple[int, ...]:
    """The widths that judge every step around one width, ascending."""
    return tuple(sorted({centre + i * step // 2 for step in STEPS for i in (-2, -1, 0, 1, 2)}))


def time_probe(
    runtime: Runtime, probe: Probe, *, progress: Progress = NO_PROGRESS, rounds: int = ROUNDS
) -> list[dict[int, float]]:
    """Milliseconds by width at each of the n places: widths around one centre, timed in turn on one input."""
    widest = ProbeNet(probe, max(ladder(CENTRES[-1]))).eval()
    found = []
    for shape in probe.inputs:
        inputs = _random(shape)
        with Stopwatch(
            runtime, widest, inputs, accuracy=math.inf, min_rounds=rounds, max_rounds=rounds
        ) as stopwatch:  # fmt: skip
            for centre in CENTRES:
                models = {str(w): ProbeNet(probe, w).eval() for w in ladder(centre) if w != widest.width}
                times = stopwatch.measure(models, progress=progress)
                found.append(
                    {widest.width if name == DENSE else int(name): latency.ms for name, latency in times.items()}
                )
    return found


def judge(times: Sequence[Mapping[int, float]], kind: str) -> tuple[list[Evidence], int]:
    """The evidence for each step in turn, up to the first that does not matter, and the last that does (else 1).

    Args:
        times: of `time_probe`, one entry for each of the n places.
        kind: its `FALSE_ALARM` is shared by all probes of the kind.
    """
    level = FALSE_ALARM / sum(probe.kind == kind for probe in PROBES)
    evidence = []
    found = 1
    for step in STEPS:
        penalties = np.array([_penalty(place, step) for place in times])
        p = float(wilcoxon(penalties - WORTH, alternative="greater").pvalue)
        evidence.append(Evidence(step, float(np.median(penalties)), p))
        if p > level:
            break
        found = step
    return evidence, found


def _penalty(times: Mapping[int, float], step: int) -> float:
    """What widths half a step beside the multiples cost more than these, relative to the centre."""
    centre = next(c for c in CENTRES if set(ladder(c)) <= times.keys())
    around: FloatArray = np.array([times[centre + i * step // 2] for i in (-2, -1, 0, 1, 2)])
    return float(np.array([-1, 4, -6, 4, -1]) @ around / (8 * around[2]))


def _random(shape: Sequence[int]) -> Tensor:
    return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(0))


def _weights(number: int) -> Tensor:
    """Small random weights; drawing new ones for every network takes longer than timing it."""
    return _most_weights(2 ** (number - 1).bit_length())[:number]


@lru_cache
def _most_weights(number: int) -> Tensor:
    return 0.05 * _random([number])
