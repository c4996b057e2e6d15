from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import chisquare

from autoprune.agents import make_agent
from autoprune.agents.kl import KLAgent, annealed, sample
from autoprune.search_spaces.budget import Budget
from autoprune.search_spaces.errors import UserError
from autoprune.search_spaces.projection import check_budget
from tests.agents.oracles import feasible, random_table
from tests.contracts.agent_contract import AgentContract, play
from tests.fakes import chain_space, tiny_space


class TestKLAgent(AgentContract):
    name = "kl"
    options = {"sweeps": 10}  # noqa: RUF012


@pytest.mark.parametrize("budget", ["macs=0.5x", "macs=0.4x,params=0.3x", "macs=1x"])
@pytest.mark.parametrize("share", [0.03, 0.2])
@pytest.mark.parametrize("cold_start", [False, True])
def test_the_distribution_is_that_of_full_enumeration(budget: str, share: float, cold_start: bool) -> None:
    """Chi-square over all candidates (those expected fewer than 10 times as one), independent chains."""
    space = chain_space([12, 20, 16], step=4)
    table = random_table(space, 3)
    every = feasible(space, Budget.parse(budget))
    losses = table.predict(every)
    temperature = share * float(losses.max() - losses.min())
    expected = np.exp(-(losses - losses.min()) / temperature)
    expected *= 4000 / expected.sum()
    start = np.zeros(3, np.int64) if cold_start else every[np.argmin(losses)]
    ends = sample(
        space,
        check_budget(space, Budget.parse(budget)),
        table,
        temperature,
        start=np.repeat(start[None], 4000, axis=0),
        num_steps=400,
        rng=np.random.default_rng(1),
    )
    keys = {tuple(levels): index for index, levels in enumerate(every.tolist())}
    counts = np.bincount([keys[tuple(end)] for end in ends.tolist()], minlength=len(every))
    rare = expected < 10
    observed = np.append(counts[~rare], counts[rare].sum())
    wanted = np.append(expected[~rare], expected[rare].sum())
    if wanted[-1] < 5:
        observed, wanted = np.append(observed[:-2], observed[-2:].sum()), np.append(wanted[:-2], wanted[-2:].sum())
    assert len(wanted) > 3
    assert chisquare(observed, wanted).pvalue > 0.001


def test_cooled_chains_have_the_distribution_of_the_last_temperature() -> None:
    space, budget = chain_space([12, 20, 16], step=4), Budget.parse("macs=0.4x")
    table = random_table(space, 3)
    losses = table.predict(feasible(space, budget))
    temperatures = float(np.ptp(losses)) * np.geomspace(0.5, 0.05, 5)
    ends = annealed(
        space,
        check_budget(space, budget),
        table,
        temperatures,
        start=np.zeros((4000, 3), np.int64),
        num_steps=40,
        rng=np.random.default_rng(0),
    )
    weights = np.exp(-losses / temperatures[-1])
    found = table.predict(ends)
    assert abs(found.mean() - losses @ weights / weights.sum()) < 4 * found.std() / np.sqrt(4000)


def test_the_colder_the_less_is_lost() -> None:
    space, budget = chain_space([64] * 8, step=4), Budget.parse("macs=0.4x")
    table = random_table(space, 0)
    agent = KLAgent(space, budget, seed=0, table=table)
    trials = play(agent, range(2, 62))
    losses = table.predict(np.array([trial.candidate for trial in trials[2:]]))
    temperatures = np.array([agent.temperature(rank) for rank in range(2, 60)])
    means = [losses[np.isclose(temperatures, t)].mean() for t in sorted(set(temperatures.round(12)))]
    assert max(means[:3]) < min(means[4:])
    assert means[0] < 1.5 * table.predict(np.array([trials[1].candidate]))[0]
    assert trials[0].candidate == agent.uniform()
    assert table.predict(np.array([trials[1].candidate]))[0] <= losses.min()
    assert len({trial.candidate for trial in trials}) >= 57


@pytest.mark.parametrize("options", [{"hot": 0.01}, {"cold": 0.0}, {"period": 1}, {"sweeps": 0}, {"hot": float("inf")}])
def test_bad_option_values(options: dict[str, float]) -> None:
    with pytest.raises(UserError, match=r"[aA]gent 'kl'"):
        make_agent("kl", tiny_space(), Budget.parse("macs=0.5x"), seed=0, **options)
