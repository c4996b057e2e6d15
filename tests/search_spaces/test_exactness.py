"""Sliced models against silenced ones, and against masks written by hand; costs against counters."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from autoprune.search_spaces import Candidate, SearchSpace, trace
from autoprune.search_spaces.tracer import map_tensors, tensors
from tests.search_spaces.memory import PeakMemory
from tests.search_spaces.nets import IMAGE, Plain, Residual, randomised
from tests.search_spaces.patterns import EXPECTED, PATTERNS


def space_of(name: str) -> SearchSpace:
    make, example = PATTERNS[name]
    return trace(randomised(make()), example, align=1, max_levels=64)


def candidates(space: SearchSpace, count: int = 8) -> list[Candidate]:
    rng = np.random.default_rng(0)
    mixed = [tuple(int(level) for level in rng.integers(0, space.num_levels)) for _ in range(count)]
    return [space.dense, space.smallest, *(space.candidate(r / 10) for r in range(1, 10)), *mixed]


@pytest.mark.parametrize("name", PATTERNS)
def test_groups(name: str) -> None:
    assert {g.name: g.num_units for g in space_of(name).groups} == EXPECTED[name]


@pytest.mark.parametrize("name", PATTERNS)
def test_sliced_equals_silenced(name: str) -> None:
    space = space_of(name)
    for candidate in candidates(space):
        assert space.verify(candidate) <= 1e-5, candidate


@pytest.mark.parametrize("name", PATTERNS)
def test_costs_equal_the_counters_on_the_real_subnet(name: str) -> None:
    space = space_of(name)
    device = "cpu" if name == "data_dependent" else "meta"
    args, kwargs = map_tensors(space.example_inputs, lambda t: t.to(device))
    for candidate in candidates(space):
        if name == "einsum" and 1 in space.units([candidate]):
            continue  # torch.einsum multiplies one head elementwise, which nobody counts
        subnet = space.materialise(candidate)
        costs = space.costs(candidate)
        assert costs.params == sum(p.numel() for p in subnet.parameters())
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            subnet.to(device)(*args, **kwargs)
        assert 2 * costs.macs == counter.get_total_flops()


@pytest.mark.parametrize("name", PATTERNS)
def test_subnets_train(name: str) -> None:
    space = space_of(name)
    subnet = space.materialise(space.candidate(0.5 if name == "unbiased_variance" else 0)).train()
    args, kwargs = space.example_inputs
    torch.stack([o.square().sum() for o in tensors(subnet(*args, **kwargs)) if o.requires_grad]).sum().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in subnet.parameters())


def test_against_a_mask_written_by_hand() -> None:
    """Independent of the tracer's own silencing: zero the residual channels after every norm, in the dense model."""
    model = randomised(Residual())
    space = trace(model, IMAGE, align=1)
    candidate = space.candidate({"stem.0": 0.5, "a.0": 0.25})
    stem, inner = space.kept_units(candidate)
    masked: Any = copy.deepcopy(model)
    for block, kept in ((masked.stem, stem), (masked.b, stem), (masked.a, inner)):
        mask = torch.zeros(16).index_fill(0, torch.as_tensor(kept), 1)[:, None, None]
        block[1].register_forward_hook(lambda module, args, out, mask=mask: out * mask)
    with torch.no_grad():
        torch.testing.assert_close(space.materialise(candidate).eval()(IMAGE), masked(IMAGE), rtol=1e-5, atol=1e-5)


def test_costs_by_hand() -> None:
    """Plain on 8 x 8 images, batch 2, 8 of 16 and 6 of 24 channels kept."""
    space = trace(Plain().eval(), IMAGE, align=1)
    costs = space.costs(space.candidate({"0.0": 8 / 16, "1.0": 6 / 24}))
    assert costs.macs == 2 * (64 * 9 * 3 * 8 + 64 * 9 * 8 * 6 + 6 * 4 * 10)
    assert costs.params == 9 * 3 * 8 + 2 * 8 + 9 * 8 * 6 + 2 * 6 + 6 * 4 * 10 + 10
    # alive at once: the first block's output, which the caller holds, the second convolution's, its normalised copy
    assert costs.peak_bytes == pytest.approx(4 * 2 * 64 * (8 + 6 + 6), rel=0.01)


