from __future__ import annotations

import pytest

from autoprune.agents import Trial, make_agent
from autoprune.search_spaces.budget import Budget
from autoprune.search_spaces.errors import UserError
from tests.agents.oracles import random_table
from tests.agents.searching import hard_table, mean_best_loss
from tests.contracts.agent_contract import AgentContract, FrontContract, play
from tests.fakes import chain_space, tiny_space

BUDGET = Budget.parse("macs=0.5x")


class TestGPAgent(AgentContract):
    name = "gp"
    options = {"n_startup": 6}  # noqa: RUF012
    num_trials = 14


@pytest.mark.slow
class TestGPAgentForAFront(FrontContract):
    name = "gp"
    options = {"n_startup": 6, "costs": ["macs"]}  # noqa: RUF012
    num_trials = 12


@pytest.mark.slow
def test_learns_which_groups_matter() -> None:
    space, budget = chain_space([32] * 12, step=2), Budget.parse("macs=0.25x")
    gp, tpe = (mean_best_loss(name, space, budget, hard_table(space), trials=40) for name in ("gp", "tpe"))
    assert gp < 0.8 * tpe


def test_begins_with_the_uniform_candidate_and_the_best_by_the_table() -> None:
    table = random_table(tiny_space(), 0)
    trials = play(make_agent("gp", tiny_space(), BUDGET, seed=0, table=table), range(2))
    best = make_agent("bnb", tiny_space(), BUDGET, seed=0, table=table).ask(0)
    assert [trial.candidate for trial in trials] == [tiny_space().project([1.0] * 5, BUDGET), best]


def test_a_search_for_a_front_resumes_where_it_was() -> None:
    """In short what the slow contract tests at length."""
    agent, resumed = (make_agent("gp", tiny_space(), BUDGET, seed=0, costs=["macs"], n_startup=6) for _ in range(2))
    whole = play(agent, range(10))
    for trial in whole[:8]:
        resumed.tell(trial)
    assert play(resumed, range(8, 10)) == whole[8:]
    assert min(trial.costs["macs"] for trial in whole) < 0.5 * max(trial.costs["macs"] for trial in whole)


def test_no_candidate_twice_and_no_model_of_hundreds_of_trials() -> None:
    agent = make_agent("gp", chain_space([32] * 12, step=2), BUDGET, seed=0)
    for number in range(300):
        candidate = make_agent("random", agent.space, BUDGET, seed=0).ask(number)
        agent.tell(Trial(number=number, candidate=candidate, state="complete", score=float(number == 17)))
    agent.draw = None  # type: ignore[attr-defined]  # would be a call of None
    tried = {trial.candidate for trial in agent.trials}
    assert agent.ask(300) not in tried
    levels = zip(agent.ask(300), agent.trials[17].candidate, strict=True)
    assert sum(abs(a - b) <= 2 for a, b in levels) >= 9


def test_bad_option_value() -> None:
    with pytest.raises(UserError, match="must be an integer of 1 or more"):
        make_agent("gp", tiny_space(), BUDGET, seed=0, n_startup=0)
