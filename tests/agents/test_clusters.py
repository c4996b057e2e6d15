from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from autoprune.agents import AGENTS, Trial, agent_class, make_agent, option_names
from autoprune.agents.clusters import ClusteredSpace
from autoprune.agents.warm import WarmAgent
from autoprune.search_spaces.budget import Budget
from autoprune.search_spaces.errors import UserError
from autoprune.search_spaces.projection import is_feasible
from tests.agents.oracles import random_table
from tests.contracts.agent_contract import AgentContract, FrontContract, play
from tests.fakes import chain_space, random_space, tiny_space

BUDGET = Budget.parse("macs=0.5x")


class TestAutoOnClusters(AgentContract):
    name = "auto"
    options = {"clusters": 3, "cluster_trials": 12}  # noqa: RUF012


class TestCMAESOnClusters(AgentContract):
    name = "cmaes"
    options = {"clusters": 3, "cluster_trials": 12, "population": 4}  # noqa: RUF012


class TestFrontOnClusters(FrontContract):
    name = "evolution"
    options = {"clusters": 3, "cluster_trials": 18, "costs": ["macs", "params"]}  # noqa: RUF012


@pytest.mark.parametrize("seed", range(3))
def test_a_cluster_moves_its_members_together_from_the_base(seed: int) -> None:
    space = random_space(seed, 11)
    base = space.project(np.random.default_rng(seed).random(11).tolist(), BUDGET)
    clusters = ClusteredSpace(space, base, 3)
    at_base = clusters.nearest(base)
    assert tuple(clusters.expand(np.array([at_base]))[0].tolist()) == base
    kept = space.level_units / space.level_units[:, -1:]
    gaps = np.diff(kept, axis=1).max(axis=1)  # rounding errs by half of the widest
    for cluster, num_levels in enumerate(clusters.num_levels):
        candidates = np.repeat(np.array([at_base]), num_levels, axis=0)
        candidates[:, cluster] = np.arange(num_levels)
        expanded = clusters.expand(candidates)
        moved = np.flatnonzero((expanded != np.array(base)).any(axis=0))
        assert (np.diff(expanded, axis=0) >= 0).all()
        assert expanded[0, moved].max(initial=0) == 0
        assert (expanded[-1, moved] == space.num_levels[moved] - 1).all()
        for row in expanded:
            shifts = (kept[np.arange(11), row] - kept[np.arange(11), base])[moved]
            inner = (row[moved] > 0) & (row[moved] < space.num_levels[moved] - 1)
            assert np.ptp(shifts[inner]) <= 2 * gaps[moved].max() if inner.any() else True
        assert [clusters.nearest(tuple(row.tolist()))[cluster] for row in expanded] == list(range(num_levels))
        assert (np.diff(clusters.level_units[cluster, :num_levels]) > 0).all()
        for cost in ("macs", "params"):
            np.testing.assert_array_equal(clusters.cost(cost, candidates), space.cost(cost, expanded))


def test_the_table_of_clusters_says_of_a_candidate_what_the_table_says() -> None:
    space = random_space(1, 20, step=8)
    table = random_table(space, 0)
    clusters = ClusteredSpace(space, space.project([1.0] * 20, BUDGET), 4)
    rng = np.random.default_rng(0)
    candidates = rng.integers(clusters.num_levels, size=(50, 4))
    np.testing.assert_allclose(clusters.table(table).predict(candidates), table.predict(clusters.expand(candidates)))


def test_first_the_clusters_then_every_group() -> None:
    """On equal groups all of a cluster are alike but for what fills up, afterwards no longer."""
    space = chain_space([64] * 12, step=1)
    agent = make_agent("greedy", space, BUDGET, seed=0, clusters=3, cluster_trials=15)
    spreads = [np.ptp(np.array(trial.candidate).reshape(3, 4), axis=1).max() for trial in play(agent, range(30))]
    assert np.median(spreads[2:15]) <= 2
    assert np.median(spreads[15:]) > 8


def test_learns_in_few_trials_what_clusters_are_worth() -> None:
    """The loss is one of clusters: with them, twenty trials find more than forty without."""
    space, budget = chain_space([64] * 40, step=4, size=1), Budget.parse("macs=0.4x")
    weights = np.repeat([8.0, 1.0, 4.0, 0.5], 10)

    def best(num_trials: int, **options: Any) -> float:
        lowest = []
        for seed in range(2):
            agent, losses = make_agent("cmaes", space, budget, seed=seed, **options), []
            for number in range(num_trials):
                cut = 1 - space.units(np.array([candidate := agent.ask(number)]))[0] / 64
                losses.append(float(weights @ cut**2))
                agent.tell(Trial(number=number, candidate=candidate, state="complete", score=-losses[-1]))
            lowest.append(min(losses))
        return float(np.mean(lowest))

    assert best(20, clusters=4, cluster_trials=20) < best(40)


def test_trials_that_it_did_not_propose_are_learnt_too() -> None:
    space = tiny_space()
    others = play(make_agent("random", space, BUDGET, seed=5), range(8))
    agent = make_agent("auto", space, BUDGET, seed=0, clusters=2, cluster_trials=9)
    for trial in others:
        agent.tell(trial)
    proposals = [trial.candidate for trial in play(agent, range(8, 16))]
    assert not set(proposals) & {trial.candidate for trial in others}
    assert all(is_feasible(space, candidate, BUDGET) for candidate in proposals)


def test_every_agent_with_a_warm_start_takes_clusters() -> None:
    takes = {name for name in AGENTS if not name.startswith("sb3") and "clusters" in option_names(name)}
    assert takes == {n for n in AGENTS if not n.startswith("sb3") and issubclass(agent_class(n), WarmAgent)}
    assert {"auto", "tpe", "greedy"} <= takes
    assert not {"uniform", "random", "bnb"} & takes
    table = random_table(space := chain_space([32] * 9), 0)
    for name in takes:
        agent = make_agent(name, space, BUDGET, seed=0, table=table, clusters=3)
        for trial in play(agent, range(6)):
            assert is_feasible(space, trial.candidate, BUDGET)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clusters": 1}, "`clusters` .* must be an integer of 2 or more, but got 1"),
        ({"clusters": 2.5}, "`clusters` .* must be an integer of 2 or more, but got 2.5"),
        ({"clusters": 3, "cluster_trials": 0}, "`cluster_trials` .* must be an integer of 1 or more, but got 0"),
        ({"cluster_trials": 20}, "needs the option `clusters`"),
    ],
)
def test_bad_option_values(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_agent("tpe", tiny_space(), BUDGET, seed=0, **options)
    with pytest.raises(UserError, match="takes no options"):
        make_agent("uniform", tiny_space(), BUDGET, seed=0, clusters=3)
