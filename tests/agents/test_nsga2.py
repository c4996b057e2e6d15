from __future__ import annotations

import pytest

from autoprune.agents import Trial, make_agent
from autoprune.search_spaces.budget import Budget
from autoprune.search_spaces.errors import UserError
from tests.agents.searching import hard_table, mean_best_loss
from tests.contracts.agent_contract import AgentContract, FrontContract
from tests.fakes import chain_space, tiny_space

BUDGET = Budget.parse("macs=0.5x")


class TestNSGA2Agent(AgentContract):
    name = "nsga2"
    options = {"population": 6}  # noqa: RUF012


class TestNSGA2AgentForAFront(FrontContract):
    name = "nsga2"
    options = {"population": 6, "costs": ["macs", "params"]}  # noqa: RUF012


def test_learns_which_groups_matter() -> None:
    space, budget = chain_space([32] * 12, step=2), Budget.parse("macs=0.25x")
    found, rnd = (mean_best_loss(name, space, budget, hard_table(space)) for name in ("nsga2", "random"))
    assert found < 0.8 * rnd


def test_children_come_from_the_best_of_all_generations_before() -> None:
    """Two generations, the first far better: nearly every ratio of a child is one of the first's, not the second's."""
    space = chain_space([64] * 12, step=2)
    agent = make_agent("nsga2", space, BUDGET, seed=0, population=10)
    source = make_agent("random", space, BUDGET, seed=1)
    for number in range(20):
        agent.tell(Trial(number=number, candidate=source.ask(number), state="complete", score=float(number < 10)))
    parents = [trial.candidate for trial in agent.trials[:10]]
    others = [trial.candidate for trial in agent.trials[10:]]

    def nearest(candidates: list[tuple[int, ...]]) -> float:
        """Mean distance of each level of 20 children to the nearest that a candidate has, in levels."""
        children = [agent.ask(number) for number in range(20, 40)]
        return sum(
            min(abs(level - other[group]) for other in candidates)
            for child in children
            for group, level in enumerate(child)
        ) / len(children)

    assert nearest(parents) < 0.7 * nearest(others)


@pytest.mark.parametrize("population", [1, 2.5, None])
def test_bad_option_values(population: float | None) -> None:
    with pytest.raises(UserError, match="must be an integer of 2 or more"):
        make_agent("nsga2", tiny_space(), BUDGET, seed=0, population=population)
