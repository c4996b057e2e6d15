from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from autoprune.agents import make_agent
from autoprune.agents.bnb import BnBAgent
from autoprune.agents.kbest import KBest
from autoprune.agents.moves import ascend, descend, improve, start
from autoprune.agents.table import Table
from autoprune.search_spaces.budget import Budget
from autoprune.search_spaces.errors import UserError
from autoprune.search_spaces.projection import check_budget, within
from tests.agents.oracles import feasible, random_table
from tests.contracts.agent_contract import AgentContract, play
from tests.fakes import chain_space, random_space, tiny_space


class TestBnBAgent(AgentContract):
    name = "bnb"


class TestBnBAgentOutOfNodes(AgentContract):
    name = "bnb"
    options = {"max_nodes": 3}  # noqa: RUF012


BUDGETS = ["macs=0.5x", "macs=0.2x", "params=0.4x", "macs=0.6x,params=0.5x", "macs=0.7x,memory=0.8x", "memory=0.6x"]


@given(
    seed=st.integers(0, 10**6),
    num_groups=st.integers(1, 5),
    budget=st.sampled_from(BUDGETS),
    plateaus=st.booleans(),
    stand_in=st.booleans(),
)
@settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow],
)
def test_the_k_best_are_those_of_full_enumeration(
    seed: int, num_groups: int, budget: str, plateaus: bool, stand_in: bool
) -> None:
    space = random_space(seed, num_groups, step=(None, 4, 16, None)[seed % 4])
    assume(np.prod(space.num_levels) <= 20_000)
    table = Table.stand_in(space) if stand_in else random_table(space, seed, plateaus=plateaus)
    try:
        limits = check_budget(space, Budget.parse(budget))
    except UserError:
        return  # nothing fits
    every = feasible(space, Budget.parse(budget))
    useful = [np.flatnonzero(np.diff(each, prepend=np.inf) < 0) for each in table.losses]
    every = every[np.all([np.isin(every[:, g], useful[g]) for g in range(num_groups)], axis=0)]
    losses = np.sort(table.predict(every))
    search = KBest(space, limits, table, max_nodes=10**6)
    found = []
    for candidate, _ in zip(search, range(200), strict=False):
        found.append(candidate)
        assert search.best == search.bound == table.predict(np.array(found[:1]))[0]
    assert search.exact
    assert len(set(found)) == len(found) == min(200, len(every))
    assert within(space, np.array(found), limits).all()
    np.testing.assert_allclose(table.predict(np.array(found)), losses[: len(found)], rtol=0, atol=1e-12)


@pytest.mark.parametrize("max_nodes", [1, 10, 100, 1000])
@pytest.mark.parametrize("budget", ["macs=0.4x", "macs=0.5x,params=0.4x,latency=0.8x"])
def test_out_of_nodes_bounds_hold_and_nothing_comes_twice(max_nodes: int, budget: str) -> None:
    for seed in range(4):
        space = tiny_space()
        table = random_table(space, seed)
        limits = check_budget(space, Budget.parse(budget))
        optimum = table.predict(feasible(space, Budget.parse(budget))).min()
        search = KBest(space, limits, table, max_nodes=max_nodes)
        found = [candidate for candidate, _ in zip(search, range(50), strict=False)]
        losses = table.predict(np.array(found))
        assert search.bound <= optimum <= losses[0] + 1e-12
        assert search.best == losses[0]
        assert losses[0] <= 1.1 * optimum
        assert len(set(found)) == 50
        assert within(space, np.array(found), limits).all()


def test_every_candidate_comes_once_even_when_nodes_run_out() -> None:
    space = chain_space([12, 12, 12], step=4)
    every = {tuple(levels) for levels in feasible(space, Budget.parse("macs=0.5x")).tolist()}
    table = random_table(space, 0)
    search = KBest(space, check_budget(space, Budget.parse("macs=0.5x")), table, max_nodes=2)
    found = list(search)
    assert not search.exact
    assert len(found) == len(every)
    assert set(found) == every


def test_a_large_space_gets_a_good_candidate_and_a_bound() -> None:
    space, budget = random_space(1, 60, step=8), Budget.parse(["macs=0.4x", "params=0.5x"])
    table = random_table(space, 1)
    agent = BnBAgent(space, budget, seed=0, table=table, max_nodes=200)
    loss = table.predict(np.array([agent.ask(0)]))[0]
    gap = agent.gap
    assert gap.best == loss
    assert 0 < gap.bound < loss
    assert 0 < gap.relative < 1
    assert not gap.exact
    others = [space.project(np.random.default_rng(k).random(60).tolist(), budget) for k in range(50)]
    assert loss < 0.7 * table.predict(np.array(others)).min()


def test_the_lagrangian_bound_is_the_better_one_on_a_chain() -> None:
    space = chain_space([64] * 12, step=8)
    table = Table([(1 + g % 3) * (1 - space.level_units[g] / 64) ** 2 for g in range(12)])
    space.more_costs["copy"] = lambda units: space.cost("macs", units // 8 - 1)  # of which nothing is known
    limit = 0.4 * float(space.cost("macs", np.array([space.dense]))[0])
    bounds = []
    for cost in ("macs", "copy"):
        search = KBest(space, {cost: limit}, table, max_nodes=300)
        next(iter(search))
        bounds.append(search.bound / search.best)
    assert bounds[0] > 0.5 > 0.25 > bounds[1]


def test_proposals_come_again_when_there_are_no_more() -> None:
    agent = make_agent("bnb", chain_space([8, 8], step=4), Budget.parse("macs=1x"), seed=0)
    candidates = [trial.candidate for trial in play(agent, range(8))]
    assert len(set(candidates[:4])) == 4
    assert candidates[4:] == candidates[:4]
    assert candidates[0] == (1, 1)


@pytest.mark.parametrize("max_nodes", [0, 2.5])
def test_bad_max_nodes(max_nodes: float) -> None:
    with pytest.raises(UserError, match="max_nodes"):
        make_agent("bnb", tiny_space(), Budget.parse("macs=0.5x"), seed=0, max_nodes=max_nodes)


def test_a_table_of_another_space() -> None:
    with pytest.raises(UserError, match="another space"):
        make_agent("bnb", tiny_space(), Budget.parse("macs=0.5x"), seed=0, table=Table([[1.0, 0.0]]))


@given(seed=st.integers(0, 10**6), budget=st.sampled_from(BUDGETS))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_the_start_is_the_better_of_the_way_down_and_the_way_up(seed: int, budget: str) -> None:
    space = random_space(seed, 5)
    table = random_table(space, seed)
    try:
        limits = check_budget(space, Budget.parse(budget))
    except UserError:
        return  # nothing fits
    up = ascend(space, limits, table)
    assert within(space, up[None], limits).all()
    single = up + np.eye(5, dtype=np.int64)[up < space.num_levels - 1]
    assert not within(space, single, limits).any(), "no single step up from it fits"
    down = improve(space, limits, table, descend(space, limits, table))
    found = start(space, limits, table)
    best = min(float(table.predict(each[None])[0]) for each in (down, improve(space, limits, table, up)))
    assert float(table.predict(found[None])[0]) == best


def test_what_the_budget_rules_out_is_counted() -> None:
    agent = BnBAgent(tiny_space(), Budget.parse("macs=0.3x"), seed=0)
    assert agent.ruled_out == {"constraint": 0}
    agent.ask(0)
    assert agent.ruled_out["constraint"] > 0
    loose = BnBAgent(tiny_space(), Budget.parse("macs=1x"), seed=0)
    loose.ask(0)
    assert loose.ruled_out == {"constraint": 0}
