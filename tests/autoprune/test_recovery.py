"""Recovery in closed form: what can be rebuilt is, what cannot gets no worse, and the dense model stays as it is."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoprune.evaluate import Evaluator
from autoprune.finish import _repaired
from autoprune.front import FrontPoint
from autoprune.nets import small_resnet
from autoprune.recovery import ladder
from autoprune.recovery.classifier import fit_classifier
from autoprune.recovery.compensate import compensate
from autoprune.recovery.fit import Goal, fit
from autoprune.recovery.ladder import RUNGS, Ladder
from autoprune.recovery.repair import Targets, record, repair
from autoprune.recovery.surroundings import Surroundings
from autoprune.search_spaces import SearchSpace, UserError, trace
from autoprune.search_spaces.layers import watching
from autoprune.search_spaces.moments import collect_moments
from autoprune.search_spaces.surgery import named_tensors
from autoprune.search_spaces.tracer import tensors
from autoprune.tables import final_score, untrained_score
from tests.autoprune.fakes import FakeSpace, conv_net, image_data, same_state, state_of
from tests.search_spaces.nets import IMAGE, randomised
from tests.search_spaces.patterns import PATTERNS

IMAGES = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


class Redundant(nn.Module):
    """Two convolutions and a linear layer; half of each one's units are mixtures of the other half, without ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.Conv2d(8, 8, 3, bias=False)
        self.c, self.d = nn.Linear(8, 8), nn.Linear(8, 4)
        with torch.no_grad():
            for weight in (self.a.weight, self.b.weight, self.c.weight):
                mixture = torch.randn(4, 4) / 4
                weight[4:] = (mixture @ weight[:4].flatten(1)).reshape(4, *weight.shape[1:])

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.d(self.c(self.b(self.a(x)).mean((2, 3))))
        return y


def space_of(model: nn.Module, example: Any = IMAGE) -> SearchSpace:
    return trace(model.eval(), example, align=1)


def error(space: SearchSpace, subnet: nn.Module, x: Tensor = IMAGES) -> float:
    """Relative squared error of the outputs."""
    with torch.no_grad():
        wanted, found = space.model(x), subnet(x)
    return float((wanted - found).square().sum() / wanted.square().sum())


# -- compensation -----------------------------------------------------------------------------------------------------


def test_what_the_kept_units_determine_is_rebuilt_exactly() -> None:
    space = space_of(Redundant())
    space.collect("rebuild", [(IMAGES, None)])
    half = space.candidate(0.5)
    subnet = space.materialise(half, "rebuild")
    assert error(space, subnet) > 1e-3
    kept = space.kept(half, "rebuild")
    changed = compensate(space, subnet, kept, collect_moments(space, [IMAGES]), ridge=1e-9)
    assert changed == ["b.weight", "c.weight", "d.weight"]
    assert error(space, subnet) < 1e-6


def test_a_layer_with_a_bias_gets_the_constant_as_well() -> None:
    """A unit that is always 3 is rebuilt by the bias alone, from units that know nothing of it."""
    first = nn.Linear(6, 4)
    model = nn.Sequential(first, nn.ReLU(), nn.Linear(4, 2))
    with torch.no_grad():
        first.weight[3] = 0
        first.bias[3] = 3.0
        first.weight[:3] += 1
    x = torch.randn(200, 6)
    space = space_of(model, x[:2])
    candidate = space.candidate(0.75)
    space.use_scores("l2", [torch.tensor([4.0, 3, 2, 1]).numpy()])
    subnet = space.materialise(candidate)
    compensate(space, subnet, space.kept(candidate), collect_moments(space, [x]), ridge=1e-9)
    assert error(space, subnet, x) < 1e-10


