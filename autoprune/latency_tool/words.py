"""A latency profile in sentences, the same on the page and in the terminal."""

from __future__ import annotations

import math

from autoprune.latency_tool.profile import Cut, LatencyProfile, describe_inputs
from autoprune.search_spaces.budget import format_cost

SHOWN = 3
"""Groups that a sentence names."""
LITTLE = 0.5
"""A group whose share of the time saved is below this part of its share of the MACs is not worth what it looks like."""


def facts(profile: LatencyProfile) -> list[str]:
    """What was measured, how, and how long it takes."""
    dense = profile.dense
    lines = [
        f"{profile.network} on an input of {describe_inputs(profile.inputs)}: {profile.runtime}, {dense.device}",
        f"  latency: {dense.short}, {dense.clock_name}, {dense.repeats} rounds",
        f"  throughput: {profile.throughput:.4g} samples/s at batch {dense.batch}",
        f"  energy: {describe_energy(profile)}",
    ]
    if profile.macs is not None and profile.params is not None:
        lines.append(
            f"  {format_cost('macs', profile.macs)} MACs, {format_cost('params', profile.params)} parameters, "
            f"{profile.macs / profile.dense.ms / 1e6:.3g} G MACs/s"
        )
    return [*lines, *(f"  note: {remark}" for remark in dense.remarks)]


def describe_energy(profile: LatencyProfile) -> str:
    """``120 mJ a run``, or why there is none."""
    if profile.dense.energy_mj is None:
        return f"not measured. {profile.no_energy}".strip()
    return f"{profile.dense.energy_mj:.3g} mJ a run (RAPL: all packages, with what they take when idle)"


def describe_layers(profile: LatencyProfile) -> str:
    """Kinds of layers, how the parts compare with the whole, and what the runtime fused."""
    if not profile.layers:
        return "This runtime cannot tell how long each layer takes."
    kinds = ", ".join(f"{kind} {share:.1%}" for kind, share in profile.kinds().items())
    total = sum(layer.ms for layer in profile.layers)
    text = (
        f"By kind: {kinds}. The layers sum to {total:.3g} ms under the runtime's own profiler; the whole network takes "
        f"{profile.dense.ms:.3g} ms without it."
    )
    if profile.timeless:
        counts = ", ".join(f"{count} {kind}" for kind, count in profile.timeless.items())
        text += f" Without time of their own (fused into a neighbour, or free): {counts}."
    return text


def saved_ms(cut: Cut, dense_ms: float) -> str:
    """``1.23 ± 0.05``, to a thousandth of the dense latency or a little finer; ~ where it is predicted."""
    decimals = min(max(3 - math.floor(math.log10(dense_ms)), 0), 6)
    half = (cut.high_ms - cut.low_ms) / 2
    return f"{'' if cut.measured else '~'}{cut.saved_ms:.{decimals}f} ± {half:.{decimals}f}"


def percent(share: float) -> str:
    """``12.3%``; no minus before zero."""
    return f"{round(share, 3) + 0.0:.1%}"


def best_cuts(profile: LatencyProfile) -> list[str]:
    """Where to cut for latency, what makes the network slower, and where MACs promise more than time gives."""
    deepest = [(saving, saving.deepest) for saving in profile.ranking if saving.deepest is not None]
    lines = ["No cut of a single group saves time that could be told from noise."]
    if best := [(saving, cut) for saving, cut in deepest if cut.low_ms > 0]:
        shown = ", ".join(
            f"{saving.group} ({percent(cut.saved)} of the time for {percent(cut.macs)} of the MACs)"
            for saving, cut in best[:SHOWN]
        )
        lines = [f"Where to cut for latency: {shown}."]
    every = [(saving, cut) for saving in profile.savings for cut in saving.cuts if cut is not None]
    if slower := sorted((pair for pair in every if pair[1].high_ms < 0), key=lambda pair: pair[1].saved_ms):
        shown = ", ".join(
            f"{saving.group} to {cut.kept} of {saving.units} ({-cut.saved_ms:.2g} ms)" for saving, cut in slower[:SHOWN]
        )
        how_many = "1 cut makes" if len(slower) == 1 else f"{len(slower)} cuts make"
        lines.append(f"{how_many} the network slower: {shown}: the runtime is not as fast at these widths.")
    if poor := [(saving, cut) for saving, cut in deepest if cut.macs > 0.01 and cut.saved < LITTLE * cut.macs]:
        shown = ", ".join(
            f"{saving.group} ({percent(cut.macs)} → {percent(cut.saved)})" for saving, cut in poor[:SHOWN]
        )
        lines.append(f"MACs promise more than time gives in {len(poor)} of {len(profile.savings)} groups: {shown}.")
    return lines


def notes(profile: LatencyProfile) -> list[str]:
    """How the savings were found, and how to read them."""
    measured, total = profile.num_measured
    lines = [
        f"{measured} of {total} cuts measured as whole subnets in turn with the dense network"
        + (f"; those with ~ are predicted ({profile.predictor})." if measured < total else ".")
    ]
    lines.append(
        "± is half the 95 % interval; a cut whose interval holds 0 is dim. Channels are kept in multiples of "
        f"{profile.align} where a layer is wide enough; – : no such number is near the cut. Savings of several groups "
        "do not simply add up."
    )
    return lines
