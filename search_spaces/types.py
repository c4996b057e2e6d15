"""The words that all three packages speak: candidate, group, frozen dimension, costs.

Cost units: 1 MAC = 1 multiply-add = 2 FLOPs; memory and size in bytes; latency in milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Candidate: TypeAlias = tuple[int, ...]
"""One level index per group, in the order of `SearchSpace.groups`; 0 is the smallest level. Agents speak only this."""

IntArray: TypeAlias = NDArray[np.int64]
FloatArray: TypeAlias = NDArray[np.float64]

CostModel: TypeAlias = Callable[[IntArray], FloatArray]
"""Kept units per group, shape [n, groups] -> cost of each of the n subnets, shape [n]."""


@dataclass(frozen=True, slots=True)
class Group:
    """Units of one kind that are tied to the same parameters: one dimension of the search space.

    Attributes:
        name: module path of the first layer that produces the units.
        kind: what a unit is; "channels" so far.
        num_units: units of the dense model.
        levels: allowed unit counts, ascending; the last is `num_units`.
        exact: cutting a unit equals silencing it; False where a norm or mean runs over the units, whose statistics
            then run over the kept ones only.
        producers: names of the parameters whose rows make the units.
    """

    name: str
    kind: str
    num_units: int
    levels: tuple[int, ...]
    exact: bool
    producers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Frozen:
    """Units that stay, and why: `module` (path) and `op` (ATen name) say where the trace decided it."""

    name: str
    num_units: int
    reason: str
    module: str
    op: str


@dataclass(frozen=True, slots=True)
class Costs:
    """MACs (multiply-adds), parameters, peak activation bytes at the batch size of the traced example, stored bytes.

    Each is an int for one candidate and an int64 array [n] for an array of candidates.
    """

    macs: Any
    params: Any
    peak_bytes: Any
    size_bytes: Any
