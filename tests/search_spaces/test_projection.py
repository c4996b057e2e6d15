from __future__ import annotations

import math
import re
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from autoprune.search_spaces.budget import Budget, Limit
from autoprune.search_spaces.errors import UserError
from autoprune.search_spaces.projection import check_budget, is_feasible, project, uniform_line
from autoprune.search_spaces.types import Candidate, FloatArray, IntArray
from tests.fakes import FakeSpace, chain_space, random_space, tiny_space

SPACES = st.builds(random_space, st.integers(0, 10**6), st.integers(1, 7))
SHARES = st.dictionaries(st.sampled_from(["macs", "params", "memory"]), st.floats(0.02, 1.0), min_size=1)


@st.composite
def cases(draw: st.DrawFn) -> tuple[FakeSpace, list[float], Budget]:
    """A space, wishes (often equal, to have ties) and a budget that the smallest subnet fits."""
    space = draw(SPACES)
    wish = st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.25, 0.5, 1.0]))
    wishes = draw(st.lists(wish, min_size=len(space.groups), max_size=len(space.groups)))
    budget = Budget(tuple(Limit(cost, share, relative=True) for cost, share in draw(SHARES).items()))
    assume(is_feasible(space, space.smallest, budget))
    return space, wishes, budget


def raised(space: FakeSpace, candidate: Candidate) -> list[Candidate]:
    """Every candidate one level above the given one."""
    return [
        (*candidate[:group], level + 1, *candidate[group + 1 :])
        for group, level in enumerate(candidate)
        if level + 1 < len(space.groups[group].levels)
    ]


def by_the_book(space: FakeSpace, wishes: Sequence[float], budget: Budget) -> Candidate:
    """What the module says it does, one step at a time and nothing clever."""
    thresholds = [
        [(below + above) / (2 * group.num_units) - wish for below, above in pairwise(group.levels)]
        for group, wish in zip(space.groups, wishes, strict=True)
    ]
    chosen = space.smallest
    for shift in sorted({threshold for row in thresholds for threshold in row}):
        above_shift = tuple(sum(threshold <= shift for threshold in row) for row in thresholds)
        if is_feasible(space, above_shift, budget):
            chosen = above_shift
    while True:
        fitting = [
            (thresholds[group][chosen[group]], group, up)
            for up in raised(space, chosen)
            if is_feasible(space, up, budget)
            for group in [next(group for group, level in enumerate(up) if level != chosen[group])]
        ]
        if not fitting:
            return chosen
        chosen = min(fitting)[2]


@given(cases())
def test_fits_and_is_tight(case: tuple[FakeSpace, list[float], Budget]) -> None:
    space, wishes, budget = case
    candidate = project(space, wishes, budget)
    assert is_feasible(space, candidate, budget)
    assert not any(is_feasible(space, up, budget) for up in raised(space, candidate))
    assert all(type(level) is int for level in candidate)


@given(cases())
def test_equals_the_definition(case: tuple[FakeSpace, list[float], Budget]) -> None:
    space, wishes, budget = case
    assert project(space, wishes, budget) == by_the_book(space, wishes, budget)


@given(cases(), st.sampled_from([0.25, 0.5]))
def test_a_common_shift_of_all_wishes_changes_nothing(case: tuple[FakeSpace, list[float], Budget], by: float) -> None:
    space, wishes, budget = case
    coarse = [round(wish * 32) / 64 for wish in wishes]  # at most 0.5, and exact in floats
    assert project(space, coarse, budget) == project(space, [wish + by for wish in coarse], budget)


@given(SPACES, st.data())
def test_a_budget_for_all_of_it_gives_the_dense_model(space: FakeSpace, data: st.DataObject) -> None:
    wishes = data.draw(st.lists(st.floats(0, 1), min_size=len(space.groups), max_size=len(space.groups)))
    assert project(space, wishes, Budget.parse(["macs=1x", "params=1x", "memory=1x"])) == space.dense


@given(st.integers(0, 10**6), st.floats(0.01, 1.0), st.lists(st.floats(0, 1), min_size=5, max_size=5))
def test_a_cost_that_falls_somewhere_is_never_exceeded(seed: int, share: float, wishes: list[float]) -> None:
    """A predicted latency may be lower for more units: aligned widths run faster."""
    space = tiny_space(latency=False)
    bumps = np.random.default_rng(seed).uniform(0.5, 2.0, (5, 64))

    def latency_ms(units: IntArray) -> FloatArray:
        bumped: FloatArray = (units * bumps[np.arange(5), units]).sum(axis=1)
        return bumped

    space.more_costs["latency"] = latency_ms
    budget = Budget((Limit("latency", share, relative=True), Limit("macs", 0.8, relative=True)))
    assume(is_feasible(space, space.smallest, budget))
    candidate = project(space, wishes, budget)
    assert is_feasible(space, candidate, budget)
    assert not any(is_feasible(space, up, budget) for up in raised(space, candidate))


def test_rounds_to_the_nearest_level_of_two_the_smaller() -> None:
    """Groups of 8 with levels 4 and 8: 6 of 8 lies in the middle."""
    space = chain_space([8, 8], step=4)
    budget = Budget.parse(f"params={int(space.cost_dict((0, 1))['params'])}")
    assert project(space, [0.5, 0.6], budget) == (0, 1)  # (1, 0) costs more here
    assert [tuple(c) for c in uniform_line(space, Budget.parse("params=1x")).tolist()] == [(0, 0), (1, 1)]


