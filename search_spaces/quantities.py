"""What can be limited: the names of costs, their units, and how what is typed becomes the cost and back.

What was typed is computed in decimals: 2.3M is 2300000 and 0.29x of 100 is 29, neither of which floats give.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from decimal import Decimal

from autoprune.search_spaces.errors import UserError, unknown

COUNT = {"": "1", "k": "1e3", "M": "1e6", "G": "1e9", "T": "1e12"}
_BYTES = {"B": "1", "kB": "1e3", "MB": "1e6", "GB": "1e9", "KiB": "1024", "MiB": "1048576", "GiB": "1073741824"}

WORST = "worst"
"""``latency@worst``: the largest share of the dense latency over all named devices."""


@dataclass(frozen=True, slots=True)
class Quantity:
    """How one quantity is typed and shown.

    Attributes:
        cost: its cost without the device, in the cost's own unit.
        units: what may be typed behind the number -> factor to the plain unit, which has factor 1.
        factor: from the plain unit to that of the cost; of a least value, the cost times what is typed.
        shown: the unit it is always shown in; None for the largest that fits.
        per_device: whether it is measured, on a device that can be named behind an ``@``.
        least: whether what is typed is a least value: so many per second, kept as milliseconds each at most.
        missing: what to do where a space lacks the cost.
    """

    cost: str
    units: Mapping[str, str]
    factor: str = "1"
    shown: str | None = None
    per_device: bool = False
    least: bool = False
    missing: str = ""

    def to_cost(self, typed: Decimal) -> float:
        """The cost that a number in the plain unit stands for."""
        if self.least:
            return float(Decimal(self.factor) / typed) if typed else math.inf
        return float(typed * Decimal(self.factor))

    def to_share(self, typed: Decimal) -> float:
        """The cost as a share of the dense model's; ``2x`` the throughput is half the milliseconds."""
        return replace(self, factor="1").to_cost(typed)

    def typed(self, cost: float, *, relative: bool = False) -> Decimal:
        """The shortest number in the plain unit that reads back as this cost, or share of it."""
        own = replace(self, factor="1") if relative else self
        factor = Decimal(own.factor)
        if not own.least:
            return Decimal(repr(cost)) / factor
        exact = factor / Decimal(cost) if cost else Decimal("inf")
        short = (Decimal(f"{exact:.{digits}e}") for digits in range(20))
        return next((number for number in short if own.to_cost(number) == cost), exact)

    def unit_of(self, number: float) -> str:
        """The unit in which a number in the plain unit is shown."""
        if self.shown is not None:
            return self.shown
        decimal = [unit for unit in self.units if "i" not in unit]  # MB, not MiB
        fitting = (unit for unit in decimal if float(self.units[unit]) <= max(abs(number), 1.0))
        return max(fitting, key=lambda unit: float(self.units[unit]))


_MEASURED = (
    "It is measured, not counted: `autoprune search` does so before the first trial, and space.add_cost({cost!r}, ...) "
    "takes a model of your own."
)
_METERED = (
    "It is measured where the machine has energy counters (RAPL) and lets them be read; space.add_cost({cost!r}, ...) "
    "takes a model of your own."
)

# By the name that is typed.
QUANTITIES = {
    "macs": Quantity("macs", COUNT),
    "flops": Quantity("macs", COUNT, factor="0.5"),
    "params": Quantity("params", COUNT),
    "memory": Quantity("memory", _BYTES),
    "size": Quantity("size", _BYTES),
    "latency": Quantity(
        "latency", {"us": "1e-3", "ms": "1", "s": "1e3"}, shown="ms", per_device=True, missing=_MEASURED
    ),
    "throughput": Quantity(
        "throughput", {"/s": "1"}, factor="1e3", shown="/s", per_device=True, least=True, missing=_MEASURED
    ),
    "energy": Quantity(
        "energy", {"uJ": "1e-3", "mJ": "1", "J": "1e3"}, shown="mJ", per_device=True, missing=_METERED
    ),
}  # fmt: skip


def quantity_of(name: str) -> Quantity:
    """The quantity of a cost, or of what was typed; costs that somebody added under another name are counts."""
    return QUANTITIES.get(name.partition("@")[0], Quantity(name, COUNT))


def is_measured(cost: str) -> bool:
    """Whether a cost is one that a trace cannot tell, by its name."""
    return quantity_of(cost).per_device


def parse_cost(name: str) -> tuple[str, str | None]:
    """Split the name of a cost into quantity and device: ``latency@phone`` is ("latency", "phone").

    Raises:
        UserError: an unknown quantity, a device that is missing, or one where none can matter.
    """
    quantity, at, device = name.lower().partition("@")
    if quantity not in QUANTITIES:
        raise unknown("budget", quantity, QUANTITIES)
    if not at:
        return quantity, None
    if not QUANTITIES[quantity].per_device:
        raise UserError(f"{quantity} is the same on every device, but got {name!r}: write {quantity} alone.")
    if not device or "@" in device:
        raise UserError(f"A device is named as in {quantity}@phone, but got {name!r}.")
    if device == WORST and quantity != "latency":
        raise UserError(f"Only latency can be limited on the worst device, but got {name!r}. Name each device.")
    return quantity, device