def test_compensation_is_the_least_squares_fit_of_one_layer() -> None:
    model = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 3, bias=False))
    x = torch.randn(500, 6)
    space = space_of(model, x[:2])
    candidate = space.candidate(0.5)
    subnet = space.materialise(candidate)
    compensate(space, subnet, space.kept(candidate), collect_moments(space, [x]), ridge=0.0)
    with torch.no_grad():
        hidden = model[:2](x)[:, space.kept_units(candidate)[0]]
        best = torch.linalg.lstsq(hidden, model(x)).solution.T
    torch.testing.assert_close(dict(subnet.named_parameters())["2.weight"].detach(), best, rtol=1e-3, atol=1e-4)


# -- what stands behind a layer ---------------------------------------------------------------------------------------


def test_norm_stream_and_clamp_are_found() -> None:
    model = small_resnet(in_channels=3, widths=(8, 16), blocks=(1, 1)).eval()
    seen = Surroundings(model)
    watching(seen, model, lambda: model(IMAGE))
    found = {layer.name: seen.behind(index) for index, layer in seen.once().items()}
    stem = found["stem.weight"]
    assert (stem.low, stem.high, stem.total) == (0.0, None, None)
    assert stem.norm is not None
    assert stem.norm.mean == "bn.running_mean"
    identity = found["stages.0.0.conv2.weight"]  # the shortcut is known before
    assert identity.total is not None
    assert identity.is_known
    first, last = found["stages.1.0.conv2.weight"], found["stages.1.0.shortcut.0.weight"]
    assert first.total == last.total
    assert (first.is_known, last.is_known) == (False, True)  # who runs last corrects the sum
    assert found["head.weight"].total is None


# -- the fit of one layer ---------------------------------------------------------------------------------------------


def goal(values: Tensor, **parts: Any) -> Goal:
    outputs = values.shape[2]
    base = parts.get("base", torch.zeros_like(values))
    return Goal(values, parts.get("scale", torch.ones(1, 1, outputs)), base, parts.get("clamp"))


def test_a_linear_layer_is_found_again() -> None:
    x, true = torch.randn(1, 400, 9), torch.randn(1, 4, 9)
    new, errors = fit(x, torch.zeros(1, 4, 9), goal(x @ true.mT))
    torch.testing.assert_close(new, true, rtol=1e-2, atol=1e-3)
    assert errors.before == pytest.approx(1.0)
    assert errors.after < 1e-6


def test_weights_stay_where_no_fit_is_better_on_unseen_samples() -> None:
    x, old = torch.randn(1, 40, 30), torch.randn(1, 4, 30)
    noise = torch.randn(1, 40, 4)
    noise[:, 32:] = 0  # the held-out rows say that the old weights are right
    new, errors = fit(x, old, goal(x @ old.mT + noise))
    assert torch.equal(new, old)
    assert errors.before == errors.after


def test_what_the_clamp_hides_is_not_fitted() -> None:
    """Wild values below zero are invisible behind a ReLU; the plain fit is spoilt by them."""
    torch.manual_seed(0)
    x, true = torch.randn(1, 2000, 6), torch.randn(1, 3, 6)
    values = x @ true.mT
    spoilt = torch.where(values < 0, values * 10, values)
    plain, _ = fit(x, torch.zeros(1, 3, 6), goal(spoilt))
    clamped, _ = fit(x, torch.zeros(1, 3, 6), goal(spoilt, clamp=(0.0, None)))

    def seen(weights: Tensor) -> float:
        return float(((x @ weights.mT).relu() - values.relu()).square().mean())

    assert seen(clamped) < 0.3 * seen(plain)


def test_the_classifier_is_fitted_to_probabilities() -> None:
    torch.manual_seed(0)
    x, scores = torch.randn(600, 8), 4 * torch.randn(600, 5)
    scores = scores + x @ torch.randn(8, 5)
    old = torch.linalg.lstsq(x[:480], scores[:480]).solution.T

    def divergence(weights: Tensor, rows: slice) -> float:
        log_q, log_p = F.log_softmax(x[rows] @ weights.T, 1), F.log_softmax(scores[rows], 1)
        return float(F.kl_div(log_q, log_p, log_target=True, reduction="batchmean"))

    new = fit_classifier(x, old, scores, 480)
    assert new.dtype == old.dtype
    assert divergence(new, slice(480, None)) < divergence(old, slice(480, None))
    assert divergence(new, slice(0, 480)) < divergence(old, slice(0, 480))
    best = fit_classifier(x, new, scores, 480)
    assert divergence(best, slice(480, None)) <= divergence(new, slice(480, None))