def test_the_higher_wish_keeps_more_of_two_equal_groups() -> None:
    space = random_space(0, 1)
    space = FakeSpace(space.groups * 2, ())
    space.more_costs["latency"] = lambda units: units.sum(axis=1).astype(np.float64)
    num_units = space.groups[0].num_units
    kept = space.units(np.array([project(space, [0.2, 0.7], Budget.parse("latency=0.6x"))]))[0] / num_units
    assert kept[1] - kept[0] == pytest.approx(0.5, abs=2 * 7 / num_units)  # steps of at most 7, rounded twice
    equal = project(space, [0.5, 0.5], Budget.parse("latency=0.6x"))
    assert equal[0] >= equal[1]  # ties go to the first group


def test_what_rounding_left_is_given_to_groups_that_still_fit() -> None:
    space = tiny_space()
    budget = Budget.parse("macs=0.5x")
    fitting = uniform_line(space, budget)
    filled = np.array(project(space, [1.0] * 5, budget))
    assert (filled >= fitting[-1]).all()
    assert (filled > fitting[-1]).any()


def test_uniform_line_is_every_uniform_candidate_that_fits() -> None:
    space = tiny_space()
    budget = Budget.parse(["macs=0.5x", "latency=0.9x"])
    line = [tuple(candidate) for candidate in uniform_line(space, budget).tolist()]
    assert line[0] == space.smallest
    ratios = np.linspace(0, 1, 5001)[1::2]  # steps of 0.0004 find every rounding
    rounded = dict.fromkeys(space.candidate(float(ratio)) for ratio in ratios)
    assert line == [candidate for candidate in rounded if is_feasible(space, candidate, budget)]


def test_works_where_nothing_can_be_cut() -> None:
    space = chain_space([4, 4], step=4)
    assert space.dense == (0, 0)
    assert project(space, [0.1, 0.9], Budget.parse("macs=1x")) == (0, 0)


def test_sixty_groups_take_few_calls_of_the_costs() -> None:
    space = random_space(0, 60, step=8)
    rows: list[int] = []

    def latency_ms(units: IntArray) -> FloatArray:
        rows.append(len(units))
        total: FloatArray = units.sum(axis=1).astype(np.float64)
        return total

    space.more_costs["latency"] = latency_ms
    budget = Budget.parse(["macs=0.5x", "params=0.6x", "latency=0.9x"])
    for seed in range(5):
        rows.clear()
        project(space, np.random.default_rng(seed).random(60), budget)
        assert len(rows) < 50
        assert max(rows) <= 60


@given(SPACES, SHARES)
def test_an_infeasible_budget_says_what_would_do(space: FakeSpace, shares: dict[str, float]) -> None:
    budget = Budget(tuple(Limit(cost, share / 20, relative=True) for cost, share in shares.items()))
    smallest, dense = space.cost_dict(space.smallest), space.cost_dict(space.dense)
    over = [limit for limit in budget.limits if smallest[limit.cost] > limit.value * dense[limit.cost]]
    assume(over)
    with pytest.raises(UserError, match="No subnet fits") as caught:
        project(space, [1.0] * len(space.groups), budget)
    suggested = re.findall(r"use (\S+) or more", str(caught.value))
    assert [text.partition("=")[0] for text in suggested] == [limit.cost for limit in over]
    check_budget(space, Budget.parse(suggested))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "macs=0.01x",
            ["macs=0.01x allows 23.9k", "costs 85.3k (0.0357x of the dense model)", "use macs=0.0358x or more"],
        ),
        ("flops=20k", ["flops=20k allows 20k", "costs 171k (0.0357x", "use flops=170.6k or more"]),
        ("latency=0.5ms", ["latency=0.5 ms allows 0.5 ms", "costs 1.22 ms", "use latency=1.23 ms or more"]),
        ("throughput=900/s", ["asks for 900/s", "reaches 820/s (2.44x of the dense", "use throughput=819/s or less"]),
        ("throughput=2.5x", ["throughput=2.5x asks for 839/s", "reaches 820/s", "use throughput=2.44x or less"]),
    ],
)
def test_infeasible_budget_in_the_terms_of_the_user(text: str, words: list[str]) -> None:
    space = tiny_space()
    space.more_costs["throughput"] = space.more_costs["latency"]
    with pytest.raises(UserError) as caught:
        check_budget(space, Budget.parse([text, "params=1x"]))
    for word in words:
        assert word in str(caught.value)
    assert "params" not in str(caught.value)


def test_a_cost_that_the_space_cannot_tell() -> None:
    budget = Budget.parse("latency=8ms")
    for call in (lambda s: check_budget(s, budget), lambda s: project(s, [1.0] * 5, budget)):
        with pytest.raises(UserError, match=r"latency.*macs, params, memory\. It is measured.*add_cost\(.latency."):
            call(tiny_space(latency=False))
    assert is_feasible(tiny_space(), tiny_space().dense, budget)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -0.1, 1.1])
def test_a_wish_outside_zero_to_one(bad: float) -> None:
    with pytest.raises(UserError, match=r"in \[0, 1\].*conv2"):
        project(tiny_space(), [0.5, 0.5, bad, 0.5, 0.5], Budget.parse("macs=0.5x"))


@pytest.mark.parametrize("wishes", [[], [0.5] * 4, [0.5] * 6, [[0.5] * 5]])
def test_wishes_of_a_wrong_number(wishes: list[float]) -> None:
    with pytest.raises(UserError, match="one keep ratio per group, 5"):
        project(tiny_space(), wishes, Budget.parse("macs=0.5x"))
