from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from autoprune.agents import AGENTS, Agent, Trial, agent_class, make_agent, trial_rng
from autoprune.search_spaces.budget import Budget
from autoprune.search_spaces.errors import UserError
from tests.fakes import tiny_space
from tests.layout import ROOT


@pytest.mark.parametrize("name", AGENTS)
def test_every_registered_agent_can_be_made_and_has_a_card_and_a_contract(name: str) -> None:
    assert isinstance(make_agent(name, tiny_space(), Budget.parse("macs=0.5x"), seed=0), Agent)
    assert agent_class(name).__doc__
    assert f"\n## `{name}`\n" in (ROOT / "docs" / "agents.md").read_text()
    assert f'name = "{name}"' in "".join(path.read_text() for path in (ROOT / "tests" / "agents").glob("test_*.py"))


def test_unknown_agent_and_option() -> None:
    space, budget = tiny_space(), Budget.parse("macs=0.5x")
    with pytest.raises(UserError, match=r"Unknown agent 'tpa'\. Did you mean 'tpe'\? Available: annealing, .*tpe, u"):
        make_agent("tpa", space, budget, seed=0)
    with pytest.raises(UserError, match=r"option of agent 'tpe': 'n_start'\. Did you mean 'n_startup'"):
        make_agent("tpe", space, budget, seed=0, n_start=5)
    with pytest.raises(UserError, match="'uniform' takes no options, but got 'n_startup'"):
        make_agent("uniform", space, budget, seed=0, n_startup=5)


def test_agents_are_loaded_when_used() -> None:
    code = "import sys, autoprune.agents; print([name for name in sys.modules if name.startswith('autoprune.agents.')])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "['autoprune.agents.base']\n"


def test_trial_rng_depends_on_seed_and_number_only() -> None:
    draws = {(seed, number): trial_rng(seed, number).random(4).tolist() for seed in range(3) for number in range(3)}
    assert len({tuple(draw) for draw in draws.values()}) == 9
    assert trial_rng(1, 2).random(4).tolist() == draws[1, 2]
    assert np.allclose(draws[0, 0], [0.6369616873214543, 0.2697867137638703, 0.04097352393619469, 0.01652763553])


@pytest.mark.parametrize(
    "fields",
    [
        {"state": "running", "score": None},
        {"state": "complete", "score": None},
        {"state": "complete", "score": float("nan")},
        {"state": "cut", "score": float("nan")},
        {"state": "failed", "score": 0.5},
    ],
)
def test_a_trial_whose_state_and_score_do_not_fit(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="rial 3 "):
        Trial(number=3, candidate=(0, 1), **fields)
