"""What budgets on measured costs are held against."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import autoprune as ap
from autoprune.config import SearchConfig
from autoprune.front import Measured
from autoprune.gauge import OCCASIONS
from autoprune.gauges import Gauges, make_gauges, named_devices
from autoprune.latency import LatencyModel, Sample, mixed
from autoprune.measure import Latency
from autoprune.progress import NO_PROGRESS
from autoprune.search_spaces import Budget, SearchSpace, UserError, trace
from tests.autoprune.runs import tiny_net

SPACE = trace(tiny_net(), torch.randn(2, 1, 8, 8))


def config(*budget: str, **settings: Any) -> SearchConfig:
    return SearchConfig(budget=budget, **settings)


def gauges_of(*budget: str, **settings: Any) -> Gauges:
    return make_gauges(config(*budget, **settings), Budget.parse(budget), SPACE)


def learnt(space: SearchSpace, dense_ms: float) -> LatencyModel:
    """A model of a device whose latency is a third overhead, the rest proportional to the MACs."""
    candidates = mixed(space, 12, seed=0)
    macs = space.cost("macs", [*candidates, space.dense])
    shares = (1 + 2 * macs[:-1] / macs[-1]) / 3
    return LatencyModel(
        space, dense_ms, tuple(Sample(c, dense_ms * s) for c, s in zip(candidates, shares, strict=True))
    )


def latency(ratio: float, dense_ms: float = 4.0, **values: Any) -> Latency:
    ms = ratio * dense_ms
    given: dict[str, Any] = {
        "ms": ms, "low_ms": 0.99 * ms, "high_ms": 1.01 * ms, "median_ms": ms, "p10_ms": ms, "iqr_ms": 0.0,
        "cpu_ms": ms, "ratio": ratio, "ratio_low": 0.95 * ratio, "ratio_high": 1.05 * ratio, "reference": "dense",
        "repeats": 10, "warmup": 5, "settled": True, "threads": 1, "batch": 2, "precision": "fp32", "device": "x",
    }  # fmt: skip
    return Latency(**{**given, **values})


def test_devices_are_named_or_go_by_their_runtime() -> None:
    given = ("onnxruntime", "phone=command:./time.sh --board=3", "eager:precision=bf16,layout=channels_last")
    assert named_devices(config("latency=1ms", runtimes=given)) == {
        "onnxruntime": "onnxruntime",
        "phone": "command:./time.sh --board=3",
        "eager": "eager:precision=bf16,layout=channels_last",
    }


def test_names_are_read_as_in_budgets_and_given_once() -> None:
    assert named_devices(config("latency=1ms", runtimes=("Phone=eager",))) == {"phone": "eager"}
    with pytest.raises(UserError, match=r"'eager' is given twice.*NAME=eager:precision=bf16"):
        named_devices(config("latency=1ms", runtimes=("eager", "eager:precision=bf16")))


def test_energy_is_that_of_this_machine(tmp_path: Path) -> None:
    script = tmp_path / "time.sh"
    script.write_text("#!/bin/sh\necho 1.0\n")
    script.chmod(0o755)
    found = gauges_of("energy@phone=5mJ", runtimes=(f"phone=command:{script}",))
    with found, pytest.raises(UserError, match="runs elsewhere"):
        found.gauges[0].stopwatch  # noqa: B018  (opens it)


def test_names_that_cannot_be_typed_in_a_budget_are_refused() -> None:
    for name in ("worst=eager", "=eager", "my/phone=eager"):
        with pytest.raises(UserError, match="A device is named with letters"):
            named_devices(config("latency=1ms", runtimes=(name,)))


def test_a_model_of_another_release_of_the_runtime_is_not_used(tmp_path: Path) -> None:
    found = gauges_of("latency=1ms")
    found.gauges[0].model = learnt(SPACE, 4.0)
    found.save(tmp_path)
    with pytest.raises(UserError, match=r"was measured on .*, this is eager.*--measure-latency"):
        found.load(SPACE, tmp_path, NO_PROGRESS)


def test_each_limit_has_the_gauge_of_its_device_and_batch() -> None:
    found = gauges_of(
        "latency=1ms", "latency@onnxruntime=1ms", "throughput=10/s", "latency@worst=0.9x", "macs=0.5x",
        runtimes=("eager", "onnxruntime"), throughput_batch=16,
    )  # fmt: skip
    assert [gauge.name for gauge in found.gauges] == ["eager-2", "onnxruntime-2", "eager-16"]
    assert {cost: [gauge.name for gauge in gauges] for cost, (_, gauges) in found.costs.items()} == {
        "latency": ["eager-2"],
        "latency@onnxruntime": ["onnxruntime-2"],
        "throughput": ["eager-16"],
        "latency@worst": ["eager-2", "onnxruntime-2"],
    }
    assert found.budgeted == found.gauges


def test_without_such_a_limit_there_is_one_gauge_to_show_points_with() -> None:
    found = gauges_of("macs=0.5x", runtimes=("onnxruntime",))
    assert ([gauge.name for gauge in found.gauges], found.costs, found.budgeted) == (["onnxruntime-2"], {}, ())


def test_an_unknown_device_is_refused_with_those_there_are() -> None:
    with pytest.raises(UserError, match=r"device in the budget.*'phone'.*board"):
        gauges_of("latency@phone=1ms", runtimes=("board=command:./time.sh",))


def test_energy_without_counters_is_refused() -> None:
    with pytest.raises(UserError, match="does not show how much energy"), gauges_of("energy=5mJ") as found:
        found.gauges[0].stopwatch  # noqa: B018  (opens it)


def test_costs_are_upper_ends_of_predictions_in_their_own_units() -> None:
    found = gauges_of(
        "latency=1ms", "throughput=10/s", "latency@worst=0.9x",
        runtimes=("eager", "onnxruntime"), throughput_batch=16,
    )  # fmt: skip
    dense_ms = {"eager-2": 4.0, "onnxruntime-2": 2.0, "eager-16": 24.0}
    for gauge in found.gauges:
        gauge.model = learnt(SPACE, dense_ms[gauge.name])
    space = trace(tiny_net(), torch.randn(2, 1, 8, 8))
    found.add_costs(space, 0.9)
    assert [space.cost(cost, [space.dense])[0] for cost in found.costs] == [4.0, 24.0 / 16, 1.0]
    others = np.array([space.smallest, *mixed(space, 20, seed=3)])
    expected = found.gauges[0].predictor.cost(confidence=0.9)(space.units(others))
    assert (space.cost("latency", others) == expected).all()
    assert space.cost("throughput", others) == pytest.approx(expected * 6 / 16)
    assert space.cost("latency@worst", others) == pytest.approx(expected / 4)
    before = space.cost("latency", others)
    found.learn(found.readings(tuple(others[1]), {gauge.name: latency(0.99) for gauge in found.gauges}))
    assert space.cost("latency", others)[1] > before[1], "costs move as models learn"


def test_limits_are_held_against_upper_ends_and_people_see_the_middle() -> None:
    found = gauges_of("latency=1ms", "throughput=10/s", "latency@worst=0.9x", runtimes=("eager", "onnxruntime"))
    for gauge in found.gauges:
        gauge.model = learnt(SPACE, 4.0)
    measured = {gauge.name: latency(0.5) for gauge in found.gauges} | {"onnxruntime-2": latency(0.6)}
    assert found.values(measured) == pytest.approx(
        {"latency": 0.5 * 1.05 * 4, "throughput": 0.5 * 1.05 * 4 / 32, "latency@worst": 0.6 * 1.05}
    )
    sure = {name: latency(0.5, ratio_low=0.5, ratio_high=0.5) for name in measured}
    assert found.values(sure)["latency"] == pytest.approx(0.5 * (1 + OCCASIONS) * 4)
    seen = found.measured(measured)
    assert seen["latency"] == pytest.approx(Measured(2.0, 1.98, 2.02, 0.5))
    assert seen["throughput"] == pytest.approx(Measured(2.0 / 32, 1.98 / 32, 2.02 / 32, 2.0))
    assert seen["latency@worst"][:3] == pytest.approx((0.6, 0.57, 0.63))


def test_a_slower_machine_is_noticed() -> None:
    found = gauges_of("latency=1ms")
    (gauge,) = found.gauges
    gauge.model = learnt(SPACE, 4.0)
    lines: list[str] = []
    progress: Any = type("Lines", (), {"say": lambda _, text: lines.append(text)})()
    for dense_ms, slowdown, said in ((3.0, 1.0, 0), (4.2, 1.05, 0), (6.0, 1.5, 1), (5.0, 1.5, 1)):
        found.recheck({"eager-2": {"dense": latency(1.0, dense_ms)}}, progress)
        assert found.slowdown("latency") == pytest.approx(slowdown)
        assert len(lines) == said
    assert "slower milliseconds of now" in lines[0]


def test_the_smallest_subnet_never_costs_more_than_it_did_in_the_beginning() -> None:
    """Else a search could stand without a candidate in its middle."""
    found = gauges_of("latency=1ms")
    found.gauges[0].model = learnt(SPACE, 4.0)
    space = trace(tiny_net(), torch.randn(2, 1, 8, 8))
    found.add_costs(space, 0.9)
    (before,) = space.cost("latency", [space.smallest])
    small = space.candidate(0.2)
    (other,) = space.cost("latency", [small])
    for _ in range(4):
        found.learn([found.gauges[0].reading(c, latency(0.95)) for c in (space.smallest, small)])
    assert space.cost("latency", [space.smallest])[0] == before
    assert space.cost("latency", [small])[0] > other


def test_several_limits_on_several_devices_are_kept_to_the_end_and_over_a_resume(tmp_path: Path) -> None:
    from autoprune.models import ModelSource
    from tests.autoprune.runs import SETTINGS

    net = ModelSource("autoprune.nets:small_resnet", {"widths": [8, 16], "blocks": [1, 1]})
    budget = ["latency=9s", "latency@onnxruntime=9s", "throughput=0.1/s", "size=0.9x", "macs=0.9x"]
    settings = {**SETTINGS, "budget": budget, "runtimes": ["eager", "onnxruntime"], "throughput_batch": 4}
    result = ap.search(net, data="digits", **settings, measure_trials="on", trials=2, run=tmp_path / "r")
    assert all(trial.readings for trial in result.trials)
    assert {reading.gauge for trial in result.trials for reading in trial.readings} == {
        "eager-1", "onnxruntime-1", "eager-4"
    }  # fmt: skip
    for point in result.front:
        assert set(point.latencies) == {"eager-1", "onnxruntime-1", "eager-4"}
        assert {"latency", "latency@onnxruntime", "throughput"} <= set(point.measured) & set(point.costs)
        assert point.costs["size"] <= 0.9 * result.dense.costs["size"]
    again = ap.resume(tmp_path / "r", trials=1)
    assert [t.readings for t in again.trials[:2]] == [t.readings for t in result.trials]
    assert len(again.trials) == 3


def test_only_who_measures_needs_the_device(tmp_path: Path) -> None:
    """A worker on another machine predicts with what was learnt on this one; measuring there is refused."""
    gauges = gauges_of("latency=0.8x", runtimes=("eager",))
    gauges.gauges[0].model = learnt(SPACE, 4.0)
    gauges.gauges[0].model.runtime = "eager on a machine elsewhere"
    gauges.save(tmp_path)
    for mend, words in ((None, "Measure again on this device"), ("Work there.", "Work there.")):
        gauges.mend = mend
        with pytest.raises(UserError, match=f"measured on eager on a machine elsewhere, this is .*{words}"):
            gauges.load(SPACE, tmp_path, NO_PROGRESS)
    gauges.measuring = False
    gauges.load(SPACE, tmp_path, NO_PROGRESS)
    assert gauges.gauges[0].predictor.dense_ms == 4.0
