"""The criterion `rebuild`: the order in which units go, against brute force over least squares."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from autoprune.search_spaces import SearchSpace, trace
from autoprune.search_spaces.importance import rebuild
from autoprune.search_spaces.types import FloatArray
from tests.search_spaces.nets import IMAGE, TOKENS, Attention, Residual, randomised


class TwoReaders(nn.Module):
    """One hidden layer, read by two."""

    def __init__(self, hidden: int = 8) -> None:
        super().__init__()
        self.first = nn.Linear(12, hidden)
        self.a, self.b = nn.Linear(hidden, 5), nn.Linear(hidden, 3, bias=False)

    def hidden(self, x: Tensor) -> Tensor:
        return torch.relu(self.first(x))

    def forward(self, x: Tensor) -> Tensor:
        y = self.hidden(x)
        return torch.cat([self.a(y), self.b(y)], -1)


def losses(x: FloatArray, weights: list[FloatArray], kept: list[int]) -> float:
    """Share of the outputs' squares that the kept columns of x cannot give, summed over readers; a ridge as stated."""
    second = x.T @ x / len(x)
    ridge = 1e-3 * np.diag(second).mean()
    damped = second + ridge * np.eye(len(second))
    total = 0.0
    for w in weights:
        b = np.linalg.solve(damped[np.ix_(kept, kept)], damped[kept])  # rebuilds all columns from the kept ones
        left = damped - damped[:, kept] @ b
        total += np.trace(w @ left @ w.T) / np.trace(w @ second @ w.T)
    return total


def spaced(model: nn.Module, example: Tensor) -> SearchSpace:
    return trace(randomised(model).eval(), example, align=1)


def test_each_time_the_unit_goes_that_the_others_rebuild_best() -> None:
    model = TwoReaders()
    space = spaced(model, TOKENS)
    x = torch.randn(64, 12, generator=torch.Generator().manual_seed(3))
    space.collect("rebuild", [(x[:40], None), (x[40:], None)])
    with torch.no_grad():
        hidden = model.hidden(x).double().numpy()
        weights = [layer.weight.double().numpy() for layer in (model.a, model.b)]
    left = list(range(8))
    order = np.argsort(space.unit_scores("rebuild")[0])
    for unit in order[:-1]:
        found = {u: losses(hidden, weights, [v for v in left if v != u]) for u in left}
        assert found[unit] == pytest.approx(min(found.values()), rel=1e-4)
        left.remove(int(unit))


def test_one_of_two_equal_units_goes_first_however_large_it_is() -> None:
    model = TwoReaders()
    space = spaced(model, TOKENS)
    with torch.no_grad():
        for tensor in (model.first.weight, model.first.bias):
            tensor[5] = 3 * tensor[2]
    space.collect("rebuild", [(torch.randn(64, 12), None)])
    assert int(np.argmin(space.unit_scores("rebuild")[0])) in (2, 5)
    assert int(np.argmin(space.unit_scores("l2")[0])) != 5


@pytest.mark.parametrize(("model", "example"), [(Attention(), TOKENS), (Residual(), IMAGE)])
def test_heads_and_streams_are_ranked(model: nn.Module, example: Tensor) -> None:
    """A head is several positions of its reader; a stream has several readers."""
    space = spaced(model, example)
    space.collect("rebuild", [(example, None)])
    for group, scores in zip(space.groups, space.unit_scores("rebuild"), strict=True):
        assert sorted(scores) == list(range(group.num_units))


def test_of_many_units_a_few_go_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rebuild, "_ROUNDS", 4)
    space = spaced(TwoReaders(24), TOKENS)
    x = torch.randn(200, 12, generator=torch.Generator().manual_seed(3))
    space.collect("rebuild", [(x, None)])
    few = space.unit_scores("rebuild")[0]
    monkeypatch.setattr(rebuild, "_ROUNDS", 64)
    space.collect("rebuild", [(x, None)])
    one = space.unit_scores("rebuild")[0]
    assert sorted(few) == sorted(one) == list(range(24))
    assert np.corrcoef(few, one)[0, 1] > 0.8
