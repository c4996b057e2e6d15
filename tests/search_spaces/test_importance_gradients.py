"""Criteria that read gradients, against explicit weight x gradient, explicit gates, and finite differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autoprune.search_spaces import ImportanceWarning, UserError, trace
from autoprune.search_spaces.importance.gradients import scored_places
from autoprune.search_spaces.surgery import named_tensors
from autoprune.search_spaces.tracer import run
from autoprune.search_spaces.verify import SilencingTracer
from tests.search_spaces.nets import (
    IMAGE,
    TOKENS,
    Attention,
    AuxiliaryHead,
    Grouped,
    InvertedResidual,
    Plain,
    Residual,
    Shared,
    randomised,
)

IMAGES = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(2))
TARGETS = torch.tensor([0, 1, 2, 3, 4, 0])
BATCHES = [(IMAGES[:4], TARGETS[:4]), (IMAGES[4:], TARGETS[4:])]
SAMPLES = list(zip(IMAGES.split(1), TARGETS.split(1), strict=True))


def change_by_weights(model: Any, weights: list[tuple[nn.Parameter, int]], batch: tuple[Tensor, Tensor]) -> Tensor:
    """Sum of weight x gradient over the slices of one unit, one unit at a time."""
    model.zero_grad()
    F.cross_entropy(model(batch[0]), batch[1]).backward()
    units = weights[0][0].shape[weights[0][1]]
    sums = torch.zeros(units, dtype=torch.float64)
    for weight, dim in weights:
        assert weight.grad is not None
        for unit in range(units):
            slices = weight.detach().select(dim, unit).double() * weight.grad.select(dim, unit).double()
            sums[unit] += slices.sum()
    model.zero_grad()
    return sums


@pytest.mark.parametrize(("name", "batches"), [("taylor", BATCHES), ("fisher", SAMPLES)])
def test_weight_times_gradient_of_all_that_reads_a_unit(name: str, batches: list[tuple[Tensor, Tensor]]) -> None:
    """Per batch for Taylor; per sample, whatever the batches, for Fisher."""
    model: Any = randomised(Residual())
    space = trace(model, IMAGE, align=1)
    space.collect(name, BATCHES)
    readers = {0: [(model.a[0].weight, 1), (model.head.weight, 1)], 1: [(model.b[0].weight, 1)]}
    for index, weights in readers.items():
        changes = torch.stack([change_by_weights(model, weights, batch) for batch in batches])
        assert space.unit_scores(name)[index] == pytest.approx(changes.square().mean(0).numpy(), rel=1e-4)


def test_fisher_does_not_depend_on_the_batches_and_taylor_does() -> None:
    scores: dict[str, list[Any]] = {"taylor": [], "fisher": []}
    for batches in (BATCHES, SAMPLES):
        space = trace(randomised(Plain()), IMAGE, align=1)
        for name, found in scores.items():
            space.collect(name, batches)
            found.append(space.unit_scores(name)[0])
    assert np.array_equal(scores["fisher"][0], scores["fisher"][1])
    assert scores["taylor"][1] == pytest.approx(scores["fisher"][0])  # batches of one are samples
    assert not np.allclose(scores["taylor"][0], scores["taylor"][1], rtol=0.1)


class Gated(InvertedResidual):
    """The same with a gate on every unit where it is read: before the squeeze, and after the excitation."""

    def gated(self, x: Tensor, gate: Tensor) -> Any:
        each = gate.repeat_interleave(2).reshape(1, -1, 1, 1)  # two depthwise channels a unit
        x = self.depthwise(self.expand(x))
        squeezed = F.relu(self.squeeze(F.adaptive_avg_pool2d(x * each, 1)))
        return self.project(x * self.excite(squeezed).sigmoid() * each).mean((2, 3))

    def forward(self, x: Tensor) -> Any:
        return super().forward(x).mean((2, 3))


@pytest.mark.parametrize(("name", "batches"), [("taylor", BATCHES), ("fisher", SAMPLES)])
def test_it_is_the_derivative_by_a_gate_where_the_unit_is_read(name: str, batches: Any) -> None:
    model: Any = randomised(Gated())
    space = trace(model, IMAGE, align=1)
    space.collect(name, BATCHES)
    squares = []
    for images, targets in batches:
        gate = torch.ones(16, requires_grad=True)
        (gradient,) = torch.autograd.grad(F.cross_entropy(model.gated(images, gate), targets), gate)
        squares.append(gradient.double().square())
    index = [g.name for g in space.groups].index("expand.0")
    assert space.unit_scores(name)[index] == pytest.approx(torch.stack(squares).mean(0).numpy(), rel=1e-4)


def test_small_changes_of_the_loss_are_those_of_silencing_a_little() -> None:
    """Heads: the first-order change equals what shrinking the head by 0.1 % does to the loss, measured."""
    model: Any = randomised(Attention()).double()
    tokens = torch.randn(4, 7, 12, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    targets = torch.tensor([0, 1, 2, 3])
    space = trace(model, TOKENS.double(), align=1)
    space.collect("taylor", [(tokens, targets)])
    index = [g.name for g in space.groups].index("qkv")
    measured = []
    with torch.no_grad():
        for head in range(4):
            losses = []
            for factor in (1 - 1e-3, 1 + 1e-3):
                shrunk: Any = randomised(Attention()).double()
                shrunk.out.weight.view(32, 4, 8)[:, head] *= factor
                losses.append(float(F.cross_entropy(shrunk(tokens), targets)))
            measured.append(((losses[1] - losses[0]) / 2e-3) ** 2)
    assert space.unit_scores("taylor")[index] == pytest.approx(np.array(measured), rel=1e-3)


def test_taylor_finds_the_unit_whose_loss_costs_nothing() -> None:
    """A unit whose reading weights are tiny is silenced at no cost, however large its filters are."""
    model: Any = randomised(Plain())
    with torch.no_grad():
        model[0][0].weight[5] *= 100
        model[0][1].running_var[5] *= 100**2
        model[1][0].weight[:, 5] *= 1e-6
    space = trace(model, IMAGE, align=1)
    for name in ("taylor", "fisher"):
        space.collect(name, BATCHES)
        assert space.ranking(name)[0][-1] == 5
    assert space.ranking("l2")[0][0] == 5
    one_less = [np.array([u for u in range(16) if u != 5]), np.arange(24)]
    tracer = SilencingTracer(space.keep_atoms(one_less), space.parameter_labels(), named_tensors(model))
    silenced = run(tracer, model, (IMAGES.clone(),), {})
    with torch.no_grad():
        assert torch.allclose(silenced, model(IMAGES), atol=1e-3)


def test_readers_are_found_from_labels() -> None:
    def readers(model: nn.Module, example: Tensor) -> dict[str, list[tuple[str, int]]]:
        space = trace(randomised(model), example, align=1)
        found = scored_places(space, [name for name, _ in model.named_parameters()])
        return {group.name: places for group, places in zip(space.groups, found, strict=True)}

    assert readers(Plain(), IMAGE) == {"0.0": [("1.0.weight", 1)], "1.0": [("4.weight", 1)]}
    assert readers(Grouped(), IMAGE) == {"a.0": [("b.0.weight", 1)], "b.0": [("c.weight", 1)]}
    assert readers(Shared(), IMAGE) == {
        "stem.0": [("twice.0.weight", 1), ("up.weight", 1), ("head.weight", 1)],
        "up": [("down.weight", 1)],
    }
    assert readers(Attention(), TOKENS) == {
        "embed": [("qkv.weight", 1), ("up.weight", 1), ("head.weight", 1)],
        "qkv": [("out.weight", 1)],
        "up": [("down.weight", 1)],
    }


def test_units_that_no_weight_reads_are_scored_by_what_makes_them() -> None:
    """Channels of queries and keys meet each other only."""

    class Similar(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k = nn.Linear(12, 8, bias=False), nn.Linear(12, 8, bias=False)

        def forward(self, x: Tensor) -> Any:
            return (self.q(x) @ self.k(x).transpose(1, 2)).mean(1)

    model = Similar()
    space = trace(model, TOKENS, align=1)
    assert scored_places(space, ["q.weight", "k.weight"]) == [[("q.weight", 0), ("k.weight", 0)]]
    space.collect("taylor", [(TOKENS, torch.tensor([0, 6]))])
    loss = F.cross_entropy(model(TOKENS), torch.tensor([0, 6]))
    gradients = torch.autograd.grad(loss, [model.q.weight, model.k.weight])
    changes = sum((w.detach() * g).sum(1) for w, g in zip((model.q.weight, model.k.weight), gradients, strict=True))
    assert isinstance(changes, Tensor)
    assert space.unit_scores("taylor")[0] == pytest.approx(changes.square().numpy(), rel=1e-4)


def test_what_runs_only_in_training_is_named() -> None:
    class Auxiliary(AuxiliaryHead):
        def __init__(self) -> None:
            super().__init__()
            self.between, self.auxiliary = nn.Linear(16, 12), nn.Linear(12, 5)

        def forward(self, x: Tensor) -> Any:
            x = self.a(x)
            main = self.head(self.b(x).mean((2, 3)))
            return (main, self.auxiliary(self.between(x.mean((2, 3))))) if self.training else main

    space = trace(randomised(Auxiliary()), IMAGE, align=1)
    index = [g.name for g in space.groups].index("between")
    for name in ("taylor", "fisher", "mean_activation"):
        with pytest.warns(ImportanceWarning, match=rf"'{name}' .* 1 of 3 groups \(between\).*in evaluation mode"):
            space.collect(name, BATCHES)
        assert np.array_equal(space.unit_scores(name)[index], space.unit_scores("l2")[index])


def test_frozen_weights_are_scored_and_stay_frozen() -> None:
    model = randomised(Plain()).requires_grad_(False).train()
    space = trace(model, IMAGE, align=1)
    space.collect("taylor", BATCHES)
    assert (space.unit_scores("taylor")[0] > 0).any()
    assert not any(p.requires_grad for p in model.parameters())
    assert model.training


@pytest.mark.parametrize("name", ["taylor", "fisher"])
def test_a_loss_that_is_no_number_is_refused(name: str) -> None:
    space = trace(randomised(Plain()), IMAGE)
    with pytest.raises(UserError, match=r"one finite number, but got nan"):
        space.collect(name, BATCHES, loss=lambda output, targets: output.sum() * float("nan"))
    with pytest.raises(UserError, match=r"one finite number, but got a tensor \[\d, 10\]"):
        space.collect(name, BATCHES, loss=lambda output, targets: output)
