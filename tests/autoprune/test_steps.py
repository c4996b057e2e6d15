"""Channel steps, found on runtimes whose step is known: times are computed, no clock has a part in them."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from autoprune.runtimes import Runnable, Runtime, Session, Times
from autoprune.search_spaces import trace
from autoprune.steps import CENTRES, FALSE_ALARM, PROBES, STEPS, ProbeNet, find_steps, judge, kinds_of, ladder
from tests.search_spaces.nets import InvertedResidual, Plain, randomised

Cost = Callable[[int], float]


@pytest.fixture(autouse=True)
def _no_collection(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stopwatch collects garbage first, which takes longer here than all else, and changes no computed time."""
    monkeypatch.setattr(gc, "collect", lambda: 0)


def smooth(width: int) -> float:
    return 0.02 + 1e-3 * width + 1e-5 * width**2


def in_blocks(step: int) -> Cost:
    """Kernels that fill up to whole blocks: widths cost what the next multiple costs."""
    return lambda width: smooth(math.ceil(width / step) * step)


def slow_beside(step: int, penalty: float) -> Cost:
    """Another kernel, slower by a share, wherever the width is no multiple."""
    return lambda width: smooth(width) * (1 + penalty * (width % step != 0))


class Computed(Runtime):
    """Takes the time of a cost of the width, by kind of op, with noise and now and then an interruption."""

    name: ClassVar[str] = "computed"
    precision = "fp32"
    version = "1.0"
    settings: Mapping[str, str] = {}
    threads = 1
    clock = "cpu"

    def __init__(self, costs: Mapping[str, Cost], noise: float = 0.0, seed: int = 0) -> None:
        self.costs, self.noise, self.rng = costs, noise, np.random.default_rng(seed)
        self.runs = 0

    @property
    def device(self) -> str:
        return "a formula"

    def open(self, dense: nn.Module, inputs: Any) -> Session:
        return _Session(self)


class _Session(Session):
    def __init__(self, runtime: Computed) -> None:
        self._runtime = runtime

    def load(self, model: nn.Module) -> Runnable:
        assert isinstance(model, ProbeNet)
        layers = [layer for layer in model if not isinstance(layer, nn.ReLU)]
        kind = "linear" if isinstance(layers[1], nn.Linear) else "conv"
        if any(isinstance(layer, nn.Conv2d) and layer.groups > 1 for layer in layers):
            kind = "depthwise"
        return _Run(self._runtime, self._runtime.costs[kind](model.width))


class _Run:
    def __init__(self, runtime: Computed, ms: float) -> None:
        self._runtime, self._ms = runtime, ms

    def __call__(self) -> Times:
        runtime = self._runtime
        runtime.runs += 1
        ms = self._ms * math.exp(runtime.noise * runtime.rng.standard_normal())
        if runtime.noise and runtime.rng.random() < 0.03:
            ms *= 3
        return Times(ms, ms)

    def layers(self) -> dict[str, float] | None:
        return None


@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_the_step_of_each_kind_is_found(noise: float) -> None:
    costs = {"conv": in_blocks(16), "depthwise": slow_beside(8, 0.3), "linear": smooth}
    assert find_steps(Computed(costs, noise), rounds=9) == {"conv": 16, "depthwise": 8, "linear": 1}


@pytest.mark.parametrize("step", [1, *STEPS])
def test_every_step_is_found(step: int) -> None:
    assert find_steps(Computed({"linear": slow_beside(step, 0.1)}, 0.01), ["linear"], rounds=9) == {"linear": step}


@pytest.mark.parametrize("cost", [slow_beside(16, 0.015), in_blocks(2)], ids=["too little", "narrow blocks"])
def test_what_is_not_worth_coarser_levels_is_no_step(cost: Cost) -> None:
    assert find_steps(Computed({"linear": cost}), ["linear"], rounds=1) == {"linear": 1}


def test_kinds_that_a_network_lacks_are_not_measured() -> None:
    runtime = Computed({"linear": in_blocks(4)})
    assert find_steps(runtime, [], rounds=1) == {}
    assert runtime.runs == 0


def test_false_alarms_are_as_rare_as_stated() -> None:
    """Pure noise, of times as raw as a single run and of the worst kind: the penalty is exactly what is tolerated."""
    rng = np.random.default_rng(0)
    trials = 400
    alarms = 0
    widths = [width for centre in CENTRES for width in [ladder(centre)]]
    for _ in range(trials):
        steps = []
        for _probe in range(sum(probe.kind == "conv" for probe in PROBES)):
            places = [{w: slow_beside(2, 0.02)(w) * (1 + 0.05 * rng.standard_normal()) for w in around}
                      for around in (*widths, *widths)]  # fmt: skip
            steps.append(judge(places, "conv")[1])
        alarms += max(steps) > 1
    assert 0 < alarms <= trials * FALSE_ALARM + 3 * math.sqrt(trials * FALSE_ALARM)


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_smooth_costs_have_no_penalty(degree: int) -> None:
    places = [{w: 5 + float(w) ** degree for w in ladder(centre)} for centre in CENTRES]
    evidence, step = judge(places * 2, "linear")
    assert step == 1
    assert evidence[0].penalty == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("probe", PROBES, ids=lambda probe: probe.name)
def test_probes_run_and_only_the_width_inside_differs(probe: Any) -> None:
    for shape in probe.inputs:
        for width in (5, 96):
            out = ProbeNet(probe, width)(torch.zeros(shape))
            assert out.shape == shape
            kinds = kinds_of(trace(ProbeNet(probe, 96).eval(), torch.zeros(shape)).ops)
            assert probe.kind in kinds


def test_kinds_of_a_network() -> None:
    image = torch.zeros(1, 3, 8, 8)
    assert kinds_of(trace(randomised(Plain()), image).ops) == ("conv", "linear")
    assert set(kinds_of(trace(randomised(InvertedResidual()), image).ops)) == {"conv", "depthwise"}
