"""Where the time of a network goes on a runtime, and what cuts of each group would save: the result, as plain values.

`autoprune.profile_latency` makes a `LatencyProfile`; the command and its page show one. Units: milliseconds for one run
of the whole batch on the runtime's clock; "share" is of the dense network, 0.1 = 10 %.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from autoprune.measure import Latency

FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One module's part of a run, as the runtime sees it inside the whole network.

    Attributes:
        module: path, "" for work outside of all submodules.
        kind: class of the module.
        ms: as the runtime's own profiler counts it.
        share: of the sum over all layers.
    """

    module: str
    kind: str
    ms: float
    share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """The subnet in which one group is cut and all others are whole, against the dense network.

    Attributes:
        kept: units of the group, of `Saving.units`.
        saved_ms, low_ms, high_ms: milliseconds saved and their 95 % interval; below 0 where the subnet is slower.
        saved: share of the dense latency that is saved.
        macs, params: shares of the dense network's that are saved.
        measured: whether the whole subnet was timed; else a `LatencyModel` says.
    """

    kept: int
    saved_ms: float
    low_ms: float
    high_ms: float
    saved: float
    macs: float
    params: float
    measured: bool

    @property
    def certain(self) -> bool:
        """Whether the interval leaves out zero: the cut surely makes the network faster, or surely slower."""
        return self.low_ms > 0 or self.high_ms < 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Saving:
    """What cuts of one group save: one for each of `LatencyProfile.cuts`, None where no level is near it."""

    group: str
    units: int
    cuts: tuple[Cut | None, ...]

    @property
    def deepest(self) -> Cut | None:
        """The deepest cut that there is."""
        return next((cut for cut in reversed(self.cuts) if cut is not None), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyProfile:
    """One network on one runtime.

    Attributes:
        network: class of the model, or what the user called it.
        inputs: shapes of the tensors it was run on.
        runtime: release, precision, threads and settings in one line.
        dense: latency of the dense network, with its interval, clock and energy.
        macs, params: of the dense network; None where it could not be traced.
        layers: the largest first; empty where the runtime cannot tell.
        timeless: modules without time of their own, by kind: fused into a neighbour, or free.
        align: channels are kept in multiples of this where a layer is wide enough; None where nothing can be cut.
        cuts: shares of a group's units that are cut.
        savings: one entry per group, in order of execution.
        refusal: why nothing can be cut; "" where something can.
        no_energy: why the energy of a run was not measured; "" where it was.
        predictor: what predicted the cuts that were not measured, and its error; "" where all were measured.
    """

    network: str
    inputs: tuple[tuple[int, ...], ...]
    runtime: str
    dense: Latency
    macs: float | None
    params: float | None
    layers: tuple[Layer, ...]
    timeless: Mapping[str, int]
    align: int | None
    cuts: tuple[float, ...]
    savings: tuple[Saving, ...]
    refusal: str = ""
    predictor: str = ""
    no_energy: str = ""

    @property
    def throughput(self) -> float:
        """Samples a second."""
        return 1e3 * max(self.dense.batch, 1) / self.dense.ms

    @property
    def ranking(self) -> tuple[Saving, ...]:
        """Where to cut for latency: groups by what their deepest cut saves, the most first."""
        return tuple(sorted(self.savings, key=lambda s: -(s.deepest.saved_ms if s.deepest else 0.0)))

    @property
    def num_measured(self) -> tuple[int, int]:
        """Cuts that were measured, and all of them."""
        cuts = [cut for saving in self.savings for cut in saving.cuts if cut is not None]
        return sum(cut.measured for cut in cuts), len(cuts)

    def top_layers(self, count: int) -> tuple[list[Layer], Layer | None]:
        """The largest layers, and what is left of them summed up; no sum of a single one."""
        if len(self.layers) <= count + 1:
            return list(self.layers), None
        shown, rest = self.layers[:count], self.layers[count:]
        name = f"{len(rest)} more"
        return list(shown), Layer(
            module=name, kind="", ms=sum(layer.ms for layer in rest), share=sum(layer.share for layer in rest)
        )

    def kinds(self) -> dict[str, float]:
        """Share of the time by class of module, the largest first."""
        shares: dict[str, float] = {}
        for layer in self.layers:
            shares[layer.kind] = shares.get(layer.kind, 0.0) + layer.share
        return dict(sorted(shares.items(), key=lambda item: -item[1]))

    def to_dict(self) -> dict[str, Any]:
        """Return everything for JSON, derived figures too."""
        return {
            "format": FORMAT,
            **asdict(self),
            "timeless": dict(self.timeless),
            "dense": self.dense.to_dict(),
            "throughput": self.throughput,
            "ranking": [saving.group for saving in self.ranking],
        }


def layers_of(times: Mapping[str, float], model: nn.Module) -> tuple[tuple[Layer, ...], dict[str, int]]:
    """Sort a runtime's times, module path -> milliseconds, and count the modules of `model` that it gave none."""
    kinds = {path: type(module).__name__ for path, module in model.named_modules()}
    total = sum(times.values()) or 1.0
    found = [
        Layer(module=path, kind=kinds.get(path, "other"), ms=ms, share=ms / total)
        for path, ms in times.items()
        if ms > 0
    ]
    timed = {layer.module for layer in found}
    leaves = [path for path, module in model.named_modules() if next(module.children(), None) is None]
    timeless = Counter(kinds[path] for path in leaves if path not in timed)
    return tuple(sorted(found, key=lambda layer: -layer.ms)), dict(timeless.most_common())


def describe_inputs(shapes: Sequence[Sequence[int]]) -> str:
    """``1x3x224x224``."""
    return " and ".join("x".join(map(str, shape)) for shape in shapes)
