"""Upper limits on costs: parse what the user typed, resolve it against the dense model.

Cost names: ``macs`` (multiply-adds; ``flops`` is read as 2 per MAC), ``params``, ``memory`` (peak activation
bytes), ``latency`` (milliseconds). A limit is absolute (``latency=8ms``, ``params=2M``) or relative to the dense
model (``macs=0.5x``, ``macs=50%``). Upper and lower case mean the same.

What was typed is computed in decimals: 2.3M is 2300000 and 0.29x of 100 is 29, neither of which floats give.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal, InvalidOperation

from autoprune.search_spaces.errors import UserError, unknown

_COUNT = {"": "1", "k": "1e3", "M": "1e6", "G": "1e9", "T": "1e12"}
_BYTES = {"B": "1", "kB": "1e3", "MB": "1e6", "GB": "1e9", "KiB": "1024", "MiB": "1048576", "GiB": "1073741824"}
_TIME_MS = {"us": "1e-3", "ms": "1", "s": "1e3"}
# typed name -> (cost name, units, factor to the cost's own unit)
_COSTS: dict[str, tuple[str, dict[str, str], str]] = {
    "macs": ("macs", _COUNT, "1"),
    "flops": ("macs", _COUNT, "0.5"),
    "params": ("params", _COUNT, "1"),
    "memory": ("memory", _BYTES, "1"),
    "latency": ("latency", _TIME_MS, "1"),
}
_SHARES = {"x": "1", "%": "0.01"}
_LIMIT = re.compile(r"\s*(?P<name>\w+)\s*(?:<=|=)\s*(?P<number>[-+.\deE]+)\s*(?P<unit>[A-Za-z%]*)\s*")


@dataclass(frozen=True, slots=True)
class Limit:
    """Cost `cost` may not exceed `value`: a share of the dense model where `relative`, else in the cost's own unit.

    `name` is what the user limited, where that is not the cost itself: ``flops`` for a limit kept in MACs.
    """

    cost: str
    value: float
    relative: bool
    name: str = ""

    def show(self, value: float) -> str:
        """A value of `cost` in the quantity that the user limited: 1M MACs are ``2M`` under a limit on FLOPs."""
        return format_cost(self.cost, 2 * value if self.name == "flops" else value)

    def __str__(self) -> str:
        return f"{self.name or self.cost}={format_limit(self)}"


@dataclass(frozen=True, slots=True)
class Budget:
    """Upper limits that every candidate keeps, several at once. ``Budget.parse(str(budget)) == budget``.

    Raises:
        UserError: no limit, an unknown cost or unit, a number that is not positive and finite, a share above 1.
    """

    limits: tuple[Limit, ...]

    def __post_init__(self) -> None:
        if not self.limits:
            raise UserError("A budget needs at least one limit, for example macs=0.5x or latency=8ms.")
        for limit in self.limits:
            if not (limit.value > 0 and math.isfinite(limit.value)):
                name, value = limit.name or limit.cost, 2 * limit.value if limit.name == "flops" else limit.value
                raise UserError(f"The budget for {name} must be a finite number above 0, but got {value:g}.")
            if limit.relative and limit.value > 1:
                hint = f" Write {limit.value:g} % as {limit.value / 100:g}x." if 2 <= limit.value <= 100 else ""
                raise UserError(f"A relative budget is at most 1x, but got {limit}.{hint}")

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
        """Absolute upper limits by cost name, given the dense model's costs; of two limits on one cost the lower."""
        absolute: dict[str, float] = {}
        for limit in self.limits:
            value = limit.value
            if limit.relative:
                value = float(Decimal(repr(limit.value)) * Decimal(float(dense[limit.cost])))
            absolute[limit.cost] = min(value, absolute.get(limit.cost, math.inf))
        return absolute

    def __str__(self) -> str:
        return ", ".join(str(limit) for limit in self.limits)


def format_limit(limit: Limit) -> str:
    """``0.5x``, ``8 ms``, ``2M``: as a user would type it, with every digit, so that it reads back the same."""
    if limit.relative:
        return f"{_plain(Decimal(repr(limit.value)))}x"
    _, units, factor = _COSTS.get(limit.name or limit.cost, ("", _COUNT, "1"))
    number = Decimal(repr(limit.value)) / Decimal(factor)
    unit = "ms" if units is _TIME_MS else _largest_unit(float(number), units)
    return f"{_plain(number / Decimal(units[unit]))}{'' if units is _COUNT else ' '}{unit}"


def format_cost(cost: str, value: float) -> str:
    """A cost with its unit, three significant digits: ``1.81G``, ``8.2 ms``, ``3.1 MB``."""
    value = float(f"{value:.3g}")  # before the unit is chosen: 999950 is 1M, not 1000k
    if cost == "latency":
        return f"{value:.12g} ms"
    units = _BYTES if cost == "memory" else _COUNT
    unit = _largest_unit(value, units)
    return f"{value / float(units[unit]):.12g}{' ' if cost == 'memory' else ''}{unit}"


def _largest_unit(value: float, units: Mapping[str, str]) -> str:
    decimal = [unit for unit in units if "i" not in unit]  # MB, not MiB
    return max((unit for unit in decimal if float(units[unit]) <= max(abs(value), 1.0)), key=lambda u: float(units[u]))


def _plain(number: Decimal) -> str:
    return f"{number.normalize():f}"


def _parse(text: str) -> Limit:
    text = text.strip()
    match = _LIMIT.fullmatch(text)
    if match is None:
        raise UserError(f"Cannot read the budget {text!r}: write NAME=VALUE, for example macs=0.5x or latency=8ms.")
    name, number, unit = match["name"].lower(), match["number"], match["unit"].lower()
    if name not in _COSTS:
        raise unknown("budget", match["name"], _COSTS)
    cost, units, factor = _COSTS[name]
    try:
        value = Decimal(number)
    except InvalidOperation:
        raise UserError(f"Cannot read the number {number!r} in the budget {text!r}.") from None
    typed = "" if name == cost else name
    if unit in _SHARES:
        return Limit(cost, float(value * Decimal(_SHARES[unit])), relative=True, name=typed)
    factors = {known.lower(): each for known, each in units.items()}
    allowed = ", ".join([*filter(None, units), *_SHARES])
    if unit not in factors:
        what = f"Unknown unit {match['unit']!r} in" if unit else "A unit is missing in"
        raise UserError(f"{what} the budget {text!r}. Units of {name}: {allowed} (x: share of the dense model).")
    if not unit and 0 < value < 1:
        raise UserError(f"The budget {text!r} has no unit. Write {name}={number}x for a share of the dense model.")
    return Limit(cost, float(value * Decimal(factors[unit]) * Decimal(factor)), relative=False, name=typed)
