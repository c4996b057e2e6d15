from __future__ import annotations

import numpy as np
import pytest

from autoprune.agents.table import Table, given
from autoprune.search_spaces.budget import Budget
from autoprune.search_spaces.errors import UserError
from tests.fakes import chain_space, random_space, tiny_space


def test_predicts_the_sum_over_groups() -> None:
    table = Table([[2.0, 1.0, 0.0], [0.0], [0.5, 0.0]])
    assert table.predict(np.array([[0, 0, 0], [1, 0, 1], [2, 0, 1]])).tolist() == [2.5, 1.0, 0.0]


@pytest.mark.parametrize(
    "losses", [[0.0, 1.0], [1.0, 2.0, 0.0], [1.0, 0.5], [1.0, float("nan"), 0.0], [], [[1.0, 0.0]], [1.0, -1.0, 0.0]]
)
def test_refuses_what_is_no_table(losses: list[float]) -> None:
    with pytest.raises(UserError, match="of group 1"):
        Table([[1.0, 0.0], losses])


def test_measured_losses_become_monotone_with_the_dense_level_at_zero() -> None:
    table = Table.measured([[3.0, 1.0, 2.0, 0.1], [-0.1, -0.2], [0.5]])
    assert [each.tolist() for each in table.losses] == [[3.0, 1.5, 1.5, 0.0], [0.0, 0.0], [0.0]]
    with pytest.raises(UserError, match="finite loss per level"):
        Table.measured([[float("inf"), 0.0]])


def test_is_checked_against_the_space() -> None:
    table = Table.stand_in(tiny_space())
    assert given(table, tiny_space()) is table
    assert given(None, tiny_space()) is None
    with pytest.raises(UserError, match="table is of another space"):
        given(table, chain_space([20, 24]))
    with pytest.raises(UserError, match="takes a `Table`, but got str"):
        given("kl.npz", tiny_space())  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(5))
def test_the_stand_in_is_a_table_and_costs_what_the_macs_say(seed: int) -> None:
    space = random_space(seed, 8)
    table = Table.stand_in(space)
    table.check(space)
    smallest = table.predict(np.zeros((1, 8), np.int64))[0]
    assert 0 < smallest <= 8
    chain = chain_space([64, 64, 64], step=8, size=1)  # equal kernels: inner groups touch most MACs
    lost = [each[0] for each in Table.stand_in(chain).losses]
    assert lost[1] > lost[0]


def test_a_table_of_all_levels_prefers_near_uniform_candidates() -> None:
    space = chain_space([64] * 6, step=4)
    uniform = np.array([space.project([1.0] * 6, Budget.parse("macs=0.4x"))])
    random = np.array(
        [space.project(np.random.default_rng(i).random(6).tolist(), Budget.parse("macs=0.4x")) for i in range(20)]
    )
    table = Table.stand_in(space)
    assert table.predict(uniform)[0] < table.predict(random).min()