# -- repair -----------------------------------------------------------------------------------------------------------


def test_repair_finds_the_network_that_is_equal() -> None:
    space = space_of(Redundant())
    space.collect("rebuild", [(IMAGES, None)])
    half = space.candidate(0.5)
    subnet = space.materialise(half, "rebuild")
    found = repair(subnet, space.kept(half, "rebuild"), record(space.model, IMAGES))
    assert error(space, subnet) < 1e-3
    assert all(errors.after <= errors.before for errors in found.values())


def test_an_uncut_network_keeps_its_outputs() -> None:
    model = randomised(small_resnet(in_channels=3, widths=(8, 16), blocks=(1, 1)))
    space = space_of(model)
    subnet = space.materialise(space.dense)
    repair(subnet, space.kept(space.dense), record(space.model, IMAGES))
    assert error(space, subnet) < 1e-8


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_networks_of_other_types_keep_their_type(dtype: torch.dtype) -> None:
    space = space_of(Redundant().to(dtype), IMAGE.to(dtype))
    half = space.candidate(0.5)
    subnet, kept = space.materialise(half), space.kept(half)
    images = IMAGES.to(dtype)
    before = error(space, subnet, images)
    compensate(space, subnet, kept, collect_moments(space, [images]))
    repair(subnet, kept, record(space.model, images))
    assert all(p.dtype == dtype for p in subnet.parameters())
    assert error(space, subnet, images) < 0.5 * before


