from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna._hypervolume import compute_hypervolume

from autoprune.agents.base import Trial
from autoprune.agents.dominance import crowding, leaders, non_dominated, objective_array
from autoprune.front import choose, front, hypervolume, knee

rows = st.integers(1, 3).flatmap(
    lambda width: st.lists(st.lists(st.integers(0, 5), min_size=width, max_size=width), min_size=1, max_size=12)
)


def trial(number: int, score: float, macs: float, state: str = "complete") -> Trial:
    return Trial(
        number=number,
        candidate=(number,),
        state=state,  # type: ignore[arg-type]
        score=score if state == "complete" else None,
        costs={"macs": macs, "params": 1.0},
    )


@given(rows)
def test_non_dominated_by_definition(values: list[list[int]]) -> None:
    objectives = np.array(values, dtype=float)

    def dominates(a: list[int], b: list[int]) -> bool:
        return all(x <= y for x, y in zip(a, b, strict=True)) and a != b

    expected = [
        i
        for i, row in enumerate(values)
        if not any(dominates(other, row) for other in values) and row not in values[:i]
    ]
    assert non_dominated(objectives).tolist() == expected


def test_leaders_by_hand() -> None:
    #               front          dominated by the first one       twin of the first
    rows = np.array([[0, 9], [4, 4], [5, 3], [9, 0], [1, 9], [5, 5], [0, 9]], dtype=float)
    assert crowding(rows[:4]) == pytest.approx([np.inf, 5 / 9 + 6 / 9, 5 / 9 + 4 / 9, np.inf])
    # the ends first, then the least crowded; what the first front dominates comes after it
    assert leaders(rows, 9).tolist() == [0, 3, 1, 2, 5, 6, 4]
    assert leaders(rows, 3).tolist() == [0, 3, 1]
    assert leaders(rows[:, 1:], 3).tolist() == [3, 2, 1]


@given(rows)
def test_hypervolume_agrees_with_optuna(values: list[list[int]]) -> None:
    objectives = np.array(values, dtype=float)
    reference = np.full(objectives.shape[1], 4.0)
    inside = objectives[(objectives < reference).all(axis=1)]
    expected = compute_hypervolume(inside, reference) if len(inside) else 0.0
    assert hypervolume(objectives, reference) == pytest.approx(expected)


def test_front_keeps_complete_and_sorts_by_score() -> None:
    trials = [trial(0, 0.8, 50), trial(1, 0.9, 70), trial(2, 0.7, 60), trial(3, 0, 1, "failed"), trial(4, 0.9, 70)]
    assert [t.number for t in front(trials, ["macs"])] == [1, 0]
    assert front([], ["macs"]) == []


def test_choice_holds_the_best_and_good_trades() -> None:
    trials = [trial(0, 0.9, 100), trial(1, 0.899, 99.9), trial(2, 0.88, 60), trial(3, 0.85, 30), trial(4, 0.1, 29)]
    assert [t.number for t in choose(trials, ["macs"], 3)] == [0, 2, 3]
    assert choose(trials, ["macs"], 20) == trials
    assert choose(trials, ["macs"], 1) == trials[:1]


def test_knee_is_where_the_front_bends() -> None:
    trials = [trial(0, 0.9, 100), trial(1, 0.89, 40), trial(2, 0.5, 30)]
    assert knee(objective_array(trials, ["macs"])) == 1