@pytest.mark.parametrize("name", PATTERNS)
def test_size_is_that_of_the_subnets_state_dict(name: str) -> None:
    space = space_of(name)
    for candidate in candidates(space):
        stored = space.materialise(candidate).state_dict(keep_vars=True)
        distinct = {id(t): t.numel() * t.element_size() for t in stored.values()}  # tied tensors once
        assert space.costs(candidate).size_bytes == sum(distinct.values())


def test_size_counts_the_type_of_each_tensor_and_only_what_is_stored() -> None:
    model = randomised(Residual()).to(torch.bfloat16)
    model.register_buffer("cache", torch.zeros(1000), persistent=False)
    model.register_buffer("extra", torch.zeros(50, dtype=torch.float64))
    space = trace(model, IMAGE.to(torch.bfloat16), align=1)
    costs = space.costs(space.dense)
    statistics = sum(buffer.numel() * 2 for name, buffer in model.named_buffers() if "running" in name)
    counters = sum(8 for name, _ in model.named_buffers() if name.endswith("num_batches_tracked"))
    assert counters > 0
    assert costs.size_bytes == 2 * costs.params + statistics + counters + 50 * 8


def test_costs_of_an_array_equal_those_of_each() -> None:
    space = space_of("dense")
    array = np.array(candidates(space))
    costs = space.costs(array)
    for i, candidate in enumerate(array):
        one = space.costs(tuple(int(level) for level in candidate))
        assert (one.macs, one.params, one.peak_bytes, one.size_bytes) == tuple(
            getattr(costs, name)[i] for name in ("macs", "params", "peak_bytes", "size_bytes")
        )


@pytest.mark.parametrize("name", ["plain", "residual", "dense", "inverted_residual", "norms", "attention", "split"])
def test_memory_is_what_the_subnet_allocates(name: str) -> None:
    space = space_of(name)
    args, _ = space.example_inputs
    for candidate in (space.dense, space.candidate(0.75), space.candidate(0.5)):
        subnet = space.materialise(candidate)
        with torch.no_grad(), PeakMemory() as memory:
            subnet(*args)
        assert space.costs(candidate).peak_bytes == pytest.approx(memory.peak, rel=0.1)


def test_unknown_ops_are_named() -> None:
    space = space_of("exotic")
    assert set(space.unknown_ops) == {"aten._fft_r2c.default"}
    (lost,) = [f for f in space.frozen if f.name == "b.0"]
    assert lost.num_units == 24
    assert "no rule for aten._fft_r2c" in lost.reason


def test_code_that_holds_a_size_is_found_and_named() -> None:
    (lost,) = [f for f in space_of("baked").frozen if f.name == "b.0"]
    assert lost.reason.startswith("the code needs the full size (nets.py:")


def test_constants_that_would_run_at_other_widths_are_found() -> None:
    reasons = {f.name: f.reason for f in space_of("constants").frozen}
    assert "aten.slice.Tensor splits what is left in another way" in reasons["a.0"]
    assert "unflatten: Provided sizes [2, -1] don't multiply up" in reasons["b.0"]


def test_what_is_frozen_is_named_once() -> None:
    assert [f.name for f in space_of("spatial_gate").frozen] == ["head"]


def test_inexact_groups_are_marked() -> None:
    assert [g.exact for g in space_of("norms").groups] == [False, False]
    assert all(g.exact for g in space_of("dense").groups)


def test_verify_notices_a_wrong_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oracle itself can fail: keep the wrong rows of one convolution."""
    space = space_of("plain")
    right = type(space).kept_indices

    def wrong(self: SearchSpace, kept_units):  # type: ignore[no-untyped-def]
        kept = right(self, kept_units)
        rows = kept["0.0.weight"][0]
        assert rows is not None
        kept["0.0.weight"] = (np.roll(np.setdiff1d(np.arange(16), rows), 1), *kept["0.0.weight"][1:])
        return kept

    monkeypatch.setattr(type(space), "kept_indices", wrong)
    assert space.verify(space.candidate({"0.0": 0.5})) > 1e-2


def test_a_module_without_channels_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Nothing in Linear can be cut: .*an output of the model"):
        trace(nn.Linear(4, 3), torch.zeros(1, 4))


def test_inputs_that_do_not_fit_are_reported_with_the_models_own_words() -> None:
    with pytest.raises(ValueError, match=r"Plain does not run on the example inputs \[\(1, 5, 8, 8\)\]: .*channels"):
        trace(Plain().eval(), torch.zeros(1, 5, 8, 8))
