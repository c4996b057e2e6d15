from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
import optuna
import pytest

from autoprune.agents import Agent, Trial, make_agent
from autoprune.agents.base import State
from autoprune.search_spaces.budget import Budget
from autoprune.search_spaces.errors import UserError
from autoprune.search_spaces.types import Candidate
from tests.contracts.agent_contract import AgentContract, FrontContract, play
from tests.fakes import FakeSpace, chain_space, tiny_space

BUDGET = Budget.parse("macs=0.5x")
Outcomes: TypeAlias = Mapping[Candidate, tuple[State, float | None]]


class TestTPEAgent(AgentContract):
    name = "tpe"


class TestTPEAgentForAFront(FrontContract):
    name = "tpe"


class TestTPEAgentWithoutStartup(AgentContract):
    name = "tpe"
    options = {"n_startup": 1, "n_ei_candidates": 5}  # noqa: RUF012


def loss(space: FakeSpace, candidate: Candidate) -> float:
    """Return a separable quadratic in the keep ratios: the units of every second group matter ten times as much."""
    ratios = space.keep_ratios(candidate).values()
    return sum((1.0 if group % 2 else 0.1) * (1 - ratio) ** 2 for group, ratio in enumerate(ratios))


def mean_best_loss(name: str, space: FakeSpace, budget: Budget, num_seeds: int) -> float:
    """Return the lowest loss that an agent finds in 60 trials, averaged over seeds."""
    best = []
    for seed in range(num_seeds):
        agent = make_agent(name, space, budget, seed=seed)
        for number in range(60):
            candidate = agent.ask(number)
            agent.tell(Trial(number=number, candidate=candidate, state="complete", score=-loss(space, candidate)))
        best.append(min(loss(space, trial.candidate) for trial in agent.trials))
    return sum(best) / num_seeds


def test_comes_nearer_to_the_optimum_than_random_and_uniform() -> None:
    space, budget = tiny_space(), Budget.parse("macs=0.25x")
    every = np.array(list(itertools.product(*(range(len(group.levels)) for group in space.groups))), dtype=np.int64)
    fitting = every[space.cost("macs", every) <= budget.resolve(space.cost_dict(space.dense))["macs"]]
    optimum = min(loss(space, tuple(candidate)) for candidate in fitting.tolist())
    tpe, rnd, uniform = (mean_best_loss(name, space, budget, 3) - optimum for name in ("tpe", "random", "uniform"))
    assert tpe < 0.5 * rnd < 0.5 * uniform


def test_beats_random_and_uniform_in_twelve_groups() -> None:
    space, budget = chain_space([32] * 12, step=2), Budget.parse("macs=0.25x")
    tpe, rnd, uniform = (mean_best_loss(name, space, budget, 3) for name in ("tpe", "random", "uniform"))
    assert tpe < 0.6 * rnd < 0.6 * uniform


def test_begins_with_the_uniform_candidate_then_at_random_then_with_the_model() -> None:
    space = tiny_space()
    tpe, rnd = make_agent("tpe", space, BUDGET, seed=0), make_agent("random", space, BUDGET, seed=0)
    numbers = range(3, 15)  # an agent's numbers need not begin at 0
    asked = []
    for number in numbers:
        asked.append(tpe.ask(number))
        tpe.tell(Trial(number=number, candidate=asked[-1], state="complete", score=float(number)))
    assert asked[0] == space.project([1.0] * 5, BUDGET)
    assert asked[1:10] == [rnd.ask(number) for number in numbers[1:10]]
    assert all(candidate != rnd.ask(number) for candidate, number in zip(asked[10:], numbers[10:], strict=True))


LINE: list[Candidate] = [(level, 15 - level) for level in range(16)]
"""Candidates of two groups of 64 in steps of 4: the more of the first, the less of the second."""


def agent_told(outcomes: Outcomes, seed: int = 0) -> Agent:
    agent = make_agent("tpe", chain_space([64, 64], step=4), Budget.parse("params=0.3x"), seed=seed)
    for number, (candidate, (state, score)) in enumerate(outcomes.items()):
        agent.tell(Trial(number=number, candidate=candidate, state=state, score=score))
    return agent


def mean_first_level(outcomes: Outcomes) -> float:
    """Return how much of the first group the model wants after these trials, over several seeds."""
    return sum(agent_told(outcomes, seed).ask(16)[0] for seed in range(30)) / 30


def test_a_cut_trial_is_worse_than_a_complete_one_whatever_its_bound() -> None:
    """The bound of a trial cut late is close to the best score; taken for a value it would draw the model there."""
    complete: Outcomes = {candidate: ("complete", -abs(candidate[0] - 12) / 10) for candidate in LINE}
    cut: Outcomes = dict.fromkeys(LINE[:8], ("cut", 0.1))
    as_value: Outcomes = dict.fromkeys(LINE[:8], ("complete", 0.1))
    levels = [mean_first_level({**complete, **few}) for few in (cut, as_value)]
    assert levels[0] > levels[1] + 2


def test_a_failed_trial_is_not_modelled_but_not_proposed_again() -> None:
    complete: Outcomes = {candidate: ("complete", float(candidate[0])) for candidate in LINE[:12]}
    failed: Outcomes = dict.fromkeys(LINE[12:], ("failed", None))
    proposal = agent_told(complete).ask(40)
    assert agent_told({**complete, **failed}).ask(40) == proposal
    assert agent_told({**complete, **failed, proposal: ("failed", None)}).ask(40) != proposal


def test_the_model_draws_anew_for_every_number_and_seed() -> None:
    space = chain_space([32] * 12, step=2)
    trials = play(make_agent("random", space, BUDGET, seed=0), range(20))
    proposals = set()
    for seed in range(3):
        agent = make_agent("tpe", space, BUDGET, seed=seed)
        for trial in trials:
            agent.tell(trial)
        proposals |= {agent.ask(number) for number in range(20, 25)}
    assert len(proposals) == 15


def test_hardly_ever_proposes_a_candidate_twice() -> None:
    trials = play(make_agent("tpe", tiny_space(), BUDGET, seed=0), range(40))
    assert len({trial.candidate for trial in trials}) >= 38


@pytest.mark.parametrize("options", [{"n_startup": 0}, {"n_startup": 2.5}, {"n_ei_candidates": -1}])
def test_bad_option_values(options: dict[str, float]) -> None:
    with pytest.raises(UserError, match="must be an integer of 1 or more"):
        make_agent("tpe", tiny_space(), BUDGET, seed=0, **options)


def test_leaves_the_verbosity_of_optuna_as_the_user_set_it() -> None:
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.INFO)
    try:
        play(make_agent("tpe", tiny_space(), BUDGET, seed=0), range(15))
        assert optuna.logging.get_verbosity() == optuna.logging.INFO
    finally:
        optuna.logging.set_verbosity(verbosity)
