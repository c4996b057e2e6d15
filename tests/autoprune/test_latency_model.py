"""The latency model against devices whose law is known: what it recovers, how sure it is, and that it is the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from autoprune.latency import LatencyModel, Sample, informative, mixed
from autoprune.latency.features import Features
from autoprune.measure.device_profile import DeviceProfile
from autoprune.measure.robust import Estimate
from autoprune.runtimes import make_runtime
from autoprune.search_spaces import Budget, Candidate, SearchSpace, UserError, trace
from autoprune.search_spaces.types import FloatArray
from tests.autoprune.documents import rewrite

Law = Callable[[SearchSpace, list[Candidate]], FloatArray]


@cache
def resnet() -> SearchSpace:
    torch.manual_seed(0)
    return trace(torchvision.models.resnet18(weights=None).eval(), torch.randn(1, 3, 64, 64))


def shares(space: SearchSpace, candidates: list[Candidate]) -> FloatArray:
    """Kept units of every group as shares, [n, G]."""
    found: FloatArray = space.units(candidates) / np.array([g.num_units for g in space.groups])
    return found


def cost_share(space: SearchSpace, name: str, candidates: list[Candidate]) -> FloatArray:
    return space.cost(name, candidates) / space.cost(name, [space.dense])


def additive(space: SearchSpace, candidates: list[Candidate]) -> FloatArray:
    """Overhead, arithmetic, weights that are read, and something per channel that differs for every group."""
    per_group = np.random.default_rng(0).lognormal(-1, 1, len(space.groups))
    arithmetic = 12 * cost_share(space, "macs", candidates) + 3 * cost_share(space, "params", candidates)
    total: FloatArray = 2 + arithmetic + shares(space, candidates) @ per_group
    return total


def stepped(space: SearchSpace, candidates: list[Candidate]) -> FloatArray:
    """Work per group in blocks of 32 channels."""
    units = -(-space.units(candidates) // 32) / (-(-space.units([space.dense]) // 32))
    total: FloatArray = 2 + 12 * cost_share(space, "macs", candidates) + units.sum(1)
    return total


def narrow_is_slow(space: SearchSpace, candidates: list[Candidate]) -> FloatArray:
    """One layer for which the device has a good kernel only at full width."""
    return additive(space, candidates) + 4 * (1 - shares(space, candidates)[:, 3])


def noisy(values: FloatArray, spread: float, seed: int = 0) -> FloatArray:
    return values * np.random.default_rng(seed).lognormal(0, spread, len(values))


def learnt(law: Law, *, subnets: int = 28, spread: float = 0.01, seed: int = 0) -> LatencyModel:
    space = resnet()
    candidates = informative(space, subnets, seed)
    measured = noisy(law(space, candidates), spread, seed)
    samples = tuple(Sample(c, float(ms)) for c, ms in zip(candidates, measured, strict=True))
    return LatencyModel(space, float(law(space, [space.dense])[0]), samples)


def off(model: LatencyModel, law: Law) -> float:
    """Mean absolute relative error on subnets that were not measured."""
    space = resnet()
    held_out = mixed(space, 200, seed=99)
    truth = law(space, held_out)
    return float(np.mean(np.abs(model.predict(space.units(held_out))[0] / truth - 1)))


@pytest.mark.parametrize(("law", "most"), [(additive, 0.02), (stepped, 0.035), (narrow_is_slow, 0.03)])
def test_the_law_of_a_device_is_recovered(law: Law, most: float) -> None:
    model = learnt(law)
    assert off(model, law) < most
    assert model.error.mape < 2 * most
    assert model.error.spearman > 0.96


def test_errors_of_single_ops_are_found() -> None:
    """Affine in MACs, the best that is possible without looking at single layers, is far off on this device."""
    space = resnet()
    held_out = mixed(space, 200, seed=99)
    truth, macs = narrow_is_slow(space, held_out), space.cost("macs", held_out)
    slope, intercept = np.polyfit(macs, truth, 1)
    affine = float(np.mean(np.abs((slope * macs + intercept) / truth - 1)))
    assert off(learnt(narrow_is_slow), narrow_is_slow) < affine / 2


def test_dense_is_exact_and_certain() -> None:
    space = resnet()
    model = learnt(additive, spread=0.05)
    dense = space.units([space.dense])
    ms, sd = model.predict(dense)
    assert (ms[0], sd[0]) == (model.dense_ms, 0.0)
    assert model.cost(confidence=0.99)(dense)[0] == model.dense_ms


@pytest.mark.parametrize("spread", [0.01, 0.04])
def test_intervals_hold_what_they_say(spread: float) -> None:
    space = resnet()
    model = learnt(additive, spread=spread)
    held_out = mixed(space, 400, seed=99)
    measured = noisy(additive(space, held_out), spread, seed=7)
    upper = model.cost(confidence=0.9)(space.units(held_out))
    assert 0.8 <= np.mean(measured <= upper) <= 0.99
    assert model.error.coverage >= 0.75


def test_doubt_grows_away_from_what_was_measured() -> None:
    """One group cut alone, when only uniform subnets were measured, is less certain than a uniform one."""
    space = resnet()
    candidates = [space.candidate(r) for r in (0.2, 0.4, 0.6, 0.8)]
    truth = additive(space, candidates)
    model = LatencyModel(
        space,
        float(additive(space, [space.dense])[0]),
        tuple(Sample(c, float(ms)) for c, ms in zip(candidates, truth, strict=True)),
    )
    alone = space.candidate({g.name: 0.1 if i % 2 else 1.0 for i, g in enumerate(space.groups)})
    ms, sd = model.predict(space.units([space.candidate(0.5), alone]))
    assert sd[1] / ms[1] > 2 * sd[0] / ms[0]


def test_learning_improves_predictions_and_certainty() -> None:
    space = resnet()
    few = learnt(additive, subnets=5)
    before, (_, sd_before) = off(few, additive), few.predict(space.units([space.smallest]))
    candidates = mixed(space, 40, seed=5)
    for candidate, ms in zip(candidates, additive(space, candidates), strict=True):
        few.learn(candidate, float(ms))
    assert off(few, additive) < before / 2
    assert few.predict(space.units([space.smallest]))[1][0] < sd_before[0]
    assert len(few.samples) == 45


def test_standard_errors_count() -> None:
    """A wrong sample that says it is uncertain does little harm."""
    space = resnet()
    sure, unsure = learnt(additive), learnt(additive)
    wrong = mixed(space, 1, seed=3)[0]
    ms = 2 * float(additive(space, [wrong])[0])
    sure.learn(wrong, ms)
    unsure.learn(wrong, ms, se=ms)
    assert off(unsure, additive) < 0.75 * off(sure, additive)


def test_repeats_are_averaged() -> None:
    space = resnet()
    one, two = learnt(additive), learnt(additive)
    candidate = mixed(space, 1, seed=3)[0]
    ms = float(additive(space, [candidate])[0])
    one.learn(candidate, ms)
    two.learn(candidate, ms * 0.75)
    two.learn(candidate, ms * 1.25)
    units = space.units(mixed(space, 20, seed=4))
    assert np.allclose(one.predict(units), two.predict(units), rtol=1e-12)


def test_same_samples_same_model_also_after_a_file(tmp_path: Path) -> None:
    space = resnet()
    units = space.units(mixed(space, 50, seed=1))
    layers = {"conv1": 2.0, "layer3.0.conv2": 1.0}
    samples = learnt(additive).samples
    first = LatencyModel(space, 20.0, samples, layers=layers)
    second = LatencyModel(space, 20.0, samples[:20], layers=layers)
    for sample in samples[20:]:
        second.learn(sample.candidate, sample.ms, sample.se)
    assert (np.array(first.predict(units)) == np.array(second.predict(units))).all()
    first.learn(mixed(space, 1, seed=3)[0], 7.1, 0.1)
    first.save(tmp_path / "model.json")
    again = LatencyModel.load(tmp_path / "model.json", space)
    assert again.samples == first.samples
    assert (np.array(again.predict(units)) == np.array(first.predict(units))).all()
    assert again.error == first.error


def test_predictions_are_vectorised() -> None:
    space = resnet()
    model = learnt(additive)
    units = space.units(mixed(space, 30, seed=1))
    together = model.cost()(units)
    assert np.allclose(together, [model.cost()(row[None])[0] for row in units], rtol=1e-12)
    assert model.cost()(units[:0]).shape == (0,)


def test_shares_are_those_of_the_real_subnet() -> None:
    """What ops compute, read and write, counted by hand: only the first stage is cut, to two widths."""
    space = resnet()
    features = Features(space)
    candidate = space.candidate({"conv1": 0.5, "layer1.0.conv1": 0.75})
    found = features(space.units([candidate]))[0]
    assert features(space.units([space.dense]))[0] == pytest.approx(np.ones(len(found)))
    subnet = space.materialise(candidate, share=True)
    conv = subnet.get_submodule("layer1.0.conv1")
    assert isinstance(conv, nn.Conv2d)
    assert conv.in_channels != conv.out_channels
    expected = {conv.in_channels / 64, conv.out_channels / 64, conv.in_channels * conv.out_channels / 64**2}
    assert set(found) == {1.0, *expected}


def test_times_of_layers_make_a_better_guess() -> None:
    """One layer takes half of the time: told so, the model knows what cutting it saves before it is ever cut."""
    space = resnet()
    name, others = "layer2.0.conv1", [path for path, _ in space.model.named_modules() if "conv" in path]
    told = {**dict.fromkeys(others, 1.0), name: float(len(others))}
    half = space.units([space.candidate({name: 0.5})])
    blind, knowing = LatencyModel(space, 10.0), LatencyModel(space, 10.0, layers=told)
    assert blind.predict(half)[0][0] > 9
    assert 6.5 < knowing.predict(half)[0][0] < 8.5
    assert sum(knowing._prior.guess) == pytest.approx(1)


def test_projection_keeps_the_predicted_upper_end() -> None:
    space = trace(torchvision.models.resnet18(weights=None).eval(), torch.randn(1, 3, 64, 64))
    model = learnt(additive)
    space.add_cost("latency", model.cost(confidence=0.9))
    limit = 0.5 * model.dense_ms
    chosen = space.project([1.0] * len(space.groups), Budget.parse(f"latency={limit:.6f}ms"))
    assert 0.9 * limit < space.cost("latency", [chosen])[0] <= limit


class FakeStopwatch:
    """Measures by the law; the machine is 10 % slower than when `dense_ms` was found: only ratios can be trusted."""

    def __init__(self, space: SearchSpace, law: Law, *, speed: float = 1.0) -> None:
        self.space, self.law, self.measured = space, law, 0
        self.dense_ms = speed * float(law(space, [space.dense])[0])
        self.dense = Estimate(self.dense_ms, 0.99 * self.dense_ms, 1.01 * self.dense_ms)
        self.runtime, self.batch = make_runtime("eager"), 1

    def layers(self) -> dict[str, float] | None:
        return {"conv1": 3.0, "layer1.0.conv1": 1.0}

    def measure(self, models: Mapping[str, nn.Module], **settings: Any) -> dict[str, Any]:
        """The law knows candidates, not networks: find the one with the same parameters."""
        self.measured += len(models)
        by_params = {self.space.costs(c).params: c for c in informative(self.space, 24, seed=0)}
        found = {}
        for name, model in models.items():
            candidate = by_params[sum(p.numel() for p in model.parameters())]
            ratio = float((self.law(self.space, [candidate]) / self.law(self.space, [self.space.dense]))[0])
            found[name] = SimpleNamespace(ms=1.1 * ratio * self.dense_ms, ratio=ratio, ratio_se=0.01 * ratio / 1.96)
        return found


def test_measuring_with_a_stopwatch() -> None:
    space = resnet()
    watch: Any = FakeStopwatch(space, additive)
    model = LatencyModel.measure(space, watch, subnets=24, seed=0)
    assert [s.candidate for s in model.samples] == informative(space, 24, seed=0)
    assert off(model, additive) < 0.02
    assert model.samples[0].se == pytest.approx(0.01 * model.samples[0].ms / 1.96, rel=1e-6)
    assert model.runtime.startswith("eager")


def test_a_device_profile_spares_measuring(tmp_path: Path) -> None:
    """A machine 5 % slower today is the same machine; one 50 % slower is not."""
    space = resnet()
    first: Any = FakeStopwatch(space, additive)
    profile = DeviceProfile(tmp_path / "device.json")
    before = LatencyModel.measure(space, first, subnets=24, seed=0, profile=profile)
    again: Any = FakeStopwatch(space, additive, speed=1.05)
    after = LatencyModel.measure(space, again, subnets=24, seed=0, profile=DeviceProfile(profile.path))
    assert again.measured == 0
    units = space.units(mixed(space, 20, seed=3))
    assert np.allclose(after.predict(units)[0], 1.05 * before.predict(units)[0])
    other: Any = FakeStopwatch(space, additive, speed=1.5)
    LatencyModel.measure(space, other, subnets=24, seed=0, profile=DeviceProfile(profile.path))
    assert other.measured == 24


def test_informative_subnets_beat_uniform_ones() -> None:
    space = resnet()
    uniform = [space.candidate(float(r)) for r in np.linspace(0.1, 0.95, 24)]
    truth = noisy(additive(space, uniform), 0.01)
    samples = tuple(Sample(c, float(ms)) for c, ms in zip(uniform, truth, strict=True))
    model = LatencyModel(space, float(additive(space, [space.dense])[0]), samples)
    assert off(learnt(additive, subnets=24), additive) < 0.5 * off(model, additive)


def test_informative_subnets_are_distinct_and_the_same_each_time() -> None:
    space = resnet()
    chosen = informative(space, 20, seed=1)
    assert len(set(chosen)) == 20
    assert space.dense not in chosen
    assert chosen[0] == space.smallest
    assert chosen == informative(space, 20, seed=1)


def test_mixed_subnets_of_a_tiny_space_end() -> None:
    space = trace(nn.Sequential(nn.Linear(4, 2), nn.ReLU(), nn.Linear(2, 2)), torch.randn(1, 4), align=1)
    assert 1 <= len(mixed(space, 50, seed=0)) <= 2
    assert len(informative(space, 50, seed=0)) <= 2


@pytest.mark.parametrize("number", [0, 1, 2])
def test_few_samples_are_enough_to_predict(number: int) -> None:
    """Without any, the roofline's guess speaks, with the doubt that it deserves."""
    space = resnet()
    model = learnt(additive, subnets=number)
    ms, sd = model.predict(space.units([space.dense, space.candidate(0.5)]))
    assert 0 < ms[1] < ms[0]
    assert sd[1] > 0
    assert np.isnan(model.error.mape)


