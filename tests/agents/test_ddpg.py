from __future__ import annotations

import numpy as np
import pytest
import torch

from autoprune.agents import Agent, Trial, make_agent
from autoprune.agents.features import Features
from autoprune.search_spaces.budget import Budget
from autoprune.search_spaces.errors import UserError
from autoprune.search_spaces.types import Candidate
from tests.agents.oracles import random_table
from tests.agents.searching import hard_table, mean_best_loss
from tests.contracts.agent_contract import AgentContract, play
from tests.fakes import chain_space, tiny_space

BUDGET = Budget.parse("macs=0.5x")


class TestDDPGAgent(AgentContract):
    name = "ddpg"
    options = {"n_startup": 4, "updates": 3, "hidden": 16}  # noqa: RUF012
    num_trials = 18


def test_learns_which_groups_matter() -> None:
    space, budget = chain_space([32] * 12, step=2), Budget.parse("macs=0.25x")
    found, rnd = (mean_best_loss(name, space, budget, hard_table(space), trials=40) for name in ("ddpg", "random"))
    assert found < 0.5 * rnd


def test_begins_with_the_uniform_candidate_and_the_best_by_the_table() -> None:
    table = random_table(tiny_space(), 0)
    trials = play(make_agent("ddpg", tiny_space(), BUDGET, seed=0, table=table), range(2))
    best = make_agent("bnb", tiny_space(), BUDGET, seed=0, table=table).ask(0)
    assert [trial.candidate for trial in trials] == [tiny_space().project([1.0] * 5, BUDGET), best]


def test_a_table_is_learnt_before_the_first_trial() -> None:
    space, budget = chain_space([32] * 12, step=2), Budget.parse("macs=0.25x")
    table = hard_table(space)
    agent, rnd = make_agent("ddpg", space, budget, seed=0, table=table), make_agent("random", space, budget, seed=0)
    proposals = [[trial.candidate for trial in play(each, range(10))][2:] for each in (agent, rnd)]
    losses = [table.predict(np.array(each)) for each in proposals]
    assert losses[0].max() < losses[1].min()


def test_hardly_ever_proposes_a_candidate_twice() -> None:
    trials = play(make_agent("ddpg", tiny_space(), BUDGET, seed=0, updates=2), range(40))
    assert len({trial.candidate for trial in trials}) >= 38


def test_neither_uses_nor_changes_the_state_of_torch() -> None:
    options = {"n_startup": 4, "updates": 2}
    expected = play(make_agent("ddpg", tiny_space(), BUDGET, seed=0, **options), range(10))
    before, state = torch.get_num_threads(), torch.get_rng_state()
    try:
        torch.set_num_threads(2)
        torch.manual_seed(5)
        state = torch.get_rng_state()
        torch.set_default_dtype(torch.float64)
        with torch.no_grad():
            assert play(make_agent("ddpg", tiny_space(), BUDGET, seed=0, **options), range(10)) == expected
        assert torch.get_num_threads() == 2
        assert torch.equal(torch.get_rng_state(), state)
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_num_threads(before)


LINE: list[Candidate] = [(level, 15 - level) for level in range(16)]
"""Candidates of two groups of 64 in steps of 4: the more of the first, the less of the second."""


def mean_first_level(bounds: str) -> float:
    """Return how much of the first group is wanted after a line of scores whose lower half is cut at the best score."""
    levels = []
    for seed in range(2):
        space, budget = chain_space([64, 64], step=4), Budget.parse("params=0.3x")
        agent: Agent = make_agent("ddpg", space, budget, seed=seed, n_startup=27, updates=50)
        for number, candidate in enumerate(LINE * 2):
            low = candidate[0] < 8
            score = 1.2 if low else candidate[0] / 10
            state = "cut" if low and bounds == "bounds" else "complete"
            agent.tell(Trial(number=number, candidate=candidate, state=state, score=score))  # type: ignore[arg-type]
        levels += [agent.ask(number)[0] for number in range(40, 50)]
    return sum(levels) / len(levels)


def test_a_bound_is_not_taken_for_a_score() -> None:
    assert mean_first_level("bounds") > mean_first_level("scores") + 1


def test_cost_shares_are_those_of_the_limited_cost() -> None:
    space = chain_space([8, 16], step=4)
    macs = Features(space, Budget.parse("macs=0.5x")).cost_shares()
    rates = np.array([4 * (3 + 16) * 9 * 256 / 0.5, 12 * (8 * 9 * 256 + 3) / 0.75])
    assert macs == pytest.approx(rates / rates.sum())


@pytest.mark.parametrize(
    "options", [{"n_startup": 0}, {"updates": 1.5}, {"hidden": -1}, {"noise": 0.0}, {"decay": 1.5}, {"decay": 0.0}]
)
def test_bad_option_values(options: dict[str, float]) -> None:
    with pytest.raises(UserError, match=f"`{next(iter(options))}` of agent 'ddpg' must be"):
        make_agent("ddpg", tiny_space(), BUDGET, seed=0, **options)
