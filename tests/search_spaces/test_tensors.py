"""Kinds of tensors: precision, memory format, device, frozen parameters; and numbers that code makes from a width."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from autoprune.search_spaces import SearchSpace, surgery, trace, verify
from autoprune.search_spaces.tracer import tensors
from tests.search_spaces.nets import IMAGE, TOKENS, Residual, randomised
from tests.search_spaces.nets_channels import Functional
from tests.search_spaces.patterns import PATTERNS


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float16, 5e-3), (torch.bfloat16, 5e-2), (torch.float64, 1e-12)]
)
@pytest.mark.parametrize("name", ["residual", "norms", "attention", "single_head", "width_norms"])
def test_precision_is_kept(name: str, dtype: torch.dtype, tolerance: float) -> None:
    """Bytes follow the type of the parameters; the error is a few roundings of that type."""
    make, example = PATTERNS[name]
    space = trace(randomised(make()).to(dtype), example.to(dtype), align=1)
    single = trace(randomised(make()), example, align=1)
    assert space.groups == single.groups
    candidate = space.candidate(0.5)
    subnet = space.materialise(candidate)
    assert {t.dtype for t in (*subnet.parameters(), *subnet.buffers()) if t.is_floating_point()} == {dtype}
    assert space.verify(candidate) <= tolerance
    costs, expected = space.costs(candidate), single.costs(candidate)
    assert (costs.macs, costs.params) == (expected.macs, expected.params)
    if name == "residual":  # others hold statistics or scores in single precision whatever the input is
        assert costs.peak_bytes == pytest.approx(expected.peak_bytes * dtype.itemsize / 4, rel=0.01)


def test_memory_format_is_kept() -> None:
    model: Any = randomised(Residual()).to(memory_format=torch.channels_last)
    space = trace(model, IMAGE.to(memory_format=torch.channels_last), align=1)
    assert space.groups == trace(randomised(Residual()), IMAGE, align=1).groups
    candidate = space.candidate(0.5)
    subnet: Any = space.materialise(candidate)
    assert subnet.a[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert space.verify(candidate) <= 1e-5


def test_frozen_parameters_are_cut_and_stay_frozen() -> None:
    space = trace(randomised(Functional()), IMAGE, align=1)
    subnet: Any = space.materialise(space.candidate(0.5))
    trainable = {name: p.requires_grad for name, p in subnet.named_parameters()}
    assert trainable == {"kernel": True, "bias": True, "scale": False, "matrix": False}
    assert subnet.scale.shape == (1, 8, 1, 1)
    assert subnet.matrix.shape == (5, 8)


@pytest.mark.parametrize("name", ["residual", "norms", "attention", "normalised", "width_norms", "standardised"])
def test_nothing_mixes_devices(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranking, surgery and the oracle on a (faked) CUDA device: an op on tensors of two devices would raise."""
    make, example = PATTERNS[name]
    space = trace(randomised(make()), example, align=1)
    kept = space.kept_units(space.candidate(0.5))
    monkeypatch.setattr(verify, "_difference", lambda a, b: float(a.device != b.device))
    with FakeTensorMode(allow_non_fake_inputs=True):
        fakes = {id(t): _on_cuda(t) for t in surgery.named_tensors(space.model).values()}
        space.model = surgery.replace_tensors(space.model, fakes)
        space.example_inputs = tuple(torch.empty_like(t, device="cuda") for t in space.example_inputs[0]), {}
        subnet = space.materialise(space.candidate(0.5))
        assert {t.device.type for t in (*subnet.parameters(), *subnet.buffers())} == {"cuda"}
        assert verify.relative_error(space, kept) == 0


def _on_cuda(tensor: Tensor) -> Tensor:
    data = torch.empty_like(tensor, device="cuda")
    return nn.Parameter(data) if isinstance(tensor, nn.Parameter) else data


class Scaled(nn.Module):
    """Two layers in a row; `rescale` makes a number from the width of the first."""

    def __init__(self, rescale: Any) -> None:
        super().__init__()
        self.a, self.b, self.head, self.rescale = nn.Linear(12, 16), nn.Linear(16, 24), nn.Linear(24, 5), rescale

    def forward(self, x: Tensor) -> Any:
        return self.head(self.b(self.rescale(F.relu(self.a(x)))))


