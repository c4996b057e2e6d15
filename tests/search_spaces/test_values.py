"""Networks whose sizes, path or numbers hang on values, on widths, or on an earlier call."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import batched_nms, roi_align

from autoprune.search_spaces import UserError, trace
from tests.search_spaces.nets import IMAGE, TOKENS, conv, randomised


class Boxes(nn.Module):
    """A detector in small: boxes above a threshold and not covered by others, windows of two maps pooled into one."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = conv(3, 16), conv(16, 16), nn.Conv2d(16, 16, 3, padding=1)
        self.score, self.size = nn.Conv2d(16, 2, 1), nn.Conv2d(16, 4, 1)
        self.inner, self.outer = nn.Linear(64, 24), nn.Linear(24, 3)

    def forward(self, images: list[Tensor]) -> Any:
        x = self.a(torch.stack(images))
        maps = [self.c(x), self.c(F.max_pool2d(self.b(x), 2))]
        scores, sizes = (head(maps[0]).permute(0, 2, 3, 1).flatten(1, 2) for head in (self.score, self.size))
        results = []
        for i in range(len(images)):
            best, label = scores[i].max(1)
            chosen = torch.where(best > 0.1)[0]
            corner = torch.stack([chosen % 8, chosen // 8], 1) * 8.0
            boxes = torch.cat([corner, corner + 1 + 20 * sizes[i][chosen][:, :2].sigmoid()], 1)
            kept = batched_nms(boxes, best[chosen], label[chosen], 0.3)[:9]
            boxes = boxes[kept]
            large = (boxes[:, 2] - boxes[:, 0]) > 12
            windows = torch.zeros(len(boxes), maps[0].shape[1], 2, 2)
            for level in (0, 1):
                at = torch.where(large == bool(level))[0]
                windows[at] = roi_align(maps[level][i : i + 1], [boxes[at]], 2, 1 / 8 / (level + 1))
            classes = self.outer(self.inner(windows.flatten(1)).relu())
            results.append({"boxes": boxes, "classes": classes, "score": best[chosen][kept]})
        return results


def test_sizes_that_hang_on_values_freeze_nothing_else() -> None:
    model = randomised(Boxes())
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    space = trace(model, ([*images],), align=1)
    assert {g.name: g.num_units for g in space.groups} == {"a.0": 16, "c": 16, "inner": 24}
    assert not space.unknown_ops
    found = set()
    for ratio in (0.9, 0.7, 0.5, 0.3, 0.1):
        candidate = space.candidate(ratio)
        assert space.verify(candidate) <= 1e-5
        found.add(tuple(len(r["boxes"]) for r in space.materialise(candidate)([*images])))
    assert len(found) > 1, "this test says nothing if every subnet finds as many boxes"


class Filled(nn.Module):
    """Constants of a width that follows the layer: added, written to by index, written to whole, in part."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.a, self.b, self.head = how, conv(3, 16), conv(16, 24), nn.Conv2d(24, 5, 1)

    def forward(self, x: Tensor) -> Any:
        x = self.a(x)
        y = x.new_zeros(x.shape)
        if self.how == "added":
            y = x + torch.ones(x.shape[1])[:, None, None]
        elif self.how == "by index":
            y[torch.tensor([1])] = x[:1] * 2
        elif self.how == "by mask":
            y[torch.tensor([True, False])] = x[:1] * 2
        elif self.how == "whole":
            y.copy_(x)
        elif self.how == "in part":
            y[:, :, 2:] = x[:, :, 2:]
        elif self.how == "written before":
            y[:, 0] = 1
            y = x + y
        elif self.how == "a written size":
            y = x + torch.ones(16)[:, None, None]
        return self.head(self.b(y))


@pytest.mark.parametrize(
    ("how", "offered"),
    [
        ("added", {"a.0", "b.0"}),
        ("by index", {"a.0", "b.0"}),
        ("by mask", {"a.0", "b.0"}),
        ("whole", {"a.0", "b.0"}),
        ("in part", {"a.0", "b.0"}),
        ("written before", {"b.0"}),
        ("a written size", {"b.0"}),
    ],
)
def test_filled_tensors_follow_what_they_meet(how: str, offered: set[str]) -> None:
    space = trace(randomised(Filled(how)), IMAGE, align=1)
    assert {g.name for g in space.groups} == offered
    for ratio in (0.9, 0.5, 0.1):
        assert space.verify(space.candidate(ratio)) <= 1e-5


class Largest(nn.Module):
    """The largest of some channels, and where it is."""

    def __init__(self, used: bool) -> None:
        super().__init__()
        self.used, self.a, self.head = used, conv(3, 16), nn.Conv2d(1, 5, 1)

    def forward(self, x: Tensor) -> Any:
        value, place = self.a(x).max(1, keepdim=True)
        return (self.head(value), place) if self.used else self.head(value)


@pytest.mark.parametrize("used", [False, True])
def test_where_the_largest_is_means_another_channel_after_a_cut(used: bool) -> None:
    model = randomised(Largest(used))
    if used:
        with pytest.raises(UserError, match="its positions are used as numbers"):
            trace(model, IMAGE)
    else:
        assert [g.name for g in trace(model, IMAGE).groups] == ["a.0"]


@pytest.mark.parametrize("dim", [1, 2])
def test_the_largest_few_are_of_one_dimension(dim: int) -> None:
    """`topk` takes how many before the dimension."""

    class Few(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.head = nn.Linear(12, 16), nn.Linear(5 if dim == 2 else 16, 5)

        def forward(self, x: Tensor) -> Any:
            return self.head(self.a(x).topk(5, dim)[0])

    model = randomised(Few())
    if dim == 2:
        with pytest.raises(UserError, match="an order over it"):
            trace(model, TOKENS)
    else:
        assert [g.name for g in trace(model, TOKENS).groups] == ["a"]


class Remembers(nn.Module):
    """Converts a constant at its first call only."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = conv(3, 16), nn.Conv2d(16, 5, 1)
        self.constant = torch.ones(8, dtype=torch.float64)

    def forward(self, x: Tensor) -> Any:
        self.constant = self.constant.to(x)
        return self.head(self.a(x) * self.constant)


def test_what_code_keeps_for_its_next_call_changes_nothing() -> None:
    assert [g.name for g in trace(randomised(Remembers()), IMAGE).groups] == ["a.0"]


class Results:
    """No module, and not a container either."""

    def __init__(self, features: Tensor) -> None:
        self.features = [features]


class KeepsResults(nn.Module):
    """Keeps results with their graph in an object of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = conv(3, 16), nn.Conv2d(16, 5, 1)
        self.last: Results | None = None

    def forward(self, x: Tensor) -> Any:
        self.last = Results(self.a(x))
        return self.head(self.last.features[0])


def test_a_model_that_keeps_results_of_its_last_call() -> None:
    model: Any = randomised(KeepsResults())
    model(IMAGE)
    space = trace(model, IMAGE)
    assert [g.name for g in space.groups] == ["a.0"]
    assert space.verify(space.smallest) <= 1e-5
    assert model.last.features[0].requires_grad


class LookedUp(nn.Module):
    """Several indices at once, side by side and apart, and a mask."""

    def forward(self, x: Tensor) -> Any:
        first, rows, columns = torch.tensor([0, 1]), torch.tensor([0, 3]), torch.tensor([1, 2])
        x = self.a(x)
        together = x[:, :, rows, columns]  # [N, C, 2]
        apart = x[first, :, rows]  # [2, C, W]
        masked = x.movedim(1, -1)[torch.arange(128).reshape(2, 8, 8) % 3 == 0]  # [positions, C]
        both = torch.cat([together, apart], 2).transpose(1, 2).flatten(0, 1)
        return self.head(torch.cat([both, masked]))

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = conv(3, 16), nn.Linear(16, 5)


def test_what_is_not_looked_up_passes() -> None:
    space = trace(randomised(LookedUp()), IMAGE, align=1)
    assert {g.name: g.num_units for g in space.groups} == {"a.0": 16}
    assert np.max([space.verify(space.candidate(r)) for r in (0.9, 0.5, 0.1)]) <= 1e-5
