from __future__ import annotations

import pytest

from autoprune.agents import make_agent
from autoprune.agents.uniform import _van_der_corput_order
from autoprune.search_spaces.budget import Budget
from autoprune.search_spaces.projection import is_feasible, uniform_line
from tests.contracts.agent_contract import AgentContract, play
from tests.fakes import tiny_space


class TestUniformAgent(AgentContract):
    name = "uniform"


BUDGET = Budget.parse(["macs=0.5x", "latency=0.9x"])


def test_the_first_proposal_is_tight_and_the_others_are_the_uniform_ones_below_it() -> None:
    space = tiny_space()
    line = [tuple(candidate) for candidate in uniform_line(space, BUDGET).tolist()]
    agent = make_agent("uniform", space, BUDGET, seed=0)
    first, *others = (trial.candidate for trial in play(agent, range(len(line) + 1)))
    assert first == space.project([1.0] * 5, BUDGET)
    for group in range(5):
        up = (*first[:group], first[group] + 1, *first[group + 1 :])
        assert up[group] >= len(space.groups[group].levels) or not is_feasible(space, up, BUDGET)
    assert sorted(others) == sorted(line)  # each once: here the first is none of them
    assert first not in line


def test_starts_again_when_every_uniform_candidate_was_proposed() -> None:
    agent = make_agent("uniform", tiny_space(), BUDGET, seed=0)
    trials = play(agent, range(60))
    period = len({trial.candidate for trial in trials})
    assert [trial.candidate for trial in trials[period:]] == [trial.candidate for trial in trials[:-period]]


def test_neither_seed_nor_number_matters() -> None:
    runs = [
        [trial.candidate for trial in play(make_agent("uniform", tiny_space(), BUDGET, seed=seed), numbers)]
        for seed, numbers in ((0, range(20)), (1, range(20)), (0, range(3, 103, 5)))
    ]
    assert runs[0] == runs[1] == runs[2]


@pytest.mark.parametrize("size", [0, 1, 2, 3, 7, 8, 9, 100])
def test_van_der_corput_order(size: int) -> None:
    order = _van_der_corput_order(size)
    assert sorted(order) == list(range(size))
    if size >= 8:  # each quarter of the line is met by the first few
        assert {4 * index // size for index in order[: 6 if size == 9 else 5]} == {0, 1, 2, 3}


def test_van_der_corput_order_of_eight_is_the_bit_reversal() -> None:
    assert _van_der_corput_order(8) == [4, 2, 6, 1, 5, 3, 7, 0]
