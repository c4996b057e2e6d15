"""Criteria that read activations: where they are measured, and what comes out, against plain loops over hooks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autoprune.search_spaces import ImportanceWarning, UserError, trace
from autoprune.search_spaces.types import FloatArray
from tests.search_spaces.nets import IMAGE, TOKENS, Attention, Dense, InvertedResidual, Residual, conv, randomised
from tests.search_spaces.test_importance import group, scaled

IMAGES = torch.randn(7, 3, 8, 8, generator=torch.Generator().manual_seed(1))
BATCHES: list[tuple[Any, Any]] = [(IMAGES[:4], None), (IMAGES[4:], None)]


class Pooled(nn.Module):
    """Convolution, norm, relu (in place), pooling, then a second one in front of a mean and the classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.norm = conv(3, 12), nn.Conv2d(12, 10, 3), nn.BatchNorm2d(10)
        self.a[2] = nn.ReLU(inplace=True)
        self.head = nn.Linear(10, 4)

    def first(self, x: Tensor) -> Any:
        return self.a(x)

    def second(self, x: Tensor) -> Any:
        return F.relu(self.norm(self.b(F.max_pool2d(self.first(x), 2))))

    def forward(self, x: Tensor) -> Any:
        return self.head(self.second(x).mean((2, 3)))


def zeros(maps: Tensor) -> list[float]:
    """APoZ, eq. 1 of the paper, counted one number at a time: [N, C, H, W] -> [C]."""
    found = []
    for channel in range(maps.shape[1]):
        values = maps[:, channel].flatten().tolist()
        found.append(sum(value == 0 for value in values) / len(values))
    return found


def ranks(maps: Tensor) -> list[float]:
    return [
        sum(int(torch.linalg.matrix_rank(maps[n, c])) for n in range(len(maps))) / len(maps)
        for c in range(maps.shape[1])
    ]


def means(maps: Tensor) -> list[float]:
    return [float(maps[:, c].abs().double().mean()) for c in range(maps.shape[1])]


ORACLES: dict[str, Callable[[Tensor], list[float]]] = {
    "apoz": lambda maps: [1 - share for share in zeros(maps)],
    "hrank": ranks,
    "mean_activation": means,
}


@pytest.mark.parametrize("name", ORACLES)
def test_measured_behind_norm_and_relu_and_before_pooling(name: str) -> None:
    model: Any = randomised(Pooled())
    space = trace(model, IMAGE, align=1)
    space.collect(name, BATCHES)
    with torch.no_grad():
        maps = model.first(IMAGES), model.second(IMAGES)
    for layer, activation in zip(("a.0", "b"), maps, strict=True):
        assert group(space, layer, name) == pytest.approx(scaled(ORACLES[name](activation)))


@pytest.mark.parametrize("name", ORACLES)
def test_batches_of_any_size_give_the_same(name: str) -> None:
    scores = []
    for sizes in ([7], [4, 3], [1] * 7, [6, 1]):
        space = trace(randomised(Residual()), IMAGE, align=1)
        space.collect(name, ((part, None) for part in IMAGES.split(sizes)))
        scores.append(space.unit_scores(name))
    for other in scores[1:]:
        for a, b in zip(scores[0], other, strict=True):
            assert a == pytest.approx(b, rel=1e-5)


def mean_of(name: str, *maps: Tensor) -> FloatArray:
    average: FloatArray = np.mean([scaled(ORACLES[name](m)) for m in maps], axis=0)
    return average


@pytest.mark.parametrize("name", ORACLES)
def test_a_residual_stream_is_measured_at_every_sum_that_is_read(name: str) -> None:
    class Stream(Residual):
        def sums(self, x: Tensor) -> list[Tensor]:
            start = self.stem(x)
            return [start, F.relu(start + self.b(self.a(start)))]

        def forward(self, x: Tensor) -> Any:
            return self.head(self.sums(x)[1].mean((2, 3)))

    model: Any = randomised(Stream())
    space = trace(model, IMAGE, align=1)
    space.collect(name, BATCHES)
    with torch.no_grad():
        assert group(space, "stem.0", name) == pytest.approx(mean_of(name, *model.sums(IMAGES)))


@pytest.mark.parametrize("name", ORACLES)
def test_depthwise_channels_are_measured_behind_them_and_gates_before_and_after(name: str) -> None:
    """A unit is an expanded channel with its two depthwise ones; the squeeze reads it too, before the gate."""
    model: Any = randomised(InvertedResidual())
    space = trace(model, IMAGE, align=1)
    if name == "hrank":
        with pytest.warns(ImportanceWarning, match=r"squeeze\): they have no feature maps"):
            space.collect(name, BATCHES)
    else:
        space.collect(name, BATCHES)
    with torch.no_grad():
        before = model.depthwise(model.expand(IMAGES))
        gate = model.excite(F.relu(model.squeeze(F.adaptive_avg_pool2d(before, 1)))).sigmoid()
    parts = []
    for maps in (before, before * gate):
        channels = np.array(ORACLES[name](maps))
        parts.append(scaled(channels.reshape(16, 2).mean(1)))
    assert group(space, "expand.0", name) == pytest.approx(np.mean(parts, axis=0))


