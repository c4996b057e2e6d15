"""What subnets take over from the dense network changes no bit, whatever the model does with its tensors."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import autoprune as ap
from autoprune.reuse import CannotShare, Shared, can_be_watched
from autoprune.search_spaces import SearchSpace


class Inplace(nn.Module):
    """Writes to what it computed before: in place, into a slice, onto the sum of a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.mid, self.out = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.wide, self.head = nn.Conv2d(8, 16, 3), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu_(self.norm(self.stem(x)))
        before = x * 2
        y = self.out(torch.relu_(self.mid(x)))
        x += y
        x[:, :, 0] = 0.5
        y.mul_(0.1)
        x = self.wide(x + before + y).relu_()
        found: Tensor = self.head(x.flatten(2).mean(2))
        return found


class Attention(nn.Module):
    """Views, softmax, buffers and a python number that depends on a value."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 16)
        self.block = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.register_buffer("scale", torch.ones(16))
        self.head = nn.Sequential(nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x) * self.scale
        if float(x.abs().max()) > 1e6:
            x = x / 2
        found: Tensor = self.head(self.block(x).mean(1))
        return found


def networks(space: SearchSpace, group: int) -> list[nn.Module]:
    levels = range(len(space.groups[group].levels) - 1)
    cuts = [(*space.dense[:group], level, *space.dense[group + 1 :]) for level in levels]
    return [space.materialise(cut, share=True).eval() for cut in (space.dense, *cuts)]


@pytest.mark.parametrize(
    ("make", "shape"), [(Inplace, (5, 3, 8, 8)), (Attention, (5, 7, 6))], ids=["inplace", "attention"]
)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_outputs_are_equal_bit_for_bit(make: Callable[[], nn.Module], shape: tuple[int, ...], precision: str) -> None:
    torch.manual_seed(0)
    model = make().eval()
    space = ap.trace(model, torch.randn(shape))
    batches = [torch.randn(shape) for _ in range(3)]

    def call(network: nn.Module, batch: Tensor) -> Tensor:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            found: Tensor = network(batch)
        return found

    if not can_be_watched(lambda: call(model, batches[0]), call(model, batches[0])):
        assert (make, precision) == (Attention, "bf16")  # a fused op, whose autocast is off under a mode
        return
    some = False
    for group in range(len(space.groups)):
        reference, *subnets = networks(space, group)
        shared = Shared(reference, subnets, 2**30, always=True)
        for batch in batches:
            plain = [call(subnet, batch) for subnet in subnets]
            assert all(map(torch.equal, shared(partial(call, batch=batch), batch), plain))
        some |= shared.pays
    assert some


def test_what_is_in_front_of_the_cut_is_computed_once() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Conv2d(8 if i else 3, 8, 3) for i in range(6)), nn.Flatten(), nn.LazyLinear(4)).eval()
    x = torch.randn(2, 3, 16, 16)
    model(x)
    space = ap.trace(model, x)
    last = len(space.groups) - 1
    assert space.groups[last].name == "5"
    reference, *subnets = networks(space, last)
    shared = Shared(reference, subnets, 2**30, always=True)
    calls: list[str] = []

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            calls.append(str(func))
            return func(*args, **(kwargs or {}))

    with torch.no_grad():
        shared(lambda network: network(x), x)
        with Count():  # type: ignore[no-untyped-call]
            shared(lambda network: network(x), x)
    assert sum("convolution" in call for call in calls) == 5 + len(subnets)


def test_memory_is_bounded_and_random_numbers_are_refused() -> None:
    torch.manual_seed(0)
    model = Inplace().eval()
    x = torch.randn(5, 3, 8, 8)
    space = ap.trace(model, x)
    reference, *subnets = networks(space, len(space.groups) - 1)
    shared = Shared(reference, subnets, 100, always=True)
    with torch.no_grad():
        shared(lambda network: network(x), x)
        assert not shared.pays
        with pytest.raises(CannotShare):
            Shared(reference, subnets, 100)(lambda network: network(torch.rand_like(x)), x)


def test_a_subnet_that_writes_where_the_dense_network_only_reads_is_noticed() -> None:
    class Vain(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 4, 1), nn.Conv2d(4, width, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            y: Tensor = self.second(x)
            if self.second.out_channels < 8:
                x.zero_()
            return y

    reference, subnet = Vain(8), Vain(4)
    subnet.first = reference.first
    shared = Shared(reference, [subnet], 2**30, always=True)
    x = torch.randn(2, 3, 4, 4)
    with torch.no_grad():
        shared(lambda network: network(x), x)
        with pytest.raises(CannotShare, match="only reads"):
            shared(lambda network: network(x), x)
