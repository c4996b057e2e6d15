"""Candidates, levels and names of a search space."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from autoprune.search_spaces import Budget, trace
from autoprune.search_spaces.groups import make_levels
from tests.search_spaces.nets import IMAGE, Plain, Residual, randomised


@pytest.mark.parametrize(
    ("num_units", "positions", "expected"),
    [
        (64, 1, (8, 16, 24, 32, 40, 48, 56, 64)),
        (16, 1, (2, 4, 6, 8, 10, 12, 14, 16)),
        (3, 1, (1, 2, 3)),
        (20, 1, (2, 4, 6, 8, 10, 12, 14, 16, 18, 20)),
        (12, 32, tuple(range(1, 13))),
    ],
)
def test_levels_are_aligned_where_there_is_room(num_units: int, positions: int, expected: tuple[int, ...]) -> None:
    assert make_levels(num_units, positions, align=8, max_levels=32) == expected


def test_levels_are_few_in_wide_layers() -> None:
    levels = make_levels(2048, 1, align=8, max_levels=32)
    assert len(levels) == 32
    assert levels[0] == 64
    assert levels[-1] == 2048


def test_candidates_and_ratios() -> None:
    space = trace(randomised(Plain()), IMAGE, align=1)
    assert space.candidate(1.0) == space.dense == (15, 23)
    assert space.candidate(0.0) == space.smallest == (0, 0)
    candidate = space.candidate({"0.0": 0.5})
    assert space.keep_ratios(candidate) == {"0.0": 0.5, "1.0": 1.0}
    assert space.units([candidate, space.dense]).tolist() == [[8, 24], [16, 24]]


def test_wrong_ratios_and_names() -> None:
    space = trace(randomised(Plain()), IMAGE)
    with pytest.raises(ValueError, match=r"Unknown group '0.1'. Did you mean '0.0'"):
        space.candidate({"0.1": 0.5})
    with pytest.raises(ValueError, match=r"lies in \[0, 1\], but got 50.0 for group '0.0'"):
        space.candidate(50.0)
    with pytest.raises(ValueError, match=r"Unknown cost 'latency'. Available: macs, memory, params, size"):
        space.cost("latency", [space.dense])


def test_added_costs_are_used_by_projection() -> None:
    space = trace(randomised(Residual()), IMAGE, align=1)
    space.add_cost("latency", lambda units: units.sum(1).astype(np.float64))
    candidate = space.project([1.0, 0.5], Budget.parse("latency=20ms"))
    assert space.units([candidate])[0].sum() == 20
    assert set(space.cost_dict(candidate)) == {"macs", "params", "memory", "size", "latency"}


def test_fingerprint_follows_shapes_and_levels() -> None:
    one = trace(randomised(Plain()), IMAGE)
    assert one.fingerprint == trace(randomised(Plain(), seed=1), IMAGE).fingerprint
    assert one.fingerprint != trace(randomised(Plain()), IMAGE, align=1).fingerprint
    assert one.fingerprint != trace(randomised(Residual()), IMAGE).fingerprint


def test_inputs_by_keyword() -> None:
    class Keywords(Residual):
        def forward(self, x: torch.Tensor, *, scale: torch.Tensor | None = None) -> Any:
            return super().forward(x if scale is None else x * scale)

    space = trace(randomised(Keywords()), {"x": IMAGE, "scale": torch.tensor(2.0)})
    assert len(space.groups) == 2
    assert space.verify(space.smallest) <= 1e-5


def test_control_flow_that_depends_on_data_is_traced_on_the_real_device() -> None:
    class Branching(Residual):
        def forward(self, x: torch.Tensor) -> Any:
            return super().forward(x * 2 if x.sum().item() > 1e9 else x)

    space = trace(randomised(Branching()), IMAGE)
    assert len(space.groups) == 2
    assert space.verify(space.smallest) <= 1e-5
