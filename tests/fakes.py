"""Small spaces without a network: what projection and agents need of a `SearchSpace`, in plain numpy.

Costs have the form of a convolutional net's: every operation costs a constant times the kept units of the groups
on its two sides.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from autoprune.search_spaces.budget import Budget
from autoprune.search_spaces.projection import project
from autoprune.search_spaces.types import Candidate, FloatArray, Group, IntArray

FIXED = -1
"""The side of an operation that no group decides: the image's channels, the classes."""


@dataclass(frozen=True)
class Op:
    """A layer from group `source` to group `target`; `kernel` parameters per pair of units, used `positions` times."""

    source: int
    target: int
    kernel: int
    positions: int


@dataclass
class FakeSpace:
    """A chain or a random graph of layers; `more_costs` are added to macs, params and memory by name."""

    groups: tuple[Group, ...]
    ops: tuple[Op, ...]
    fixed_units: int = 3
    more_costs: dict[str, Callable[[IntArray], FloatArray]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.num_levels: IntArray = np.array([len(group.levels) for group in self.groups], dtype=np.int64)
        longest = int(self.num_levels.max())
        padded = [group.levels + (group.num_units,) * (longest - len(group.levels)) for group in self.groups]
        self.level_units: IntArray = np.array(padded, dtype=np.int64)
        self._source = np.array([op.source for op in self.ops])
        self._target = np.array([op.target for op in self.ops])
        self._kernel = np.array([op.kernel for op in self.ops])
        self._positions = np.array([op.positions for op in self.ops])

    @property
    def dense(self) -> Candidate:
        return tuple((self.num_levels - 1).tolist())

    @property
    def smallest(self) -> Candidate:
        return (0,) * len(self.groups)

    @property
    def cost_names(self) -> tuple[str, ...]:
        return ("macs", "params", "memory", *self.more_costs)

    def units(self, candidates: IntArray) -> IntArray:
        return self.level_units[np.arange(len(self.groups)), candidates]

    def cost(self, name: str, candidates: IntArray) -> FloatArray:
        units = self.units(candidates)
        if name in self.more_costs:
            return self.more_costs[name](units)
        sides = np.concatenate([units, np.full((len(units), 1), self.fixed_units)], axis=1)  # FIXED is the last one
        source, target = sides[:, self._source], sides[:, self._target]
        by_op = {
            "params": source * target * self._kernel,
            "macs": source * target * self._kernel * self._positions,
            "memory": 4 * (source + target) * self._positions,
        }[name]
        total: FloatArray = (by_op.max(axis=1) if name == "memory" else by_op.sum(axis=1)).astype(np.float64)
        return total

    def cost_dict(self, candidate: Candidate) -> dict[str, float]:
        return {name: float(self.cost(name, np.array([candidate]))[0]) for name in self.cost_names}

    def candidate(self, keep: float | Mapping[str, float]) -> Candidate:
        levels = []
        for group in self.groups:
            ratio = keep.get(group.name, 1.0) if isinstance(keep, Mapping) else keep
            levels.append(int(np.argmin(np.abs(np.array(group.levels) - ratio * group.num_units))))
        return tuple(levels)

    def keep_ratios(self, candidate: Candidate) -> dict[str, float]:
        return {
            group.name: group.levels[level] / group.num_units
            for group, level in zip(self.groups, candidate, strict=True)
        }

    def project(self, wishes: Sequence[float], budget: Budget) -> Candidate:
        return project(self, wishes, budget)


def chain_space(widths: Sequence[int], *, step: int = 4, size: int = 16) -> FakeSpace:
    """Return a chain of 3x3 convolutions of the given widths, the image halved every second one, with a classifier."""
    groups = tuple(_group(f"conv{i}", width, step) for i, width in enumerate(widths))
    sides = [FIXED, *range(len(widths))]
    ops = [Op(sides[i], sides[i + 1], 9, max(1, size >> (i // 2)) ** 2) for i in range(len(widths))]
    ops.append(Op(sides[-1], FIXED, 1, 1))
    return FakeSpace(groups, tuple(ops))


def tiny_space(*, latency: bool = True) -> FakeSpace:
    """Return a chain of five layers with 5 to 8 levels each (14,400 candidates), with a latency of the usual kind."""
    space = chain_space([20, 24, 32, 32, 24], step=4)
    if latency:
        per_unit = np.array([0.02, 0.01, 0.03, 0.01, 0.02])
        space.more_costs["latency"] = lambda units: 0.5 + (np.ceil(units / 8) * 8) @ per_unit
    return space


def random_space(seed: int, num_groups: int, *, step: int | None = None) -> FakeSpace:
    """Return a space with random widths, level steps and connections: every group is fed and feeds something."""
    rng = np.random.default_rng(seed)
    widths = rng.integers(1, 40, num_groups) if step is None else step * rng.integers(2, 33, num_groups)
    groups = tuple(_group(f"layer{i}", int(width), step or int(rng.integers(1, 8))) for i, width in enumerate(widths))
    ops = [
        Op(int(rng.integers(-1, i)), i, int(rng.choice([1, 9])), int(rng.integers(1, 200))) for i in range(num_groups)
    ]
    ops += [Op(i, int(rng.integers(-1, num_groups)), 1, int(rng.integers(1, 50))) for i in range(num_groups)]
    return FakeSpace(groups, tuple(ops))


def _group(name: str, width: int, step: int) -> Group:
    levels = (*range(min(step, width), width, step), width)
    return Group(name, "channels", width, levels, True, (f"{name}.weight",))