def test_concatenated_units_are_measured_once_however_often_they_are_read() -> None:
    model: Any = randomised(Dense())
    space = trace(model, IMAGE, align=1)
    space.collect("mean_activation", BATCHES)
    with torch.no_grad():
        first = model.a(IMAGES)
        second = model.b(torch.cat([IMAGES, first], 1))
    assert group(space, "a.0", "mean_activation") == pytest.approx(scaled(means(first)))
    assert group(space, "b.0", "mean_activation") == pytest.approx(scaled(means(second)))


def test_heads_are_measured_at_their_output_and_streams_behind_their_norm() -> None:
    model: Any = randomised(Attention())
    tokens = torch.randn(5, 7, 12, generator=torch.Generator().manual_seed(1))
    space = trace(model, TOKENS, align=1)
    space.collect("mean_activation", [(tokens, None)])
    seen: dict[str, Tensor] = {}
    for layer in ("out", "qkv", "up", "down"):
        module = getattr(model, layer)
        module.register_forward_pre_hook(lambda module, args, layer=layer: seen.__setitem__(layer, args[0]))
    with torch.no_grad():
        model(tokens)
    heads = seen["out"].abs().double().reshape(5, 7, 4, 8).mean((0, 1, 3)).numpy()
    assert group(space, "qkv", "mean_activation") == pytest.approx(scaled(heads))
    hidden = seen["down"].abs().double().mean((0, 1)).numpy()
    assert group(space, "up", "mean_activation") == pytest.approx(scaled(hidden))
    stream = space.unit_scores("mean_activation")[0]
    by_hand = [seen["qkv"], seen["up"]]  # behind the norm, and the sum that the MLP reads; the head reads a third
    with torch.no_grad():
        by_hand.append(seen["up"] + model.down(seen["down"]))
    parts = [scaled(t.abs().double().mean((0, 1)).numpy()) for t in by_hand]
    assert stream == pytest.approx(np.mean(parts, axis=0))


def test_rank_of_maps_by_hand() -> None:
    """Filters that copy, sum over everything, and give nothing: ranks 4, 1 and 0 of a random 4 x 4 image."""

    class Copies(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(1, 3, 7, padding=3), nn.Conv2d(3, 2, 1)
            with torch.no_grad():
                self.conv.weight.zero_()
                self.conv.bias.copy_(torch.tensor([0.0, 5.0, 0.0]))  # type: ignore[union-attr]
                self.conv.weight[0, 0, 3, 3] = 1

        def forward(self, x: Tensor) -> Any:
            return self.head(self.conv(x))

    images = torch.randn(5, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    space = trace(Copies(), images)
    space.collect("hrank", [(images, None)])
    assert group(space, "conv", "hrank") == pytest.approx(scaled([4, 1, 0]))


def test_groups_that_a_measure_does_not_fit_are_named() -> None:
    model = nn.Sequential(conv(3, 16), nn.Conv2d(16, 12, 1), nn.GELU(), nn.Conv2d(12, 4, 1))
    space = trace(randomised(model), IMAGE)
    with pytest.warns(ImportanceWarning, match=r"'apoz' says nothing about 1 of 2 groups \(1\).*no ReLU"):
        space.collect("apoz", BATCHES)
    assert np.array_equal(space.unit_scores("apoz")[1], space.unit_scores("l2")[1])
    tokens = trace(randomised(nn.Sequential(nn.Linear(12, 16), nn.Linear(16, 5))), TOKENS)
    with pytest.raises(UserError, match=r"'hrank' says nothing about this model.*feature maps"):
        tokens.collect("hrank", [(TOKENS, None)])


def test_inputs_may_be_several_or_named() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)

        def forward(self, x: Tensor, y: Tensor) -> Any:
            return self.head(F.relu(self.a(x) + self.b(y)))

    model = Two()
    spaces = [trace(model, (IMAGE, IMAGE.flip(0))) for _ in range(2)]
    spaces[0].collect("apoz", [((IMAGE, IMAGE.flip(0)), None)])
    spaces[1].collect("apoz", [({"y": IMAGE.flip(0), "x": IMAGE}, None)])
    assert np.array_equal(spaces[0].unit_scores("apoz")[0], spaces[1].unit_scores("apoz")[0])
    with torch.no_grad():
        maps = F.relu(model.a(IMAGE) + model.b(IMAGE.flip(0)))
    assert group(spaces[0], "a", "apoz") == pytest.approx(scaled(ORACLES["apoz"](maps)))


def test_memory_does_not_grow_with_the_number_of_batches() -> None:
    """Batches are asked for one at a time, and none is kept."""
    import weakref

    alive: list[weakref.ref[Tensor]] = []

    def batches() -> Any:
        for _ in range(6):
            images = torch.randn(4, 3, 8, 8)
            alive.append(weakref.ref(images))
            yield images, None
            del images
            assert sum(ref() is not None for ref in alive) <= 2

    trace(randomised(Residual()), IMAGE).collect("mean_activation", batches())
    assert len(alive) == 6
