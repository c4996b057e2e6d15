from __future__ import annotations

import numpy as np
import pytest

from autoprune.agents.landscape import Landscape, best_untried
from autoprune.search_spaces.budget import Budget
from autoprune.search_spaces.projection import check_budget, is_feasible
from autoprune.search_spaces.types import Candidate
from tests.agents.oracles import feasible, random_table
from tests.fakes import FakeSpace, tiny_space

BUDGETS = ["macs=0.5x", "params=0.4x"]


def landscape_of(space: FakeSpace, seed: int) -> Landscape:
    pairs = np.triu(np.random.default_rng(seed).normal(size=(5, 5)) / 4, 1)
    shares = 1 - space.level_units / space.level_units[:, -1:]
    return Landscape(random_table(space, seed).padded(), pairs + pairs.T, shares)


def test_losses_are_sums_of_curves_and_products() -> None:
    space = tiny_space()
    landscape = landscape_of(space, 0)
    candidate = (1, 0, 3, 5, 2)
    cut = [landscape.shares[group, level] for group, level in enumerate(candidate)]
    loss = sum(landscape.curves[group, level] for group, level in enumerate(candidate))
    loss += sum(landscape.pairs[i, j] * cut[i] * cut[j] for j in range(5) for i in range(j))
    assert landscape.predict(np.array([candidate]))[0] == pytest.approx(loss)


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("seed", range(6))
def test_finds_the_best_of_all_candidates_and_then_others(budget: str, seed: int) -> None:
    space, limits = tiny_space(), Budget.parse(budget)
    landscape = landscape_of(space, seed)
    losses = np.sort(landscape.predict(feasible(space, limits)))
    start = space.project([1.0] * 5, limits)
    tried: set[Candidate] = set()
    for rank in range(4):
        found = best_untried(space, check_budget(space, limits), landscape, start, tried, np.random.default_rng(seed))
        loss = landscape.predict(np.array([found]))[0]
        assert is_feasible(space, found, limits)
        assert found not in tried
        assert loss == pytest.approx(losses[0]) if rank == 0 else loss <= np.quantile(losses, 0.05)
        tried.add(found)


def test_what_was_tried_comes_back_only_where_nothing_else_fits() -> None:
    space, budget = tiny_space(), Budget.parse("macs=0.0361x")
    every: set[Candidate] = {tuple(levels) for levels in feasible(space, budget).tolist()}
    landscape, limits = landscape_of(space, 0), check_budget(space, budget)
    tried: set[Candidate] = set()
    start = space.project([1.0] * 5, budget)
    for _ in range(len(every)):
        tried.add(best_untried(space, limits, landscape, start, tried, np.random.default_rng(0)))
    assert tried == every
    assert len(every) < 100
    assert best_untried(space, limits, landscape, start, tried, np.random.default_rng(0)) in every