BAD: list[tuple[Candidate, float, float, str]] = [
    ((0,), 1.0, 0.0, "one level for each of"),
    ((99,) * 12, 1.0, 0.0, "one level for each of"),
    ((0,) * 12, 0.0, 0.0, "positive number"),
    ((0,) * 12, float("nan"), 0.0, "positive number"),
    ((0,) * 12, 1.0, -1.0, "standard error"),
]


@pytest.mark.parametrize(("candidate", "ms", "se", "message"), BAD)
def test_bad_samples_are_refused_and_change_nothing(candidate: Candidate, ms: float, se: float, message: str) -> None:
    model = learnt(additive)
    with pytest.raises(UserError, match=message):
        model.learn(candidate, ms, se)
    assert len(model.samples) == 28


def test_a_bad_confidence_is_refused() -> None:
    with pytest.raises(UserError, match=r"0\.5 <= confidence < 1"):
        learnt(additive).cost(confidence=90)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 1}, "its format is 1, not 2"),
        ({"format": 3}, "newer autoprune"),
        ({"fingerprint": "x"}, "another device"),
        ({"space": "x"}, "another network"),
        ({"samples": [{"candidate": [0]}]}, "is damaged"),
        ({"dense_ms": "fast"}, "is damaged"),
        ({"dense_ms": -1}, "positive number"),
    ],
)
def test_files_that_cannot_be_used(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "model.json"
    learnt(additive).save(path)
    rewrite(path, lambda content: content.update(change))
    with pytest.raises(UserError, match=message):
        LatencyModel.load(path, resnet())
