from __future__ import annotations

import sys

import gymnasium
import numpy as np
import pytest

from autoprune.agents import AGENTS, make_agent
from autoprune.search_spaces.budget import Budget
from autoprune.search_spaces.errors import UserError
from tests.contracts.agent_contract import AgentContract, play
from tests.fakes import tiny_space

BUDGET = Budget.parse("macs=0.5x")
SMALL = {"n_startup": 4, "updates": 1, "hidden": 8}


class TestSACAgent(AgentContract):
    name = "sb3:sac"
    options = SMALL
    num_trials = 14


class TestTD3Agent(AgentContract):
    name = "sb3:td3"
    options = SMALL
    num_trials = 14


class TestDDPGAgent(AgentContract):
    name = "sb3:ddpg"
    options = SMALL
    num_trials = 14


def test_the_replay_buffer_holds_the_executed_episodes() -> None:
    agent = make_agent("sb3:td3", tiny_space(), BUDGET, seed=0, **SMALL)
    trials = [trial for trial in play(agent, range(12)) if trial.score is not None]
    buffer = agent._model.replay_buffer  # type: ignore[attr-defined]
    episodes = {
        name: getattr(buffer, name)[: buffer.pos].reshape(len(trials), 5, -1)
        for name in ("observations", "next_observations", "actions", "rewards", "dones")
    }
    ratios = [list(tiny_space().keep_ratios(trial.candidate).values()) for trial in trials]
    np.testing.assert_allclose(0.5 - episodes["actions"][..., 0] / 2, ratios, atol=1e-6)
    np.testing.assert_array_equal(episodes["observations"][:, 1:], episodes["next_observations"][:, :-1])
    assert (episodes["dones"][..., 0] == [0, 0, 0, 0, 1]).all()
    assert not episodes["rewards"][:, :-1].any()
    last = episodes["rewards"][:, -1, 0]
    assert last.mean() == pytest.approx(0, abs=1e-6)
    complete = [index for index, trial in enumerate(trials) if trial.state == "complete"]
    scores = [trials[index].score or 0.0 for index in complete]
    assert max(np.delete(last, complete)) <= min(last[complete]) + 1e-6
    assert np.corrcoef(last[complete], scores)[0, 1] == pytest.approx(1)


@pytest.mark.parametrize("algorithm", ["SAC", "PPO"])
def test_the_library_learns_in_the_environment_as_it_is(algorithm: str) -> None:
    library = pytest.importorskip("stable_baselines3")
    seen = []

    def evaluate(candidate: tuple[int, ...]) -> float:
        seen.append(candidate)
        return float(sum(candidate))

    env = gymnasium.make("autoprune/Pruning-v0", space=tiny_space(), budgets=["macs=0.5x"], evaluate=evaluate)
    few = {"n_steps": 20, "batch_size": 10} if algorithm == "PPO" else {"learning_starts": 10, "batch_size": 10}
    getattr(library, algorithm)("MlpPolicy", env, seed=0, device="cpu", **few).learn(40)
    assert len(seen) == 8


def test_a_missing_library_and_an_unknown_name(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"Unknown agent 'sb3:sax'\. Did you mean 'sb3:sac'\?"):
        make_agent("sb3:sax", tiny_space(), BUDGET, seed=0)
    monkeypatch.setitem(sys.modules, "stable_baselines3", None)
    for name in (name for name in AGENTS if name.startswith("sb3:")):
        with pytest.raises(UserError, match=rf"'{name}' needs .*pip install 'autoprune\[sb3\]'"):
            make_agent(name, tiny_space(), BUDGET, seed=0)
