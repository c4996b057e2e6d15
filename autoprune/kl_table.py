"""The KL table: how much each cut hurts by itself, and what that predicts for many cuts at once.

For every group and level, the divergence of the dense network's outputs from those of the subnet that keeps everything
but that one group at that one level (`profiling` measures it). The dense level is 0 by definition.

Source: tables of per-layer sensitivity that a search adds up, Frantar & Alistarh 2022, "SPDY", arXiv:2203.13604,
sec. 3.1; docs/kl-table.md says where this one differs.

Shape letters: n candidates, G groups, L levels of the group with the most.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression

from autoprune.documents import parsing, read_document, write_document
from autoprune.search_spaces.errors import UserError
from autoprune.search_spaces.types import Candidate, FloatArray, Group

FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class KLTable:
    """Divergence per group and level.

    Attributes:
        groups: names, in the order of the space.
        levels: unit counts per group, ascending; the last is the dense one.
        measured: per group, level index -> divergence as measured; infinite where outputs are not finite.
        estimate: per group, a second-order estimate at every level, along which missing levels are interpolated; None
            to interpolate along units, between two positive values geometrically: losses rise about exponentially as
            units go.
        settings: what was measured, how, and on what.
        fingerprint: digest of everything that the values depend on.
    """

    groups: tuple[str, ...]
    levels: tuple[tuple[int, ...], ...]
    measured: tuple[Mapping[int, float], ...]
    estimate: tuple[tuple[float, ...], ...] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    fingerprint: str = ""

    @classmethod
    def empty(cls, groups: Sequence[Group], settings: Mapping[str, Any], fingerprint: str) -> KLTable:
        """Without a measured level."""
        return cls(
            groups=tuple(group.name for group in groups),
            levels=tuple(group.levels for group in groups),
            measured=tuple({} for _ in groups),
            settings=settings,
            fingerprint=fingerprint,
        )

    def with_measured(self, group: int, values: Mapping[int, float]) -> KLTable:
        """The table with more levels of one group."""
        together = dict(sorted({**self.measured[group], **values}.items()))
        return replace(self, measured=(*self.measured[:group], together, *self.measured[group + 1 :]))

    @cached_property
    def raw(self) -> tuple[FloatArray, ...]:
        """Per group, the value at every level: as measured, and in between interpolated."""
        return tuple(self._filled(group) for group in range(len(self.groups)))

    @cached_property
    def values(self) -> tuple[FloatArray, ...]:
        """Per group, what agents see: the nearest values in which keeping more never hurts more."""
        return tuple(monotone(raw) for raw in self.raw)

    def predict(self, candidates: NDArray[np.integer[Any]] | Sequence[Candidate]) -> FloatArray:
        """Sum of the groups' values for candidates [n, G], shape [n]: as if cuts did not know of each other."""
        array = np.asarray(candidates, np.int64).reshape(-1, len(self.groups))
        return np.asarray(self._matrix[np.arange(len(self.groups)), array].sum(axis=1), np.float64)

    def level_at(self, group: int, keep_ratio: float) -> int:
        """The level nearest to a keep ratio."""
        units = np.array(self.levels[group])
        return int(np.argmin(np.abs(units - keep_ratio * units[-1])))

    def by_sensitivity(self, keep_ratio: float = 0.5) -> list[int]:
        """Groups that can be cut, the one that hurts most first, at the level nearest to a keep ratio."""
        can = [group for group, levels in enumerate(self.levels) if len(levels) > 1]
        return sorted(can, key=lambda group: -self.values[group][self.level_at(group, keep_ratio)])

    def save(self, path: Path) -> None:
        """Write the table, atomically; floats survive JSON exactly."""
        names = ("groups", "levels", "settings", "fingerprint", "estimate")
        measured = {
            name: {str(units[level]): value if math.isfinite(value) else None for level, value in values.items()}
            for name, units, values in zip(self.groups, self.levels, self.measured, strict=True)
        }
        write_document(path, FORMAT, {**{name: getattr(self, name) for name in names}, "measured": measured})

    @classmethod
    def load(cls, path: Path) -> KLTable:
        """Read a table.

        Raises:
            Damaged: it is missing, or cannot be read.
            Newer: it is of a format to come.
        """
        content = read_document(path, FORMAT)
        with parsing(path):
            levels = tuple(tuple(map(int, units)) for units in content["levels"])
            groups = tuple(map(str, content["groups"]))
            measured = tuple(
                {units.index(int(count)): _number(value) for count, value in content["measured"][name].items()}
                for name, units in zip(groups, levels, strict=True)
            )
            estimate = content["estimate"]
            if estimate is not None:
                estimate = tuple(tuple(map(float, row)) for row in estimate)
                if [len(row) for row in estimate] != [len(units) for units in levels]:
                    raise ValueError("an estimate of another length")
            return cls(
                groups=groups,
                levels=levels,
                measured=measured,
                estimate=estimate,
                settings=dict(content["settings"]),
                fingerprint=str(content["fingerprint"]),
            )

    @cached_property
    def _matrix(self) -> FloatArray:
        """[G, L], rows continued with zeros."""
        widest = max(map(len, self.levels), default=1)
        rows = [np.pad(values, (0, widest - len(values))) for values in self.values]
        return np.array(rows, np.float64).reshape(len(rows), widest)

    def _filled(self, group: int) -> FloatArray:
        units = np.array(self.levels[group], np.float64)
        last = len(units) - 1
        known = {**self.measured[group], last: 0.0}
        if 0 not in known:
            raise UserError(f"The KL table has no values of {self.groups[group]!r} yet. Measure it first.")
        axis = units if self.estimate is None else -np.array(self.estimate[group])
        found = np.zeros(len(units))
        places = sorted(known)
        for low, high in pairwise(places):
            span = axis if axis[high] > axis[low] else units
            share = (span[low:high] - span[low]) / (span[high] - span[low])
            start, end = known[low], known[high]
            if math.isinf(start) or math.isinf(end):
                found[low:high] = start
            elif span is units and min(start, end) > 0:
                found[low:high] = start ** (1 - share) * end**share
            else:
                found[low:high] = start + (end - start) * share
            found[low] = start  # exactly
        return found


