from __future__ import annotations

import numpy as np
import pytest

from autoprune.agents import Trial, make_agent
from autoprune.agents.table import Table
from autoprune.search_spaces.budget import Budget
from autoprune.search_spaces.types import Candidate, FloatArray, IntArray
from tests.agents.oracles import feasible, random_table
from tests.agents.searching import hard_table, mean_best_loss
from tests.contracts.agent_contract import AgentContract, play
from tests.fakes import FakeSpace, chain_space, tiny_space

BUDGET = Budget.parse("macs=0.5x")


class TestAutoAgent(AgentContract):
    name = "auto"


def coupled(space: FakeSpace, candidates: IntArray, table: Table) -> FloatArray:
    """The losses of a table, and neighbours that should be cut alike."""
    cut = 1 - space.units(candidates) / space.level_units[:, -1]
    losses: FloatArray = table.predict(candidates) + (np.diff(cut, axis=1) ** 2).sum(axis=1)
    return losses


@pytest.mark.parametrize("seed", range(4))
def test_meets_the_optimum_of_a_small_space(seed: int) -> None:
    space, budget, table = tiny_space(), Budget.parse("macs=0.25x"), random_table(tiny_space(), seed)
    optimum = coupled(space, feasible(space, budget), table).min()
    agent = make_agent("auto", space, budget, seed=seed)
    losses = []
    for number in range(80):
        candidate = agent.ask(number)
        losses.append(float(coupled(space, np.array([candidate]), table)[0]))
        agent.tell(Trial(number=number, candidate=candidate, state="complete", score=1e6 - 1e3 * losses[-1]))
    assert min(losses) <= 1.005 * optimum
    assert len({trial.candidate for trial in agent.trials}) == 80


def test_learns_which_groups_matter() -> None:
    space, budget = chain_space([32] * 12, step=2), Budget.parse("macs=0.25x")
    table = hard_table(space)
    best = make_agent("bnb", space, budget, seed=0, table=table).ask(0)
    auto = mean_best_loss("auto", space, budget, table, trials=40)
    assert auto <= 1.02 * table.predict(np.array([best]))[0]


def test_survives_noise() -> None:
    space, budget = chain_space([32] * 12, step=2), Budget.parse("macs=0.25x")
    table, rng = hard_table(space), np.random.default_rng(0)
    agent = make_agent("auto", space, budget, seed=0)
    losses = []
    for number in range(60):
        candidate = agent.ask(number)
        losses.append(float(table.predict(np.array([candidate]))[0]))
        score = -losses[-1] * (1 + 0.1 * rng.normal())
        agent.tell(Trial(number=number, candidate=candidate, state="complete", score=score))
    optimum = make_agent("bnb", space, budget, seed=0, table=table).ask(0)
    assert np.median(losses[-20:]) < 1.25 * table.predict(np.array([optimum]))[0]


def test_begins_with_the_uniform_candidate_and_the_best_by_the_table() -> None:
    table = random_table(tiny_space(), 0)
    trials = play(make_agent("auto", tiny_space(), BUDGET, seed=0, table=table), range(2))
    best = make_agent("bnb", tiny_space(), BUDGET, seed=0, table=table).ask(0)
    assert [trial.candidate for trial in trials] == [tiny_space().project([1.0] * 5, BUDGET), best]


LINE: list[Candidate] = [(level, 15 - level) for level in range(16)]
"""Candidates of two groups of 64 in steps of 4: the more of the first, the less of the second."""


@pytest.mark.parametrize("evaluated", [0.0, 0.1, 0.9])
def test_cut_trials_turn_it_away_and_the_earlier_the_more(evaluated: float) -> None:
    """Nothing is known but that the second half of the line is no better than the best of the first half."""
    space, budget = chain_space([64, 64], step=4), Budget.parse("params=0.3x")

    def mean_level(cut: float | None) -> float:
        levels = []
        for seed in range(20):
            agent = make_agent("auto", space, budget, seed=seed)
            for number, candidate in enumerate(LINE[:3]):
                agent.tell(Trial(number=number, candidate=candidate, state="complete", score=-1.0 - (2 - number) / 10))
            for number, candidate in enumerate(LINE[3:] if cut is not None else []):
                agent.tell(Trial(number=3 + number, candidate=candidate, state="cut", score=-1.0, evaluated=cut or 0.0))
            levels.append(agent.ask(30)[0])
        return float(np.mean(levels))

    assert mean_level(evaluated) < mean_level(None) - 1


def test_a_failed_trial_is_not_modelled_but_not_proposed_again() -> None:
    trials = play(make_agent("random", tiny_space(), BUDGET, seed=0), range(10))
    agent, other = (make_agent("auto", tiny_space(), BUDGET, seed=0) for _ in range(2))
    for trial in trials:
        agent.tell(trial)
        if trial.state != "failed":
            other.tell(trial)
    assert agent.ask(10) == other.ask(10)
    agent.tell(Trial(number=10, candidate=agent.ask(10), state="failed", score=None))
    assert agent.ask(10) != other.ask(10)
