from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoprune.search_spaces.budget import Budget, Limit, format_cost
from autoprune.search_spaces.errors import UserError
from autoprune.search_spaces.quantities import QUANTITIES, parse_cost

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
        ("size=5MB", "size", 5e6, False),
        ("size <= 0.4x", "size", 0.4, True),
        ("latency@phone=8ms", "latency@phone", 8, False),
        ("Latency@ONNX-runtime_2 <= 0.5x", "latency@onnx-runtime_2", 0.5, True),
        ("latency@worst=50%", "latency@worst", 0.5, True),
        ("throughput=500/s", "throughput", 2, False),  # milliseconds per sample
        ("throughput >= 2x", "throughput", 0.5, True),
        ("throughput=300%", "throughput", 1 / 3, True),
        ("throughput@phone>=1.5e3/S", "throughput@phone", 1000 / 1500, False),
        ("energy=50mJ", "energy", 50, False),
        ("energy@phone=1.5J", "energy@phone", 1500, False),
        ("energy=20uJ", "energy", 0.02, False),
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
        ("latency@=8ms", ["device", "latency@phone", "'latency@'"]),
        ("latency@a@b=8ms", ["device", "'latency@a@b'"]),
        ("late@phone=8ms", ["Unknown budget 'late'", "Did you mean 'latency'?"]),
        ("macs@phone=0.5x", ["macs is the same on every device", "'macs@phone'"]),
        ("latency@worst=8ms", ["latency@worst=0.5x", "latency@worst=8 ms"]),
        ("energy@worst=0.5x", ["Only latency", "'energy@worst'"]),
        ("macs>=0.5x", ["at most", "'macs>=0.5x'", "macs<="]),
        ("throughput<=500/s", ["at least", "'throughput<=500/s'", "throughput>="]),
        ("throughput=0.5x", ["at least 1x", "throughput=0.5x"]),
        ("throughput@phone=50%", ["at least 1x", "throughput@phone=0.5x"]),
        ("throughput=500", ["unit is missing", "/s, x"]),
        ("throughput=0/s", ["throughput", "above 0", "got 0."]),
        ("throughput=-5/s", ["above 0", "-5"]),
        ("throughput=1e999/s", ["finite"]),
        ("throughput=0x", ["above 0"]),
        ("energy=50", ["unit is missing", "uJ, mJ, J, x"]),
        ("size=5", ["unit is missing", "B, kB, MB"]),
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


@given(typed=st.integers(1, 10**9), dense=st.floats(1e-3, 1e6))
def test_a_throughput_is_met_exactly_where_it_is_typed_and_shown_as_typed(typed: int, dense: float) -> None:
    budget = Budget.parse(f"throughput={typed}/s")
    assert budget.resolve({"throughput": dense}) == {"throughput": 1000 / typed}
    assert str(budget) == f"throughput={typed}/s"
    (share,) = Budget.parse(f"throughput={typed}x").resolve({"throughput": dense}).values()
    assert share == pytest.approx(dense / typed, rel=1e-15)


@given(st.sampled_from(["throughput=300/s", "throughput=2.5x", "energy@a=7mJ", "flops=0.7x"]), st.floats(1e-6, 1e6))
def test_what_is_suggested_allows_what_it_was_suggested_for(text: str, cost: float) -> None:
    (limit,) = Budget.parse(text).limits
    dense = max(cost, 1.0)
    suggested = limit.allowing(cost, dense)
    assert Budget.parse(str(suggested)).limits == (suggested,)
    assert cost <= suggested.resolve(dense) * (1 + 1e-15)
    assert suggested.resolve(dense) <= cost * 1.0101  # three digits


NAMES = [*QUANTITIES, "latency@phone", "latency@a-b_2", "latency@worst", "throughput@phone", "energy@phone"]
LIMITS = st.builds(
    lambda name, value, relative: Limit(
        name.replace("flops", "macs"),
        value / 1e13 if relative or name == "latency@worst" else value,
        relative or name == "latency@worst",
        name if name == "flops" else "",
    ),
    name=st.sampled_from(NAMES),
    value=st.floats(1, 1e13),
    relative=st.booleans(),
)


@given(st.lists(LIMITS, min_size=1, max_size=4))
def test_a_budget_reads_back_as_it_was_written(limits: list[Limit]) -> None:
    budget = Budget(tuple(limits))
    assert Budget.parse(str(budget)) == budget


def test_limits_on_devices_are_costs_of_their_own() -> None:
    budget = Budget.parse("latency@phone=8ms, latency@board=0.5x, latency@phone=0.5x, latency@worst=0.4x")
    assert budget.costs == ("latency@phone", "latency@board", "latency@worst")
    dense = {"latency@phone": 20.0, "latency@board": 6.0, "latency@worst": 1.0}
    assert budget.resolve(dense) == {"latency@phone": 8, "latency@board": 3, "latency@worst": 0.4}


def test_parse_cost() -> None:
    assert parse_cost("latency@phone") == ("latency", "phone")
    assert parse_cost("throughput") == ("throughput", None)
    assert parse_cost("macs") == ("macs", None)
    with pytest.raises(UserError, match="same on every device"):
        parse_cost("size@phone")


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
        ("latency@phone", 8.249, "8.25 ms"),
        ("latency@worst", 0.4567, "0.457x"),
        ("throughput", 2, "500/s"),
        ("throughput@phone", 0.03, "33300/s"),
        ("energy", 12.345, "12.3 mJ"),
        ("size", 5_000_000, "5 MB"),
        ("weight", 2e6, "2M"),  # of somebody's own
    ],
)
def test_format_cost(cost: str, value: float, text: str) -> None:
    assert format_cost(cost, value) == text
