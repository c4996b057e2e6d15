"""Limits on costs: parse what the user typed, resolve it against the dense model.

What can be limited: ``macs`` (multiply-adds; ``flops`` is read as 2 per MAC), ``params``, ``memory`` (peak activation
bytes), ``size`` (bytes of parameters and buffers), ``latency`` (milliseconds), ``energy`` (millijoules per inference)
and ``throughput`` (samples per second at least; its cost is the milliseconds per sample). A limit is absolute
(``latency=8ms``, ``params=2M``, ``throughput=500/s``) or relative to the dense model (``macs=0.5x``, ``macs=50%``,
``throughput=2x``). Upper and lower case mean the same.

Of what is measured, the device can be named: ``latency@phone=8ms`` limits the cost ``latency@phone``.
``latency@worst=0.5x`` limits the largest share of the dense latency over all named devices.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal, InvalidOperation

from autoprune.search_spaces.errors import UserError
from autoprune.search_spaces.quantities import COUNT, QUANTITIES, WORST, Quantity, parse_cost, quantity_of

_SHARES = {"x": "1", "%": "0.01"}
_LIMIT = re.compile(
    r"\s*(?P<name>[\w@-]+)\s*(?P<sign><=|>=|=)\s*(?P<number>[-+.\deE]+)\s*(?P<unit>[A-Za-z/%]*)\s*", re.ASCII
)


@dataclass(frozen=True, slots=True)
class Limit:
    """Cost `cost` may not exceed `value`: a share of the dense model where `relative`, else in the cost's own unit.

    `name` is what the user limited, where that is not the cost itself: ``flops`` for a limit kept in MACs.
    """

    cost: str
    value: float
    relative: bool
    name: str = ""

    @property
    def quantity(self) -> Quantity:
        """What the user limited."""
        return quantity_of(self.name or self.cost)

    def resolve(self, dense: float) -> float:
        """The absolute limit in the cost's own unit, given the dense model's cost."""
        if not self.relative:
            return self.value
        share = self.quantity.typed(self.value, relative=True)
        return float(Decimal(dense) / share if self.quantity.least else Decimal(dense) * share)

    def show(self, value: float) -> str:
        """A value of `cost` in the quantity that the user limited: 1M MACs are ``2M`` under a limit on FLOPs."""
        return format_cost(self.cost, 2 * value if self.name == "flops" else value)

    def allowing(self, value: float, dense: float) -> Limit:
        """The tightest limit of this kind that a cost of `value` keeps, with four digits at most."""
        quantity, wanted = self.quantity, value / dense if self.relative else value
        if not quantity.least:
            return replace(self, value=float(_round(Decimal(wanted), ROUND_CEILING)))
        typed = _round(quantity.typed(wanted, relative=self.relative), ROUND_FLOOR)
        return replace(self, value=quantity.to_share(typed) if self.relative else quantity.to_cost(typed))

    def __str__(self) -> str:
        return f"{self.name or self.cost}={format_limit(self)}"


@dataclass(frozen=True, slots=True)
class Budget:
    """Limits that every candidate keeps, several at once. ``Budget.parse(str(budget)) == budget``.

    Raises:
        UserError: no limit, an unknown cost or unit, a number that is not positive and finite, a share above 1.
    """

    limits: tuple[Limit, ...]

    def __post_init__(self) -> None:
        if not self.limits:
            raise UserError("A budget needs at least one limit, for example macs=0.5x or latency=8ms.")
        for limit in self.limits:
            name = limit.name or limit.cost
            if not (limit.value > 0 and math.isfinite(limit.value)):
                typed = limit.quantity.typed(limit.value, relative=limit.relative)
                raise UserError(f"The budget for {name} must be a finite number above 0, but got {float(typed):g}.")
            if limit.relative and limit.value > 1 and limit.quantity.least:
                raise UserError(f"A relative {name} is at least 1x, that of the dense model, but got {limit}.")
            if limit.relative and limit.value > 1:
                hint = f" Write {limit.value:g} % as {limit.value / 100:g}x." if 2 <= limit.value <= 100 else ""
                raise UserError(f"A relative budget is at most 1x, but got {limit}.{hint}")
            if limit.cost.endswith(f"@{WORST}") and not limit.relative:
                raise UserError(f"{name} is a share of each device's dense latency: write {name}=0.5x, not {limit}.")

    @classmethod
    def parse(cls, texts: str | Iterable[str]) -> Budget:
        """Read ``"macs=0.5x"``, ``"macs=0.5x, latency=8ms"`` or ``["macs=0.5x", "latency=8ms", "params<=2M"]``."""
        parts = [texts] if isinstance(texts, str) else texts
        return cls(tuple(_parse(part) for text in parts for part in text.split(",")))

    @property
    def costs(self) -> tuple[str, ...]:
        """Names of the limited costs, each once, in the order given."""
        return tuple(dict.fromkeys(limit.cost for limit in self.limits))

    def scaled(self, share: float) -> Budget:
        """The same budget with every limit at `share` of its value, 0 < share <= 1."""
        if not 0 < share <= 1:
            raise UserError(f"A budget can be scaled by a share above 0 and up to 1, but got {share!r}.")
        return replace(self, limits=tuple(replace(limit, value=limit.value * share) for limit in self.limits))

    def resolve(self, dense: Mapping[str, float]) -> dict[str, float]:
        """Absolute upper limits by cost name, given the dense model's costs; of two limits on one cost the lower.

        Absolute limits need no cost of the dense model.
        """
        absolute: dict[str, float] = {}
        for limit in self.limits:
            value = limit.resolve(float(dense[limit.cost])) if limit.relative else limit.value
            absolute[limit.cost] = min(value, absolute.get(limit.cost, math.inf))
        return absolute

    def __str__(self) -> str:
        return ", ".join(str(limit) for limit in self.limits)


def format_limit(limit: Limit) -> str:
    """``0.5x``, ``8 ms``, ``2M``: as a user would type it, with every digit, so that it reads back the same."""
    quantity = limit.quantity
    number = quantity.typed(limit.value, relative=limit.relative)
    if limit.relative:
        return f"{_plain(number)}x"
    unit = quantity.unit_of(float(number))
    return f"{_plain(number / Decimal(quantity.units[unit]))}{_space(quantity)}{unit}"


def format_cost(cost: str, value: float) -> str:
    """A cost with its unit, three significant digits: ``1.81G``, ``8.2 ms``, ``3.1 MB``, ``500/s``."""
    quantity = quantity_of(cost)
    if quantity.least:
        value = float(quantity.factor) / value if value else math.inf
    value = float(f"{value:.3g}")  # before the unit is chosen: 999950 is 1M, not 1000k
    if cost.endswith(f"@{WORST}"):
        return f"{value:.12g}x"
    unit = quantity.unit_of(value)
    return f"{value / float(quantity.units[unit]):.12g}{_space(quantity)}{unit}"


def _space(quantity: Quantity) -> str:
    return "" if quantity.units is COUNT or quantity.least else " "


def _round(number: Decimal, rounding: str) -> Decimal:
    """Three significant digits, in decimals: a limit that is suggested must really be enough."""
    return number.quantize(Decimal((0, (1,), number.adjusted() - 2)), rounding=rounding)


def _plain(number: Decimal) -> str:
    return f"{number.normalize():f}"


def _parse(text: str) -> Limit:
    text = text.strip()
    match = _LIMIT.fullmatch(text)
    if match is None:
        raise UserError(f"Cannot read the budget {text!r}: write NAME=VALUE, for example macs=0.5x or latency=8ms.")
    name, number, unit = match["name"].lower(), match["number"], match["unit"].lower()
    typed, device = parse_cost(name)
    quantity = QUANTITIES[typed]
    cost = quantity.cost if device is None else f"{quantity.cost}@{device}"
    if match["sign"] == ("<=" if quantity.least else ">="):
        side, right = ("least", ">=") if quantity.least else ("most", "<=")
        raise UserError(f"A budget for {typed} is what it must be at {side}, but got {text!r}. Write {name}{right}...")
    try:
        value = Decimal(number)
    except InvalidOperation:
        raise UserError(f"Cannot read the number {number!r} in the budget {text!r}.") from None
    alias = "" if name == cost else name
    if unit in _SHARES:
        return Limit(cost, quantity.to_share(value * Decimal(_SHARES[unit])), relative=True, name=alias)
    factors = {known.lower(): each for known, each in quantity.units.items()}
    if unit not in factors:
        allowed = ", ".join([*filter(None, quantity.units), *_SHARES])
        what = f"Unknown unit {match['unit']!r} in" if unit else "A unit is missing in"
        raise UserError(f"{what} the budget {text!r}. Units of {typed}: {allowed} (x: share of the dense model's).")
    if not unit and 0 < value < 1:
        raise UserError(f"The budget {text!r} has no unit. Write {name}={number}x for a share of the dense model.")
    return Limit(cost, quantity.to_cost(value * Decimal(factors[unit])), relative=False, name=alias)
