"""docs/coverage.md from the records: failures are shown as failures, and what was not run as such."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.zoo import records
from tests.zoo.case import Case
from tests.zoo.records import Record

_HEAD = """\
# Coverage

Written by `python -m tests.zoo` (`make test-zoo`); do not edit. Every network is built with random weights, norms and
statistics, traced, and cut to keep ratios 0.9, 0.5 and 0.1 of every group at once and to two random mixtures. It passes
if, for each of them:

- the subnet equals the dense network with the same units silenced, to 1e-5 relative in float32; where rounding in a
  deep random network is larger than that, to 1e-9 in float64, and the status says so;
- it runs in evaluation and in training mode, with outputs of the same structure and shapes as the dense network's, and
  backward gives finite gradients;
- names, flags, dtypes, hooks and ties are kept, and the dense network stays as it was, bit for bit;
- MACs and parameters are what `torch.utils.flop_counter` and a count of the real subnet give.

*groups* and *units*: what can be cut. *frozen*: units that stay, the main reasons with the units each keeps.
*smallest*: MACs of the smallest candidate, as a share of the dense network's. *trace*, *slice*: seconds on one thread
of a shared machine, at small images. *error*: the largest relative error of the candidates.
"""


def page(every: Mapping[str, Mapping[str, Case]], folder: Path) -> str:
    """The whole page, libraries and networks in a fixed order."""
    parts = [_HEAD]
    for library, cases in every.items():
        found = {name: records.load(folder, library, name) for name in cases}
        if any(found.values()):
            parts.append("\n".join(_library(library, cases, found)) + "\n")
    return "\n".join(parts)


def _library(library: str, cases: Mapping[str, Case], found: Mapping[str, Record | None]) -> Iterator[str]:
    versions = sorted({tuple(sorted(r.versions.items())) for r in found.values() if r and r.versions})
    passed = sum(bool(r and r.passed) for r in found.values())
    limits = sum(bool(r and not r.passed and cases[name].limit) for name, r in found.items())
    missing = sum(r is None for r in found.values())
    yield f"## {library}\n"
    yield f"`python -m tests.zoo --library {library}`, with " + "; or ".join(
        ", ".join(f"{name} {version}" for name, version in each) for each in versions
    )
    yield ""
    yield (
        f"**{len(cases)} networks: {passed} pass, {len(cases) - passed - limits - missing} fail, "
        f"{limits} known limits, {missing} not run.**\n"
    )
    yield "| network | groups | units | frozen | smallest | trace | slice | error | status |"
    yield "|---|--:|--:|---|--:|--:|--:|--:|---|"
    for name, record in found.items():
        cells = _cells(record) if record else ["", "", "", "", "", "", "", "not run"]
        if record and not record.passed and cases[name].limit:
            cells[-1] = f"limit: {cases[name].limit} ({cells[-1]})"
        yield f"| {name} | " + " | ".join(cell.replace("|", "/").replace("\n", " ") for cell in cells) + " |"


def _cells(record: Record) -> list[str]:
    return [
        str(record.groups),
        str(record.units),
        _frozen(record),
        "" if record.smallest is None else f"{record.smallest:.2g}x",
        _seconds(record.trace_s),
        _seconds(record.slice_s),
        "" if record.error is None else f"{record.error:.0e}",
        status(record),
    ]


def _frozen(record: Record, most: int = 3) -> str:
    """The reasons that keep most units; classes of the last layer are among them."""
    reasons: Counter[str] = Counter()
    for reason, units in record.frozen:
        reasons[reason.partition(": ")[0]] += units  # what the network's code said then is too long for a table
    ordered = sorted(reasons.items(), key=lambda pair: (-pair[1], pair[0]))
    shown = [f"{reason}: {units}" for reason, units in ordered[:most]]
    rest = sum(units for _, units in ordered[most:])
    return "; ".join([*shown, *([f"other: {rest}"] if rest else [])])


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.2g} s"


def status(record: Record) -> str:
    """``pass``, or what failed."""
    if record.failures:
        more = f" (and {len(record.failures) - 1} more)" if len(record.failures) > 1 else ""
        return f"FAIL {record.failures[0]}{more}"
    if record.error64 is not None:
        return f"pass in float64: {record.error64:.0e}"
    return "pass"
