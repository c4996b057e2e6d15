from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoprune.search_spaces.budget import Budget, Limit, format_cost
from autoprune.search_spaces.errors import UserError

DENSE = {"macs": 100.0, "params": 1000.0, "memory": 4096.0, "latency": 12.5}


@pytest.mark.parametrize(
    ("text", "cost", "value", "relative"),
    [
        ("macs=0.5x", "macs", 0.5, True),
        ("macs=50%", "macs", 0.5, True),
        ("MACs <= 0.5X", "macs", 0.5, True),
        ("params<=2.3M", "params", 2300000, False),  # in floats 2.3 * 1e6 is 2299999.9999999995
        ("params=2.3m", "params", 2300000, False),
        ("params=1234", "params", 1234, False),
        ("flops=1.8G", "macs", 0.9e9, False),
        ("flops=0.5x", "macs", 0.5, True),
        ("latency=8ms", "latency", 8, False),
        ("latency = 250 us", "latency", 0.25, False),
        ("latency=1.5s", "latency", 1500, False),
        ("memory=3MiB", "memory", 3 * 2**20, False),
        ("memory=2.5e3kB", "memory", 2.5e6, False),
    ],
)
def test_parse(text: str, cost: str, value: float, relative: bool) -> None:
    (limit,) = Budget.parse(text).limits
    assert (limit.cost, limit.value, limit.relative) == (cost, value, relative)


def test_several_limits_as_a_list_or_in_one_text() -> None:
    together = Budget.parse(["macs=0.5x", "latency=8ms", "macs=1G"])
    assert together == Budget.parse("macs=0.5x, latency=8ms,macs=1G")
    assert together.costs == ("macs", "latency")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["Cannot read", "macs=0.5x"]),
        ("macs", ["Cannot read", "'macs'"]),
        ("macs<0.5x", ["Cannot read"]),
        ("macs=--1", ["number '--1'"]),
        ("macs=1e99999999999999999999", ["number"]),
        ("mac=0.5x", ["Unknown budget 'mac'", "Did you mean 'macs'?"]),
        ("latency=8", ["unit is missing", "us, ms, s, x"]),
        ("latency=8min", ["Unknown unit 'min'", "us, ms, s, x"]),
        ("params=2MB", ["Unknown unit 'MB'", "k, M, G, T, x"]),
        ("macs=0.5", ["no unit", "macs=0.5x"]),
        ("macs=0x", ["above 0"]),
        ("flops=-3G", ["flops", "above 0", "-3e+09"]),
        ("macs=1e999", ["finite"]),
        ("macs=50x", ["at most 1x", "0.5x"]),
        ("flops=1.5x", ["flops=1.5x"]),
    ],
)
def test_bad_text_says_the_rule_and_what_was_given(text: str, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        Budget.parse(text)
    for word in words:
        assert word in str(caught.value)


def test_a_budget_needs_a_limit() -> None:
    with pytest.raises(UserError, match="at least one limit"):
        Budget.parse([])


def test_flops_are_two_per_mac_and_shown_as_flops() -> None:
    budget = Budget.parse("flops=1.8G")
    assert budget.resolve(DENSE) == {"macs": 0.9e9}
    assert str(budget) == "flops=1.8G"
    assert budget.limits[0].show(0.45e9) == "900M"


def test_resolve_takes_the_lower_of_two_limits_and_computes_in_decimals() -> None:
    assert Budget.parse(["params=2M", "params=0.5x"]).resolve(DENSE) == {"params": 500}
    assert Budget.parse(["params=200", "params=0.5x"]).resolve(DENSE) == {"params": 200}
    assert Budget.parse("macs=0.29x").resolve(DENSE) == {"macs": 29}  # in floats 0.29 * 100 < 29
    assert Budget.parse("latency=1x").resolve({"latency": 0.1 + 0.2}) == {"latency": 0.1 + 0.2}


@given(share=st.integers(1, 1000), dense=st.integers(1, 10**13))
def test_a_share_of_the_dense_model_is_met_by_exactly_that_share(share: int, dense: int) -> None:
    limit = Budget((Limit("macs", share / 1000, relative=True),)).resolve({"macs": float(dense)})["macs"]
    assert limit == share * dense / 1000  # integers, and one rounding


def test_scaled() -> None:
    budget = Budget.parse(["macs=0.5x", "latency=8ms"]).scaled(0.5)
    assert budget.resolve(DENSE) == {"macs": 25, "latency": 4}
    for share in (0.0, 1.5, math.nan):
        with pytest.raises(UserError, match="share"):
            budget.scaled(share)


LIMITS = st.builds(
    lambda name, value, relative: Limit(
        "macs" if name == "flops" else name,
        value / 1e13 if relative else value,
        relative,
        name if name == "flops" else "",
    ),
    name=st.sampled_from(["macs", "flops", "params", "memory", "latency"]),
    value=st.floats(1, 1e13),
    relative=st.booleans(),
)


@given(st.lists(LIMITS, min_size=1, max_size=4))
def test_a_budget_reads_back_as_it_was_written(limits: list[Limit]) -> None:
    budget = Budget(tuple(limits))
    assert Budget.parse(str(budget)) == budget


@pytest.mark.parametrize(
    ("cost", "value", "text"),
    [
        ("macs", 1814073344, "1.81G"),
        ("macs", 999_950, "1M"),
        ("macs", 999.4, "999"),
        ("params", 0, "0"),
        ("params", 1.234e15, "1230T"),
        ("memory", 3_100_000, "3.1 MB"),
        ("memory", 12, "12 B"),
        ("latency", 8.249, "8.25 ms"),
        ("latency", 12345, "12300 ms"),
    ],
)
def test_format_cost(cost: str, value: float, text: str) -> None:
    assert format_cost(cost, value) == text