def test_later_branches_correct_the_stream() -> None:
    """Noise in the first block's branch is taken out again by the second block, which is able to."""

    class Stream(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)
            self.head = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            x = x + self.a(x)
            x = x + self.b(x)
            y: Tensor = self.head(x)
            return y

    x = torch.randn(500, 6)
    dense = Stream().eval()
    targets = record(dense, x)
    damaged = copy.deepcopy(dense)
    with torch.no_grad():
        damaged.a.weight += 0.5 * torch.randn(6, 6)
    only_b = {i: t for i, t in targets.layers.items() if t.layer.name == "b.weight"}
    repair(damaged, {}, Targets(targets.inputs, only_b))
    with torch.no_grad():
        torch.testing.assert_close(damaged(x), dense(x), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_pattern_of_network_is_recovered_or_left(pattern: str) -> None:
    """Whatever runs: the outputs keep their shapes and are finite, and the dense model is untouched bit for bit."""
    make, example = PATTERNS[pattern]
    space = trace(randomised(make()).eval(), example, align=1)
    before = state_of(space.model)
    args, kwargs = space.example_inputs
    if kwargs or len({len(a) if isinstance(a, Tensor) else None for a in args}) > 1:
        pytest.skip("not inputs that data can give")
    inputs = args[0] if len(args) == 1 else tuple(args)
    candidate = space.candidate(0.5)
    with torch.no_grad():
        wanted = list(tensors(space.materialise(candidate).eval()(*args)))
    for rung in ("compensate", "repair"):
        subnet = space.materialise(candidate)
        kept = space.kept(candidate)
        compensate(space, subnet, kept, collect_moments(space, [inputs]))
        if rung == "repair":
            found = repair(subnet, kept, record(space.model, inputs))
            assert all(errors.after <= errors.before for errors in found.values())
        with torch.no_grad():
            outputs = list(tensors(subnet.eval()(*args)))
        assert [o.shape for o in outputs] == [w.shape for w in wanted]
        assert all(o.isfinite().all() for o, w in zip(outputs, wanted, strict=True) if w.isfinite().all())
    assert same_state(before, state_of(space.model))


# -- the ladder -------------------------------------------------------------------------------------------------------


def test_rungs_differ_repeat_and_leave_the_dense_model_alone() -> None:
    data = image_data()
    space = trace(conv_net().eval(), data.example(2), align=1)
    before = state_of(space.model)
    candidate = space.candidate(0.4)
    states = []
    for rung in RUNGS:
        scorer = Evaluator(space, data, recovery=rung, calibration_samples=64)
        assert scorer.describe()["recovery"] == rung
        one, two = scorer.subnet(candidate), scorer.subnet(candidate)
        assert same_state(state_of(one), state_of(two))
        assert scorer.evaluate(candidate) == scorer.score(one)
        states.append(state_of(one))
        assert same_state(state_of(scorer.network(candidate, rung)), states[-1])
    for index, state in enumerate(states):
        assert not any(same_state(state, other) for other in states[:index])
    assert same_state(before, state_of(space.model))


def test_repair_is_nearer_to_the_dense_network_than_what_is_below() -> None:
    data = image_data()
    space = trace(conv_net().eval(), data.example(2), align=1)
    scorer = Evaluator(space, data, score="kl", calibration_samples=512)
    scores = {rung: scorer.score(scorer.network(space.candidate(0.5), rung)) for rung in RUNGS}
    assert scores["repair"] > max(scores["slice"], scores["recalibrate"])


def test_repair_takes_as_many_samples_as_memory_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    data = image_data()
    space = trace(conv_net().eval(), data.example(2), align=1)
    per_sample = space.costs(space.dense).peak_bytes // 2
    monkeypatch.setattr(ladder, "MEMORY", 10 * per_sample)
    few = Ladder(space, data, samples=64).targets
    assert isinstance(few.inputs, Tensor)
    assert len(few.inputs) == 10


def test_a_rung_that_must_know_the_cut_is_refused_beside_an_own_slicing() -> None:
    data = image_data()
    space = FakeSpace(conv_net())
    with pytest.raises(UserError, match="recovery='recalibrate'"):
        Evaluator(space, data, recovery="repair")
    with pytest.raises(UserError, match="compensate"):
        Evaluator(space, data, recovery="compensat")
    own = trace(conv_net().eval(), data.example(2), align=1)
    with pytest.raises(UserError, match="slicing of your own"):
        Evaluator(own, data, recovery="repair", materialise=lambda candidate: own.materialise(candidate))


def test_chosen_points_climb_to_a_repair_where_that_is_better(monkeypatch: pytest.MonkeyPatch) -> None:
    data = image_data()
    space = trace(conv_net().eval(), data.example(2), align=1)
    half = space.candidate(0.5)
    scorer = Evaluator(space, data, score="kl", calibration_samples=512)
    found = FrontPoint(trial=0, candidate=half, costs={}, score=scorer.evaluate(half), repaired=7.0)
    point, model = _repaired(found, scorer)
    assert point.repaired is not None
    assert point.score < point.repaired == scorer.score(model)
    assert untrained_score(point) == final_score(point) == point.repaired
    assert FrontPoint.from_dict(point.to_dict()) == point
    better, model = _repaired(replace(found, score=1.0), scorer)  # a repair that scores less is not taken
    assert better.repaired is None
    assert same_state(state_of(model), state_of(scorer.subnet(half)))
    for rung in ("slice", "repair"):
        same, _ = _repaired(found, Evaluator(space, data, recovery=rung, calibration_samples=64))
        assert same.repaired is None
    own, _ = _repaired(found, Evaluator(space, data, recalibrate=lambda network, batches: 0))
    assert own.repaired is None


def test_no_samples_means_no_recovery() -> None:
    data = image_data()
    space = trace(conv_net().eval(), data.example(2), align=1)
    scorer = Evaluator(space, data, recovery="repair", calibration_samples=0)
    assert scorer.recovery == "slice"
    half = space.candidate(0.5)
    sliced = named_tensors(space.materialise(half))
    assert all(torch.equal(t, sliced[name]) for name, t in named_tensors(scorer.network(half)).items())