@pytest.mark.parametrize(
    "rescale",
    [
        lambda x: x / x.shape[-1] ** 0.5,
        lambda x: x * torch.sqrt(torch.tensor(x.shape[-1], dtype=torch.float)),
        lambda x: x + torch.full((1,), 1 / x.shape[-1], device=x.device),
        lambda x: x.sum(-1, keepdim=True) / x.shape[-1] + x,
        lambda x: torch.add(x, x, alpha=x.shape[-1]),
    ],
)
def test_numbers_made_from_a_width_are_seen(rescale: Any) -> None:
    """The group that changes the number is inexact, others are not; the oracle uses the number of the subnet."""
    space: SearchSpace = trace(randomised(Scaled(rescale)), TOKENS, align=1)
    assert {g.name: g.exact for g in space.groups} == {"a": False, "b": True}
    for ratio in (0.1, 0.5, 0.9):
        assert space.verify(space.candidate(ratio)) <= 1e-5


def test_the_scale_of_attention_is_that_of_the_kept_width() -> None:
    """By hand: slice q, k and v of one head and divide by the root of what is left."""
    make, example = PATTERNS["single_head"]
    model: Any = randomised(make())
    space = trace(model, example, align=1)
    candidate = space.candidate({"q": 0.25})
    kept = torch.as_tensor(dict(zip([g.name for g in space.groups], space.kept_units(candidate), strict=True))["q"])
    subnet: Any = space.materialise(candidate)
    with torch.no_grad():
        x = model.embed(example)
        q, k, v = (layer(x) for layer in (model.q, model.k, model.v))
        weights = (q[..., kept] @ k[..., kept].transpose(1, 2) / len(kept) ** 0.5).softmax(-1)
        torch.testing.assert_close(subnet(example), model.head(weights @ v), rtol=1e-5, atol=1e-5)


def test_a_variance_of_one_channel_is_not_a_number_in_both() -> None:
    """Bessel's correction divides by zero: the subnet is what its code says, and the oracle says the same."""
    make, example = PATTERNS["unbiased_variance"]
    space = trace(randomised(make()), example, align=1)
    subnet = space.materialise(space.smallest)
    with torch.no_grad():
        assert all(t.isnan().all() for t in tensors(subnet(example)))
    assert space.verify(space.smallest) == 0


def _assembled(a: Tensor, b: Tensor) -> Tensor:
    joined = a.new_zeros(*a.shape[:-1], 2 * a.shape[-1])
    joined[..., : a.shape[-1]] = a
    joined[..., a.shape[-1] :] = b
    return joined


def _upper_half(a: Tensor, b: Tensor) -> Tensor:
    gate = torch.zeros(a.shape[-1], device=a.device)
    gate[a.shape[-1] // 2 :] = 1
    return a * gate + b


def _behind_three(a: Tensor, b: Tensor) -> Tensor:
    gate = torch.zeros(a.shape[-1], device=a.device)
    gate[3:] = 1
    return a * gate + b


def _third(a: Tensor, b: Tensor) -> Tensor:
    gate = torch.zeros(a.shape[-1], device=a.device)
    gate[2] = 1
    return a * gate + b


def _counted(a: Tensor, b: Tensor) -> Tensor:
    return (a + b) / torch.ones_like(a).sum(-1, keepdim=True)


class Filled(nn.Module):
    """Two layers, and what is made of them with tensors of zeros and ones."""

    def __init__(self, combine: Any, width: int) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(12, 16), nn.Linear(12, 16), nn.Linear(width, 20)
        self.head, self.combine = nn.Linear(20, 5), combine

    def forward(self, x: Tensor) -> Any:
        return self.head(self.c(self.combine(self.a(x), self.b(x))).relu())


@pytest.mark.parametrize(
    ("combine", "width", "units"),
    [
        (_assembled, 32, [16, 20]),
        (_upper_half, 16, [8, 20]),
        (_behind_three, 16, [13, 20]),
        (_third, 16, [20]),
        (_counted, 16, [16, 20]),
    ],
)
def test_tensors_of_one_number_that_are_written_to(combine: Any, width: int, units: list[int]) -> None:
    """Buffers follow the width; who is written at a fixed place keeps what the code counts."""
    space = trace(randomised(Filled(combine, width)), TOKENS, align=1)
    assert [g.num_units for g in space.groups] == units
    for ratio in (0.1, 0.5, 0.9):
        assert space.verify(space.candidate(ratio)) <= 1e-5


def test_the_first_trace_of_a_process_is_like_any_other() -> None:
    """Storages live as long as later: what torch loads at its first op must not hold on to them."""
    code = (
        "from autoprune.search_spaces import trace; from tests.search_spaces.nets import IMAGE, Residual\n"
        "peaks = [trace(Residual().eval(), IMAGE).costs((0, 0)).peak_bytes for _ in range(2)]\n"
        "assert peaks[0] == peaks[1], peaks"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
