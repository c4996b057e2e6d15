from __future__ import annotations

from typing import Any

import pytest

from autoprune.agents import Trial, make_agent
from autoprune.search_spaces.budget import Budget
from autoprune.search_spaces.errors import UserError
from tests.agents.oracles import random_table
from tests.agents.searching import hard_table, mean_best_loss
from tests.contracts.agent_contract import AgentContract, play
from tests.fakes import chain_space, tiny_space

BUDGET = Budget.parse("macs=0.5x")


class TestCMAESAgent(AgentContract):
    name = "cmaes"


class TestCMAESAgentWithSmallGenerations(AgentContract):
    name = "cmaes"
    options = {"population": 4, "sigma": 0.3}  # noqa: RUF012


def test_learns_which_groups_matter() -> None:
    space, budget = chain_space([32] * 12, step=2), Budget.parse("macs=0.25x")
    found, rnd = (mean_best_loss(name, space, budget, hard_table(space)) for name in ("cmaes", "random"))
    assert found < 0.8 * rnd


def test_begins_around_the_better_one_of_the_warm_start() -> None:
    space = chain_space([64] * 8, step=2)
    table = random_table(space, 0)
    agent = make_agent("cmaes", space, BUDGET, seed=0, table=table, sigma=0.01)
    uniform, best = (trial.candidate for trial in play(agent, range(2)))
    assert best == make_agent("bnb", space, BUDGET, seed=0, table=table).ask(0)
    for better in (uniform, best):
        agent = make_agent("cmaes", space, BUDGET, seed=0, table=table, sigma=0.01)
        for number, candidate in enumerate((uniform, best)):
            agent.tell(Trial(number=number, candidate=candidate, state="complete", score=float(candidate == better)))
        assert max(abs(a - b) for a, b in zip(agent.ask(2), better, strict=True)) <= 2


def test_a_cut_trial_stands_below_the_complete_ones_whatever_its_bound() -> None:
    """One generation, half of it cut: it moves as if those had scored lowest, not as if their bounds were scores."""
    space = chain_space([64] * 8, step=2)
    source = make_agent("random", space, BUDGET, seed=1)

    def told(cut: list[Trial]) -> tuple[int, ...]:
        agent = make_agent("cmaes", space, BUDGET, seed=0)
        agent.tell(Trial(number=0, candidate=agent.ask(0), state="complete", score=0.0))
        complete = [Trial(number=k, candidate=source.ask(k), state="complete", score=-float(k)) for k in range(1, 5)]
        for trial in [*complete, *cut]:
            agent.tell(trial)
        return agent.ask(9)

    as_bounds = told([Trial(number=k, candidate=source.ask(k), state="cut", score=9.0 - k) for k in range(5, 9)])
    lowest, highest = (
        told([Trial(number=k, candidate=source.ask(k), state="complete", score=at - k) for k in range(5, 9)])
        for at in (-9.0, 9.0)
    )
    assert as_bounds == lowest != highest


@pytest.mark.parametrize("options", [{"population": 3}, {"population": 4.0}, {"sigma": 0}, {"sigma": 1.5}])
def test_bad_option_values(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"`{next(iter(options))}` of agent 'cmaes' must be"):
        make_agent("cmaes", tiny_space(), BUDGET, seed=0, **options)
