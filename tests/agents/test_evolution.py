from __future__ import annotations

from autoprune.agents import make_agent
from autoprune.search_spaces.budget import Budget
from tests.agents.oracles import random_table
from tests.agents.searching import hard_table, mean_best_loss
from tests.contracts.agent_contract import AgentContract, FrontContract, play
from tests.fakes import chain_space, tiny_space


class TestEvolutionAgent(AgentContract):
    name = "evolution"


class TestEvolutionAgentForAFront(FrontContract):
    name = "evolution"


def test_learns_which_groups_matter() -> None:
    space, budget = chain_space([32] * 12, step=2), Budget.parse("macs=0.25x")
    found, rnd = (mean_best_loss(name, space, budget, hard_table(space)) for name in ("evolution", "random"))
    assert found < 0.8 * rnd


def test_begins_with_the_uniform_candidate_and_the_best_by_the_table() -> None:
    space, budget = tiny_space(), Budget.parse("macs=0.5x")
    table = random_table(space, 0)
    trials = play(make_agent("evolution", space, budget, seed=0, table=table), range(2))
    best = make_agent("bnb", space, budget, seed=0, table=table).ask(0)
    assert [trial.candidate for trial in trials] == [space.project([1.0] * 5, budget), best]


def test_hardly_ever_proposes_a_candidate_twice() -> None:
    trials = play(make_agent("evolution", tiny_space(), Budget.parse("macs=0.5x"), seed=0), range(40))
    assert len({trial.candidate for trial in trials}) >= 38
