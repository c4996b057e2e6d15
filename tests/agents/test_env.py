from __future__ import annotations

import subprocess
import sys
import warnings
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from autoprune.agents.env import PruningEnv
from autoprune.agents.features import NAMES, Features
from autoprune.search_spaces.budget import Budget
from autoprune.search_spaces.errors import UserError
from autoprune.search_spaces.projection import is_feasible
from autoprune.search_spaces.types import Candidate
from tests.fakes import FakeSpace, chain_space, random_space, tiny_space
from tests.layout import ROOT

BUDGETS = ["macs=0.5x", "params=0.4x, latency=0.9x", "macs=0.2x"]


def score(candidate: Candidate) -> float:
    return float(sum((group + 1) * level for group, level in enumerate(candidate)))


def make(space: FakeSpace | None = None, budgets: Any = BUDGETS, **kwargs: Any) -> gymnasium.Env[Any, Any]:
    return gymnasium.make(
        "autoprune/Pruning-v0", space=space or tiny_space(), budgets=budgets, evaluate=score, **kwargs
    )


def play(env: gymnasium.Env[Any, Any], actions: list[float], **reset: Any) -> list[tuple[Any, ...]]:
    """Return (observation, reward, terminated, info) of every step of an episode, the reset first."""
    observation, info = env.reset(**reset)
    steps: list[tuple[Any, ...]] = [(observation, 0.0, False, info)]
    for action in actions:
        observation, reward, terminated, truncated, info = env.step(np.array([action], np.float32))
        assert not truncated
        steps.append((observation, reward, terminated, info))
    return steps


@pytest.mark.parametrize("render_mode", [None, "ansi", "rgb_array"])
def test_gymnasium_finds_nothing_to_remark(render_mode: str | None) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(make(render_mode=render_mode).unwrapped)
        check_env(make(chain_space([4, 12], step=4), ["macs=1x"], render_mode=render_mode).unwrapped)


def test_is_registered_whatever_is_imported_first() -> None:
    """Each of them in a process of its own, since importing is done once."""
    for code in (
        "import autoprune, gymnasium; autoprune.Budget; gymnasium.spec('autoprune/Pruning-v0')",
        "import gymnasium; gymnasium.make('autoprune:autoprune/Pruning-v0')",
    ):
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0 or "missing 3 required positional arguments: 'space'" in done.stderr


def test_an_episode_ends_in_the_projection_of_its_wishes() -> None:
    space, rng = tiny_space(), np.random.default_rng(0)
    env = make(space)
    for index, budget in enumerate(map(Budget.parse, BUDGETS)):
        actions = rng.random(5).astype(np.float32).astype(np.float64)
        steps = play(env, actions.tolist(), options={"budget": index})
        *before, (_, reward, terminated, info) = steps
        assert [(r, t) for _, r, t, _ in before] == [(0.0, False)] * 5
        assert terminated
        assert info["candidate"] == space.project((1 - actions).tolist(), budget)
        assert reward == score(info["candidate"])
        assert is_feasible(space, info["candidate"], budget)
        assert info["costs"] == space.cost_dict(info["candidate"])
        np.testing.assert_allclose(1 - info["executed"], list(space.keep_ratios(info["candidate"]).values()))
        assert all(step[3]["budget"] == index for step in steps)


def test_what_is_reduced_and_what_rests_are_the_costs_of_the_space() -> None:
    for space, budget, cost in (
        (tiny_space(), "macs=0.5x", "macs"),
        (tiny_space(), "params=0.3x, macs=0.5x", "params"),
        (random_space(3, 9), "memory=0.9x", "memory"),
    ):
        num_groups = len(space.groups)
        actions = np.random.default_rng(1).random(num_groups).astype(np.float32)
        seen = [dict(zip(NAMES, o.tolist(), strict=True)) for o, *_ in play(make(space, budget), actions.tolist())]
        ratios = {group.name: 1 - float(action) for group, action in zip(space.groups, actions, strict=True)}
        wished = np.array(space.candidate(ratios))
        dense = space.cost(cost, np.array([space.dense]))[0]
        share = Budget.parse(budget).resolve(space.cost_dict(space.dense))[cost] / dense
        for step in range(num_groups + 1):
            ahead, least = wished.copy(), wished.copy()
            ahead[step:], least[step:] = np.array(space.dense)[step:], 0
            costs = space.cost(cost, np.array([ahead, least])) / dense
            assert seen[step]["reduced"] == pytest.approx(1 - costs[0], abs=1e-6)
            assert seen[step]["rest"] == pytest.approx(costs[0] - costs[1], abs=1e-6)
            assert seen[step]["index"] == pytest.approx(step / num_groups)
            assert seen[step]["previous"] == pytest.approx(actions[step - 1] if step else 0.0)
            assert seen[step]["budget"] == pytest.approx(share)


