"""The latency table: replayed ops, interpolation, calibration, file."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from autoprune.latency.features import is_work
from autoprune.search_spaces import Budget, SearchSpace, trace
from autoprune.search_spaces.tracer import Op
from benchmarks.op_replay import make_call, signature, widths_of
from benchmarks.op_table import SHARES, LatencyTable, OpTimes, describe
from tests.search_spaces.nets import NETS, randomised


def space_of(name: str) -> SearchSpace:
    make, example = NETS[name]
    return trace(randomised(make()), example, align=1)


def table_of(space: SearchSpace) -> LatencyTable:
    return LatencyTable.measure(space, repeats=2, subnets=4)


@pytest.mark.parametrize("name", NETS)
def test_every_op_runs_again_at_every_width(name: str) -> None:
    """Sizes of the replayed output follow the shares."""
    space = space_of(name)
    for op in filter(is_work, space.ops):
        dense = make_call(op, (1.0, 1.0), torch.device("cpu"))()
        first = dense[0] if isinstance(dense, tuple) else dense
        assert tuple(first.shape) == op.outputs[0].shape
        half = make_call(op, (0.5, 0.5), torch.device("cpu"))()
        shape = (half[0] if isinstance(half, tuple) else half).shape
        shrinking = [d for f in op.outputs[0].labels for d in f.dims[:1]]
        assert all(shape[d] <= max(first.shape[d] * 0.6, first.shape[d] - 1) for d in shrinking)


def test_widths_of_convolutions_and_linear_layers() -> None:
    ops = [op for op in space_of("plain").ops if widths_of(op)]
    found = [(w.inputs and w.inputs.atoms.size, w.outputs and w.outputs.atoms.size) for w in map(widths_of, ops) if w]
    assert found == [(None, 16), (16, 24), (96, None)]  # the image's channels and the classes cannot shrink


def test_prediction_is_the_calibrated_sum_of_the_table() -> None:
    """A table whose op times are 1 ms times the two shares: predictions can be computed by hand."""
    space = space_of("plain")
    times = {
        signature(op): OpTimes(SHARES, SHARES, tuple(tuple(a * b for b in SHARES) for a in SHARES))
        for op in filter(is_work, space.ops)
    }
    table = replace(table_of(space), times=times, intercept_ms=5.0, slope=2.0)
    predict = table.predictor(space)
    num_ops = sum(map(is_work, space.ops))
    assert predict(space.units([space.dense]))[0] == pytest.approx(5 + 2 * num_ops)
    halved = space.candidate({"0.0": 0.375})  # on the grid: no interpolation error
    # first convolution, its norm and relu, and the second convolution's input
    assert predict(space.units([halved]))[0] == pytest.approx(5 + 2 * (num_ops - 4 + 4 * 0.375))


def test_predictions_are_vectorised_and_monotone() -> None:
    space = space_of("residual")
    predict = table_of(space).predictor(space)
    rng = np.random.default_rng(0)
    array = rng.integers(0, space.num_levels, (50, len(space.groups)))
    together = predict(space.units(array))
    assert together.tolist() == pytest.approx([predict(space.units([row]))[0] for row in array])
    larger = np.minimum(array + 1, space.num_levels - 1)
    assert (predict(space.units(larger)) >= together - 1e-12).all()


def test_samples_hold_what_was_measured() -> None:
    space = space_of("plain")
    table = table_of(space)
    assert table.samples[0].candidate == space.dense
    assert all(s.measured_ms > 0 for s in table.samples)
    predict = table.predictor(space)
    for s in table.samples:
        assert predict(space.units([s.candidate]))[0] == pytest.approx(s.predicted_ms, abs=1e-3)
    assert table.error >= 0
    assert table.batch == 2
    assert f"{table.error:.1%}" in describe(table)


def test_a_latency_budget_is_projected_with_the_table() -> None:
    space = space_of("plain")
    space.add_cost("latency", table_of(space).predictor(space))
    dense, smallest = (space.cost("latency", [c])[0] for c in (space.dense, space.smallest))
    limit = (dense + smallest) / 2 + 1e-6  # on a busy machine both may be the same; the text below is rounded
    candidate = space.project([1.0] * len(space.groups), Budget.parse(f"latency={limit:.9f}ms"))
    assert space.cost("latency", [candidate])[0] <= limit


def test_file_round_trip(tmp_path: Path) -> None:
    table = table_of(space_of("inverted_residual"))
    table.save(tmp_path / "latency.json")
    assert LatencyTable.load(tmp_path / "latency.json") == table


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 99}, "another format"),
        ({"fingerprint": "elsewhere"}, "measured on another device"),
        ({"times": None}, "is damaged"),
    ],
)
def test_files_that_cannot_be_used(tmp_path: Path, change: dict[str, object], message: str) -> None:
    path = tmp_path / "latency.json"
    table_of(space_of("plain")).save(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        LatencyTable.load(path)


def test_a_table_of_another_network_is_refused() -> None:
    with pytest.raises(ValueError, match="made for another network"):
        table_of(space_of("plain")).predictor(space_of("residual"))


def test_measuring_leaves_model_and_threads_alone() -> None:
    space = space_of("plain")
    space.model.train()
    threads = torch.get_num_threads()
    before = {k: v.clone() for k, v in space.model.state_dict().items()}
    LatencyTable.measure(space, threads=1, repeats=1, subnets=2)
    assert torch.get_num_threads() == threads
    assert space.model.training
    assert all(torch.equal(v, before[k]) for k, v in space.model.state_dict().items())
    assert isinstance(space.model, nn.Sequential)


def test_an_op_that_does_not_run_alone_counts_as_in_the_dense_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def stubborn(op: Op, share: tuple[float, float], device: torch.device) -> Callable[[], Any]:
        if share != (1.0, 1.0):
            raise RuntimeError("sizes do not match")
        return make_call(op, share, device)

    monkeypatch.setattr("benchmarks.op_table.make_call", stubborn)
    space = space_of("plain")
    table = table_of(space)
    assert all(len({ms for row in times.ms for ms in row}) == 1 for times in table.times.values())
    assert all(times.ms[0][0] > 0 for times in table.times.values())
    predictions = table.predictor(space)(space.units([space.dense, space.smallest]))
    assert predictions[0] == predictions[1] > 0