def monotone(raw: FloatArray) -> FloatArray:
    """The nearest values (least squares) that never rise with the level, and end at 0.

    Infinite values stay, and make those of all smaller levels infinite.
    """
    values = raw.copy()
    infinite = np.flatnonzero(np.isinf(values))
    first = 0 if not len(infinite) else int(infinite[-1]) + 1
    values[:first] = np.inf
    if len(values) - 1 > first:
        values[first:-1] = isotonic_regression(values[first:-1], increasing=False).x
    values[first:] = np.maximum(values[first:], 0.0)
    values[-1] = 0.0
    return values


def spread(num_levels: int, count: int) -> list[int]:
    """`count` levels below the dense one, evenly spread, the smallest among them; all where there are no more."""
    below = num_levels - 1
    return sorted({round(x) for x in np.linspace(0, below - 1, min(count, below))}) if below else []


def bends(levels: Sequence[int], estimate: Sequence[float], tolerance: float = 0.1) -> list[int]:
    """The levels below the dense one between which an estimate is straight to within `tolerance` of its range.

    Points are added where it is farthest from the straight line, as Douglas & Peucker 1973 simplify curves.
    """
    units, curve = np.array(levels, np.float64), np.array(estimate, np.float64)
    chosen = [0, len(units) - 1]
    if len(units) < 2:
        return []
    while True:
        away = np.abs(curve - np.interp(units, units[chosen], curve[chosen]))
        worst = int(np.argmax(away))
        if away[worst] <= tolerance * np.ptp(curve) or worst in chosen:
            return chosen[:-1]
        chosen = sorted([*chosen, worst])


def _number(value: Any) -> float:
    return math.inf if value is None else float(value)