def test_features_of_groups_by_hand() -> None:
    """Two layers, 3 -> 8 -> 16 units, 3x3 on 16 x 16 places, then a classifier of 3 outputs at one place."""
    seen = Features(chain_space([8, 16], step=4), Budget.parse("macs=0.5x")).episodes(np.array([[1, 3]]))[0]
    first, second = (dict(zip(NAMES, row.tolist(), strict=True)) for row in seen)
    dense = 3 * 8 * 9 * 256 + 8 * 16 * 9 * 256 + 16 * 3
    saved = [4 * (3 + 16) * 9 * 256, 12 * (8 * 9 * 256 + 3)]
    both = dense - (3 * 4 * 9 * 256 + 4 * 4 * 9 * 256 + 4 * 3)
    weights = [(3 + 16) * 9, 8 * 9 + 3]
    assert [first["macs"], second["macs"]] == pytest.approx([each / dense for each in saved])
    assert [first["weights"], second["weights"]] == pytest.approx([1, weights[1] / weights[0]])
    assert [first["positions"], second["positions"]] == pytest.approx([1, saved[1] / (12 * weights[1]) / 256])
    assert [first["units"], second["units"]] == [0.5, 1]
    assert [first["smallest"], second["smallest"]] == [0.5, 0.25]
    assert [first["overlap"], second["overlap"]] == pytest.approx([0, (sum(saved) - both) / saved[1]])


def test_observations_of_a_candidate_are_those_of_walking_to_it() -> None:
    space = random_space(5, 12)
    candidate = np.array([space.project(np.random.default_rng(2).random(12).tolist(), Budget.parse("macs=0.5x"))])
    features = Features(space, Budget.parse("macs=0.5x"))
    actions = features.actions(candidate)
    walked = [features.observe(actions[:, :step])[0] for step in range(12)]
    np.testing.assert_array_equal(features.episodes(candidate)[0], walked)
    np.testing.assert_array_equal(features.levels(actions), candidate)


def test_budgets_are_drawn_from_the_seed_and_seen() -> None:
    env = make()
    env.reset(seed=3)
    drawn = [env.reset()[1]["budget"] for _ in range(40)]
    assert set(drawn) == {0, 1, 2}
    env.reset(seed=3)
    assert [env.reset()[1]["budget"] for _ in range(40)] == drawn
    assert [env.reset(options={"budget": index})[0][-1] for index in range(3)] == pytest.approx([0.5, 0.4, 0.2])


def test_several_at_once() -> None:
    envs = gymnasium.make_vec("autoprune/Pruning-v0", 3, "sync", space=tiny_space(), budgets=BUDGETS, evaluate=score)
    envs.reset(seed=0)
    for _ in range(5):
        _, rewards, terminated, _, info = envs.step(envs.action_space.sample())
    assert terminated.all()
    assert rewards.tolist() == [score(candidate) for candidate in info["candidate"]]


def test_pictures_show_what_is_kept() -> None:
    actions, last = [0.1, 0.9, 0.5, 0.3, 0.7], {}
    for mode in ("ansi", "rgb_array"):
        env = make(render_mode=mode, budgets="macs=0.5x")
        last[mode] = play(env, actions)[-1][3], env.render()
    kept = 1 - last["ansi"][0]["executed"]
    text: Any = last["ansi"][1]
    assert text.splitlines()[0] == "macs=0.5x"
    assert [line.split()[0] for line in text.splitlines()[1:]] == [f"conv{i}" for i in range(5)]
    assert [float(line.split()[-1]) for line in text.splitlines()[1:]] == pytest.approx(kept, abs=0.006)
    picture: Any = last["rgb_array"][1]
    assert picture.dtype == np.uint8
    lengths = (picture == (60, 110, 175)).all(axis=2).sum(axis=1).reshape(6, -1).max(axis=1)[1:]
    assert lengths / 200 == pytest.approx(kept, abs=0.01)


def test_what_is_wrong_is_said() -> None:
    with pytest.raises(UserError, match="at least one budget"):
        make(budgets=[])
    with pytest.raises(UserError, match="No subnet fits"):
        make(budgets=["macs=0.5x", "macs=0.001x"])
    with pytest.raises(UserError, match="'ansi', 'rgb_array' or None, but got 'human'"):
        PruningEnv(tiny_space(), "macs=0.5x", score, "human")
    with pytest.raises(UserError, match="index below 3, but got 3"):
        make().reset(options={"budget": 3})
    env = make().unwrapped
    play(env, [0.5] * 5)
    with pytest.raises(UserError, match="call reset"):
        env.step(np.array([0.5], np.float32))
