"""What every agent promises, written once: subclass `AgentContract`, name the agent, and it is tested.

An agent that takes `costs` is tested a second time, by `FrontContract`.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import pytest

from autoprune.agents import Agent, Trial, make_agent
from autoprune.search_spaces.budget import Budget
from autoprune.search_spaces.errors import UserError
from autoprune.search_spaces.projection import Space, is_feasible
from autoprune.search_spaces.types import Candidate
from tests.fakes import FakeSpace, chain_space, random_space, tiny_space
from tests.layout import ROOT

BUDGETS = {
    "one limit": ["macs=0.5x"],
    "several limits": ["macs=0.6x", "params=0.5x", "memory=0.9x", "latency=2ms"],
    "all of it": ["macs=1x"],
    "hardly anything": ["macs=0.036x"],
}


def costs_of(space: Space, candidate: Candidate) -> dict[str, float]:
    return {name: float(space.cost(name, np.array([candidate]))[0]) for name in space.cost_names}


def outcome(number: int, candidate: Candidate, costs: dict[str, float]) -> Trial:
    """Return a trial of every kind in turn; scores prefer some groups to others."""
    score = -sum((group + 1) * (level - 3) ** 2 for group, level in enumerate(candidate)) / 10
    if number % 5 == 3:
        return Trial(number=number, candidate=candidate, state="failed", score=None, costs=costs, message="NaN")
    if number % 5 == 4:
        bound = score + 1 if number % 2 else None
        return Trial(number=number, candidate=candidate, state="cut", score=bound, costs=costs, message="cut")
    return Trial(number=number, candidate=candidate, state="complete", score=score, costs=costs)


def play(agent: Agent, numbers: Sequence[int]) -> list[Trial]:
    """Ask and tell, as the controller does."""
    trials = []
    for number in numbers:
        candidate = agent.ask(number)
        trials.append(outcome(number, candidate, costs_of(agent.space, candidate)))
        agent.tell(trials[-1])
    return trials


class AgentContract:
    """Subclass it as ``class TestX(AgentContract)`` and set `name`, and `options` where a test needs other defaults."""

    name: ClassVar[str]
    options: ClassVar[dict[str, Any]] = {}
    num_trials: ClassVar[int] = 25
    """Enough to leave every stage of the agent behind."""

    def make(self, seed: int = 0, *, space: FakeSpace | None = None, budget: Sequence[str] = ("macs=0.5x",)) -> Agent:
        return make_agent(self.name, space or tiny_space(), Budget.parse(budget), seed=seed, **self.options)

    def test_same_seed_same_proposals(self) -> None:
        assert play(self.make(7), range(self.num_trials)) == play(self.make(7), range(self.num_trials))

    @pytest.mark.parametrize("done", [1, 4, 5, 11, 20])
    def test_resumed_study_equals_unbroken_study(self, done: int) -> None:
        whole = play(self.make(), range(self.num_trials))
        resumed = self.make()
        for trial in whole[:done]:
            resumed.tell(trial)
        assert play(resumed, range(done, self.num_trials)) == whole[done:]

    def test_resumed_in_another_process(self) -> None:
        whole = play(self.make(3), range(self.num_trials))
        code = (
            "import json; from tests.contracts.agent_contract import *\n"
            f"agent = make_agent({self.name!r}, tiny_space(), Budget.parse('macs=0.5x'), seed=3, **{self.options!r})\n"
            "played = play(agent, range(12))\n"
            f"again = make_agent({self.name!r}, tiny_space(), Budget.parse('macs=0.5x'), seed=3, **{self.options!r})\n"
            "for trial in played: again.tell(trial)\n"
            f"played += play(again, range(12, {self.num_trials}))\n"
            "print(json.dumps([trial.candidate for trial in played]))"
        )
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": "12345"},
            capture_output=True,
            text=True,
            check=True,
        )
        assert [tuple(levels) for levels in json.loads(done.stdout)] == [trial.candidate for trial in whole]
        assert done.stderr == ""

    def test_agents_that_share_a_study_see_their_own_numbers_only(self) -> None:
        """One agent per share of the budget: trial k goes to agent k % 3."""
        numbers = range(2, 3 * self.num_trials, 3)
        whole = play(self.make(), numbers)
        resumed = self.make()
        for trial in whole[:13]:
            resumed.tell(trial)
        assert play(resumed, numbers[13:]) == whole[13:]
        assert whole[0].candidate == self.make().ask(2)

    def test_asking_changes_nothing(self) -> None:
        agent, other = self.make(), self.make()
        for trial in play(self.make(), range(self.num_trials)):
            for number in (0, trial.number, 99, trial.number):
                agent.ask(number)
            assert agent.ask(trial.number) == other.ask(trial.number) == trial.candidate
            agent.tell(trial)
            other.tell(trial)

    @pytest.mark.parametrize("budget", BUDGETS.values(), ids=BUDGETS)
    def test_every_proposal_fits_and_is_a_tuple_of_ints(self, budget: list[str]) -> None:
        space = tiny_space()
        for trial in play(self.make(space=space, budget=budget), range(self.num_trials)):
            assert type(trial.candidate) is tuple
            assert all(type(level) is int for level in trial.candidate)
            assert is_feasible(space, trial.candidate, Budget.parse(budget))

    @pytest.mark.parametrize("state", ["failed", "cut"])
    def test_survives_when_no_trial_completes(self, state: str) -> None:
        agent = self.make()
        for number in range(self.num_trials):
            candidate = agent.ask(number)
            costs = costs_of(agent.space, candidate)
            trial = Trial(number=number, candidate=candidate, state=state, score=None, costs=costs)  # type: ignore[arg-type]
            agent.tell(trial)
            assert is_feasible(agent.space, trial.candidate, agent.budget)

    def test_survives_equal_and_extreme_scores(self) -> None:
        for score in (0.5, 1e300, -1e300):
            agent = self.make()
            for number in range(self.num_trials):
                candidate = agent.ask(number)
                assert is_feasible(agent.space, candidate, agent.budget)
                costs = costs_of(agent.space, candidate)
                agent.tell(Trial(number=number, candidate=candidate, state="complete", score=score, costs=costs))

    @pytest.mark.parametrize("widths", [[4], [4, 12], [4, 4, 4]], ids=["one candidate", "a fixed group", "all fixed"])
    def test_groups_with_a_single_level(self, widths: list[int]) -> None:
        space = chain_space(widths, step=4)
        for trial in play(self.make(space=space, budget=["macs=1x"]), range(self.num_trials)):
            assert len(trial.candidate) == len(widths)

    def test_many_groups(self) -> None:
        space = random_space(0, 40, step=8)
        for trial in play(self.make(space=space, budget=["macs=0.3x", "params=0.3x"]), range(14)):
            assert is_feasible(space, trial.candidate, Budget.parse(["macs=0.3x", "params=0.3x"]))

    def test_no_global_randomness(self) -> None:
        def states() -> tuple[Any, ...]:
            kind, keys, *rest = np.random.get_state()
            return random.getstate(), kind, np.asarray(keys).tobytes(), *rest

        before = states()
        first = play(self.make(), range(self.num_trials))
        assert states() == before
        random.random()
        np.random.random()
        assert play(self.make(), range(self.num_trials)) == first

    def test_bad_arguments_are_refused_at_once(self) -> None:
        with pytest.raises(UserError, match="No subnet fits"):
            self.make(budget=["macs=0.01x"])
        with pytest.raises(UserError, match="It is measured, not counted"):
            self.make(space=tiny_space(latency=False), budget=["latency=2ms"])
        with pytest.raises(UserError, match="seed"):
            self.make(-1)
        with pytest.raises(UserError, match="no_such_option"):
            make_agent(self.name, tiny_space(), Budget.parse("macs=0.5x"), seed=0, no_such_option=1)


class FrontContract(AgentContract):
    """As `AgentContract`, for an agent that looks for the front of the score and of `costs`."""

    options: ClassVar[dict[str, Any]] = {"costs": ["macs", "params"]}
    learns: ClassVar[bool] = True

    def test_proposes_large_and_small_candidates(self) -> None:
        macs = [trial.costs["macs"] for trial in play(self.make(), range(self.num_trials))]
        limit = Budget.parse("macs=0.5x").resolve(tiny_space().cost_dict(tiny_space().dense))["macs"]
        shares = np.array(macs) / limit
        assert shares.max() > 0.9
        assert 0.25 < shares.min() < 0.5  # from 0.4 of the budget on, which rounding misses on so small a space
        assert ((shares > 0.5) & (shares < 0.9)).any()

    def test_proposals_follow_the_costs_that_are_told(self) -> None:
        """Where large candidates score no better they are dominated, and a learning agent makes few of them."""

        def mean_macs(worth: float) -> float:
            agent, macs = self.make(space=chain_space([64] * 8, step=2)), []
            for number in range(2 * self.num_trials):
                costs = costs_of(agent.space, candidate := agent.ask(number))
                score = worth * costs["macs"] - 1e-9 * number
                agent.tell(Trial(number=number, candidate=candidate, state="complete", score=score, costs=costs))
                macs.append(costs["macs"])
            return float(np.mean(macs[self.num_trials :]))

        if self.learns:
            assert mean_macs(0) < 0.9 * mean_macs(1)
        else:
            assert mean_macs(0) == mean_macs(1)

    def test_costs_that_the_space_cannot_tell(self) -> None:
        with pytest.raises(UserError, match=r"Unknown cost of an agent: 'mac'\. Did you mean 'macs'"):
            make_agent(self.name, tiny_space(), Budget.parse("macs=0.5x"), seed=0, costs=["mac"])
        with pytest.raises(UserError, match="takes a list of names"):
            make_agent(self.name, tiny_space(), Budget.parse("macs=0.5x"), seed=0, costs="macs")
