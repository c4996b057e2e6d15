from __future__ import annotations

from autoprune.agents import make_agent
from autoprune.search_spaces.budget import Budget
from tests.contracts.agent_contract import AgentContract, FrontContract, play
from tests.fakes import random_space


class TestRandomAgent(AgentContract):
    name = "random"


class TestRandomAgentForAFront(FrontContract):
    name = "random"
    learns = False


def test_seeds_differ_and_proposals_do_not_repeat() -> None:
    space, budget = random_space(0, 20, step=8), Budget.parse("macs=0.5x")
    agents = [make_agent("random", space, budget, seed=seed) for seed in range(2)]
    assert len({trial.candidate for agent in agents for trial in play(agent, range(20))}) == 40


def test_learns_nothing() -> None:
    told = make_agent("random", random_space(0, 5), Budget.parse("macs=0.5x"), seed=0)
    play(told, range(10))
    assert told.ask(10) == make_agent("random", random_space(0, 5), Budget.parse("macs=0.5x"), seed=0).ask(10)
