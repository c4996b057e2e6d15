"""Criteria that read weights, against values computed by hand; and what every criterion must keep to."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from autoprune.search_spaces import CRITERIA, ImportanceWarning, SearchSpace, UserError, trace
from autoprune.search_spaces.tracer import tensors
from autoprune.search_spaces.types import FloatArray
from tests.search_spaces.nets import (
    IMAGE,
    NETS,
    TOKENS,
    Attention,
    Grouped,
    InvertedResidual,
    Plain,
    Residual,
    randomised,
)
from tests.search_spaces.patterns import PATTERNS

LABELS = torch.tensor([0, 1])


def group(space: SearchSpace, name: str, criterion: str) -> FloatArray:
    """Scores of one group, scaled to mean 1: averages over one place change nothing else."""
    return scaled(space.unit_scores(criterion)[[g.name for g in space.groups].index(name)])


def scaled(values: Any) -> FloatArray:
    array: FloatArray = np.asarray(values, dtype=np.float64)
    mean = float(array.mean())
    return array / mean


class Tiny(nn.Module):
    """Three filters of four weights, written out."""

    def __init__(self, filters: list[list[float]]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, len(filters), 2, bias=False)
        self.conv.weight = nn.Parameter(torch.tensor(filters).reshape(-1, 1, 2, 2))
        self.head = nn.Conv2d(len(filters), 2, 1)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.conv(x).relu())


FILTERS = [[1.0, 0.0, 0.0, 0.0], [3.0, 0.0, 4.0, 0.0], [1.0, -1.0, 1.0, -1.0]]
PIXELS = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))


def test_norms_by_hand() -> None:
    space = trace(Tiny(FILTERS), PIXELS)
    assert group(space, "conv", "l1") == pytest.approx(scaled([1, 7, 4]))
    assert group(space, "conv", "l2") == pytest.approx(scaled([1, 5, 2]))
    assert space.ranking("l1")[0].tolist() == space.ranking("l2")[0].tolist() == [1, 2, 0]


def test_distances_to_the_other_filters_by_hand_and_by_a_double_loop() -> None:
    space = trace(Tiny(FILTERS), PIXELS)
    pairs = {(0, 1): math.sqrt(20), (0, 2): math.sqrt(3), (1, 2): math.sqrt(4 + 1 + 9 + 1)}
    sums = [sum(d for pair, d in pairs.items() if i in pair) for i in range(3)]
    assert group(space, "conv", "fpgm") == pytest.approx(scaled(sums))
    model: Any = randomised(Plain())
    weight = model[1][0].weight.detach().double().flatten(1)
    looped = [sum(float((a - b).pow(2).sum().sqrt()) for b in weight) for a in weight]
    assert group(trace(model, IMAGE, align=1), "1.0", "fpgm") == pytest.approx(scaled(looped))


def test_the_filter_at_the_geometric_median_goes_first_though_it_is_large() -> None:
    space = trace(Tiny([[9.0, 0, 0, 0], [10.0, 0, 0, 0], [11.0, 0, 0, 0], [10.0, 1.5, 0, 0], [1.0, 0, 0, 0]]), PIXELS)
    assert space.ranking("fpgm")[0].tolist()[-1] == 1
    assert space.ranking("l2")[0].tolist()[-1] == 4


def test_equal_filters_keep_their_order() -> None:
    space = trace(Tiny([[0.3, 0.1, 0.7, 0.2]] * 40 + [[9.0, 9.0, 9.0, 9.0]]), PIXELS, align=1)
    for name in ("l1", "l2", "fpgm"):
        assert space.ranking(name)[0].tolist() == [40, *range(40)]


def test_a_residual_stream_averages_its_producers_after_scaling() -> None:
    model: Any = randomised(Residual())
    with torch.no_grad():
        model.b[0].weight.mul_(1000)  # a large layer must not rule
    space = trace(model, IMAGE, align=1)
    norms = [m.weight.detach().double().flatten(1).norm(dim=1).numpy() for m in (model.stem[0], model.b[0])]
    assert group(space, "stem.0", "l2") == pytest.approx(np.mean([scaled(n) for n in norms], axis=0))


def test_a_unit_of_several_rows_is_one_long_row() -> None:
    model: Any = randomised(Grouped())
    space = trace(model, IMAGE, align=1)
    weight = model.b[0].weight.detach().double()  # [32, 4, 3, 3]: unit j is row j of each of four groups
    expected = weight.reshape(4, 8, -1).transpose(0, 1).reshape(8, -1).abs().sum(1)
    assert group(space, "b.0", "l1") == pytest.approx(scaled(expected.numpy()))
    model = randomised(Attention())
    space = trace(model, TOKENS, align=1)
    weight = model.qkv.weight.detach().double().reshape(3, 4, 8, 32)  # q, k and v of a head are one unit
    assert group(space, "qkv", "l1") == pytest.approx(scaled(weight.abs().sum((0, 2, 3)).numpy()))


def test_an_embedding_is_scored_by_its_columns() -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = nn.Embedding(7, 5), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Any:
            return self.head(self.table(x)).mean(1)

    model = Words()
    space = trace(model, torch.tensor([[0, 3, 6]]))
    columns = model.table.weight.detach().double().norm(dim=0).numpy()
    assert group(space, "table", "l2") == pytest.approx(scaled(columns))


def test_batch_norm_scale_of_every_norm_that_a_unit_passes() -> None:
    model: Any = randomised(InvertedResidual())
    space = trace(model, IMAGE, align=1)
    with pytest.warns(ImportanceWarning, match=r"'bn_scale' says nothing about 1 of 2 groups \(squeeze\).*'l2'"):
        space.collect("bn_scale")
    expand = model.expand[1].weight.detach().double().abs().numpy()
    depthwise = model.depthwise[1].weight.detach().double().abs().reshape(16, 2).sum(1).numpy()  # multiplier 2
    assert group(space, "expand.0", "bn_scale") == pytest.approx((scaled(expand) + scaled(depthwise)) / 2)
    assert np.array_equal(group(space, "squeeze", "bn_scale"), group(space, "squeeze", "l2"))


def test_batch_norm_scale_needs_a_batch_norm() -> None:
    with pytest.raises(UserError, match=r"'bn_scale' says nothing about this model: no batch norm.*'l2'"):
        trace(randomised(Attention()), TOKENS).ranking("bn_scale")


def quadratic(output: Tensor, targets: Any) -> Tensor:
    return output.float().square().mean()


@pytest.mark.parametrize("name", CRITERIA)
def test_subnets_are_nested_and_scores_repeat(name: str) -> None:
    model = randomised(Plain())
    before = {key: value.clone() for key, value in model.state_dict().items()}
    first, second = trace(model, IMAGE, align=1), trace(model, IMAGE, align=1)
    for space in (first, second):
        space.collect(name, [(IMAGE, LABELS), (IMAGE[:1], LABELS[:1])])
    for a, b in zip(first.unit_scores(name), second.unit_scores(name), strict=True):
        assert a.dtype == np.float64
        assert np.array_equal(a, b)
    for few, many in zip(range(0, 14), range(1, 15), strict=True):
        smaller, larger = (first.kept_units((level, level), name) for level in (few, many))
        assert all(set(a) < set(b) for a, b in zip(smaller, larger, strict=True))
    assert first.verify((7, 7), name) < 1e-5
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("name", CRITERIA)
def test_every_pattern_of_network_gets_a_score_or_a_reason(net: str, name: str) -> None:
    make, example = NETS[net]
    space = trace(randomised(make()), example, align=1)
    reason = ""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ImportanceWarning)
        try:
            space.collect(name, [(example, LABELS)], loss=quadratic)
        except UserError as error:
            reason = str(error)
    if reason:
        assert "says nothing about this model" in reason
        assert name in ("bn_scale", "apoz", "hrank", "rebuild")  # without batch norm, ReLU, feature map, layer
        return
    for unit, scores in zip(space.groups, space.unit_scores(name), strict=True):
        assert scores.shape == (unit.num_units,)
        assert len(np.unique(scores)) > 1 or name in ("apoz", "hrank")


@pytest.mark.parametrize("pattern", PATTERNS)
def test_units_are_read_somewhere_in_every_pattern(pattern: str) -> None:
    """Each group is measured and scored by gradients on its own account, with no other criterion in its place."""
    make, example = PATTERNS[pattern]
    space = trace(randomised(make()), example, align=1)
    batch = space.example_inputs, None

    def squares(output: Any, targets: Any) -> Tensor:
        return torch.stack([t.double().square().mean() for t in tensors(output)]).sum()

    for name in ("mean_activation", "taylor"):
        with warnings.catch_warnings():
            warnings.simplefilter("error", ImportanceWarning)
            space.collect(name, [batch], loss=squares)
        assert all(scores.max() > 0 for scores in space.unit_scores(name))


@pytest.mark.parametrize("name", CRITERIA)
def test_bfloat16_models_are_scored_nearly_as_float32_ones(name: str) -> None:
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        space = trace(randomised(Plain()).to(dtype), IMAGE.to(dtype))
        space.collect(name, [(IMAGE.to(dtype), LABELS)], loss=quadratic)
        found.append(space.unit_scores(name))
    for wide, narrow in zip(*found, strict=True):
        assert np.corrcoef(wide, narrow)[0, 1] > 0.98


def test_groups_of_two_units_and_dead_units() -> None:
    model = Tiny([[1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    space = trace(model, PIXELS)
    assert [kept.tolist() for kept in space.kept_units(space.smallest)] == [[0]]
    for name in ("l1", "l2", "apoz", "mean_activation", "hrank", "taylor", "fisher"):
        space.collect(name, [(PIXELS, LABELS)], loss=quadratic)
        scores = space.unit_scores(name)[0]
        assert scores[1] == 0 < scores[0], name
        assert np.isfinite(scores).all()


def test_random_differs_between_groups_and_repeats() -> None:
    a, b = trace(randomised(Residual()), IMAGE).unit_scores("random")
    assert len(a) == len(b)
    assert not np.array_equal(a, b)


def test_what_reads_data_asks_for_it() -> None:
    space = trace(randomised(Plain()), IMAGE)
    with pytest.raises(UserError, match=r"'taylor' reads gradients: give it data first.*collect\('taylor', batches\)"):
        space.materialise(space.smallest, "taylor")
    for name in ("taylor", "fisher", "apoz", "hrank", "mean_activation"):
        with pytest.raises(UserError, match="at least one batch"):
            space.collect(name)


def test_own_scores_rank_under_their_own_name() -> None:
    space = trace(randomised(Plain()), IMAGE, align=1)
    space.use_scores("mine", [np.arange(16.0), -np.arange(24.0)])
    assert [u.tolist() for u in space.kept_units(space.candidate(0.25), "mine")] == [[12, 13, 14, 15], [*range(6)]]
    with pytest.raises(UserError, match=r"one score per unit .*\[\(16,\)\] for \[\(16,\), \(24,\)\]"):
        space.use_scores("mine", [np.arange(16.0)])
    with pytest.raises(UserError, match="NaN"):
        space.use_scores("mine", [np.arange(16.0), np.full(24, np.nan)])


@pytest.mark.parametrize(("wrong", "right"), [("tailor", "taylor"), ("fischer", "fisher"), ("fgpm", "fpgm")])
def test_a_wrong_criterion_gets_a_suggestion(wrong: str, right: str) -> None:
    space = trace(randomised(Plain()), IMAGE)
    with pytest.raises(UserError, match=rf"Unknown importance criterion '{wrong}'. Did you mean '{right}'"):
        space.materialise(space.smallest, wrong)
    with pytest.raises(UserError, match="Available: apoz, bn_scale"):
        space.ranking("zzz")
