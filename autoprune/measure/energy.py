"""Energy of a run, from the counters of the processor package (RAPL, "running average power limit").

Linux shows them as files: ``/sys/class/powercap/intel-rapl:N/energy_uj`` counts microjoules of package N, on Intel and
AMD alike, and starts again at 0 after ``max_energy_range_uj``. They count the whole package: everything that runs on it
and what it takes when idle, but neither memory nor a graphics card.

Source: Linux kernel documentation, "Power Capping Framework" (Documentation/power/powercap/powercap.rst).
"""

from __future__ import annotations

import re
from pathlib import Path

from autoprune.runtimes import Runnable
from autoprune.search_spaces.errors import UserError

POWERCAP = Path("/sys/class/powercap")

MIN_RUNS = 5
MIN_MS = 300.0
"""A block of runs takes at least this long: counters move about once a millisecond, so that is 0.3 % of it."""


class EnergyMeter:
    """Reads the counters of all processor packages.

    Args:
        folder: where Linux shows them.

    Raises:
        UserError: the machine shows none, or this user may not read them.
    """

    def __init__(self, folder: Path = POWERCAP) -> None:
        domains = sorted(path for path in folder.glob("intel-rapl:*") if re.fullmatch(r"intel-rapl:\d+", path.name))
        self._packages = [path for path in domains if _read(path / "name").startswith("package")]
        if not self._packages:
            raise UserError(
                f"This machine does not show how much energy it takes: {folder} has no counter of a processor package. "
                "Measuring energy needs an Intel or AMD processor with RAPL, Linux with the module `intel_rapl_msr` "
                "loaded, and no virtual machine in between (most do not pass the counters on)."
            )
        self._ranges = [int(_read(path / "max_energy_range_uj")) for path in self._packages]
        self._counters()

    def millijoules(self, run: Runnable) -> float:
        """Energy of one run, from a block of at least `MIN_RUNS` runs and `MIN_MS`."""
        total, runs, ms = 0, 0, 0.0
        before = self._counters()
        while runs < MIN_RUNS or ms < MIN_MS:
            ms += run().wall
            runs += 1
            now = self._counters()
            # at most one wrap lies between two readings: a range lasts for minutes even at full power
            total += sum((new - old) % (size + 1) for new, old, size in zip(now, before, self._ranges, strict=True))
            before = now
        return total / runs / 1e3

    def _counters(self) -> list[int]:
        return [int(_read(path / "energy_uj")) for path in self._packages]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        return ""
    except PermissionError:
        raise UserError(
            f"The energy counter {path} may not be read by this user. Allow it until the next start of the machine: "
            f"sudo chmod a+r {path.parent.parent}/intel-rapl:*/energy_uj"
        ) from None
