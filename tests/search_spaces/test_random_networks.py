"""Random small networks: every cut is exact, costs equal the counters, subnets train, the dense model stays as it was.

A network is a list of steps, each a name and a variant, applied one after the other; steps may reach back to what
earlier ones made. Explore beyond the repeatable examples with ``--hypothesis-profile=explore``.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import numpy as np
import torch
from hypothesis import given
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from autoprune.search_spaces import Candidate, SearchSpace, UserError, trace
from autoprune.search_spaces.tracer import plain_kernels
from tests.search_spaces.nets import IMAGE as SINGLE
from tests.search_spaces.nets import randomised

# Doubles, because a norm over one or two channels that are left magnifies rounding.
IMAGE = SINGLE.double()
WIDTHS = (8, 12, 16, 24)


class ChannelsLast(nn.LayerNorm):
    """Layer norm over the channels of an image."""

    def forward(self, x: Tensor) -> Any:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def norm(variant: int, channels: int) -> nn.Module:
    kinds: list[Callable[[], nn.Module]] = [
        lambda: nn.BatchNorm2d(channels),
        nn.Identity,
        lambda: nn.GroupNorm(math.gcd(4, channels), channels),
        lambda: ChannelsLast(channels),
    ]
    return kinds[variant % 4]()


def conv(channels: int, variant: int) -> nn.Module:
    """Plain or grouped, any norm."""
    out, groups = WIDTHS[variant // 2 % 4], (1, 2, 4, 1)[variant // 4 % 4]
    groups = math.gcd(groups, channels)
    kernel = 1 + 2 * (variant % 2)
    layer = nn.Conv2d(channels, out, kernel, padding=kernel // 2, groups=groups, bias=variant % 3 == 0)
    return nn.Sequential(layer, norm(variant // 3, out), (nn.ReLU(), nn.SiLU(), nn.PReLU(out))[variant % 3])


def depthwise(channels: int, variant: int) -> nn.Module:
    out = channels * (1 + variant % 2)
    return nn.Sequential(nn.Conv2d(channels, out, 3, padding=1, groups=channels), norm(variant, out), nn.ReLU6())


def transposed(channels: int, variant: int) -> nn.Module:
    groups = (1, math.gcd(2, channels), channels)[variant % 3]
    out = channels if variant % 3 == 2 else WIDTHS[variant % 4]
    return nn.Sequential(nn.ConvTranspose2d(channels, out, 3, padding=1, groups=groups), norm(variant // 3, out))


class Shuffle(nn.Module):
    def __init__(self, channels: int, variant: int) -> None:
        super().__init__()
        self.groups = math.gcd((2, 3, 4)[variant % 3], channels)

    def forward(self, x: Tensor) -> Any:
        n, c, h, w = x.shape
        return x.view(n, self.groups, c // self.groups, h, w).transpose(1, 2).reshape(n, c, h, w)


class Split(nn.Module):
    """Two pieces, equal or not, one of which goes through a layer."""

    def __init__(self, channels: int, variant: int) -> None:
        super().__init__()
        self.layer = nn.LazyConv2d(WIDTHS[variant % 4], 1)
        self.variant = variant % 4

    def forward(self, x: Tensor) -> Any:
        half = x.shape[1] // 2
        makers: tuple[Callable[[], Any], ...] = (
            lambda: x.chunk(2, 1),
            lambda: x.split(half, 1),
            lambda: (x[:, :half], x[:, half:]),
            lambda: x.tensor_split(2, 1),
        )
        pieces = makers[self.variant]()
        return torch.cat([pieces[0], self.layer(pieces[1])], 1)


class Gate(nn.Module):
    """Squeeze and excite."""

    def __init__(self, channels: int, variant: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(channels, 8, 1), nn.Conv2d(8, channels, 1)
        self.linear = variant % 2 == 1

    def forward(self, x: Tensor) -> Any:
        gate = self.up(F.relu(self.down(F.adaptive_avg_pool2d(x, 1))))
        return x * gate.sigmoid() if self.linear else gate.softmax(1) * x


class Glu(nn.Module):
    def __init__(self, channels: int, variant: int) -> None:
        super().__init__()
        self.conv, self.variant = nn.Conv2d(channels, 2 * WIDTHS[variant % 4], 1), variant % 2

    def forward(self, x: Tensor) -> Any:
        a, b = (x := self.conv(x)).chunk(2, 1)
        return F.glu(x, 1) if self.variant else F.silu(a) * b


class PixelShuffle(nn.Module):
    """Channels become pixels, and pixels channels."""

    def __init__(self, channels: int, variant: int) -> None:
        super().__init__()
        self.conv, self.back = nn.Conv2d(channels, 4 * WIDTHS[variant % 2], 1), variant // 2 % 2

    def forward(self, x: Tensor) -> Any:
        x = F.pixel_shuffle(F.channel_shuffle(self.conv(x), 4), 2)
        return F.pixel_unshuffle(x, 2) if self.back else F.max_pool2d(x, 2)


class Attention(nn.Module):
    """Self-attention over pixels; the number of heads comes from shapes, their width is fixed."""

    def __init__(self, channels: int, variant: int) -> None:
        super().__init__()
        self.width, self.fused = 4, variant % 2 == 1
        inner = self.width * (2 + variant % 3)
        self.qkv, self.out = nn.Linear(channels, 3 * inner), nn.Linear(inner, channels)
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Any:
        tokens = x.flatten(2).transpose(1, 2)
        n, length, _ = tokens.shape
        qkv = self.qkv(self.norm(tokens)).view(n, length, 3, -1, self.width)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            y = (q @ k.transpose(-2, -1) * self.width**-0.5).softmax(-1) @ v
        tokens = tokens + self.out(y.transpose(1, 2).reshape(n, length, -1))
        return tokens.transpose(1, 2).reshape(n, -1, *x.shape[2:])


class TorchAttention(nn.Module):
    """The library's own module, whose sizes are attributes."""

    def __init__(self, channels: int, variant: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(channels, math.gcd(4, channels), batch_first=True)

    def forward(self, x: Tensor) -> Any:
        tokens = x.flatten(2).transpose(1, 2)
        return x + self.attention(tokens, tokens, tokens)[0].transpose(1, 2).unflatten(2, x.shape[2:])


class Pool(nn.Module):
    def __init__(self, channels: int, variant: int) -> None:
        super().__init__()
        self.variant = variant % 5

    def forward(self, x: Tensor) -> Any:
        if self.variant == 4:
            return x * torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1).sum(1, keepdim=True).sigmoid()
        if x.shape[-1] < 4:
            return F.interpolate(x, scale_factor=2)
        return (
            F.max_pool2d(x, 2),
            F.avg_pool2d(x, 2),
            F.lp_pool2d(x, 2.0, 2),
            F.adaptive_max_pool2d(x, 2),
        )[self.variant]


class Fixed(nn.Module):
    """Code that holds the width of its input: what runs at other widths would compute something else."""

    def __init__(self, channels: int, variant: int) -> None:
        super().__init__()
        self.channels, self.variant = channels, variant % 6
        self.middle = (channels + 1) // 2

    def forward(self, x: Tensor) -> Any:
        n, _, h, w = x.shape
        makers: tuple[Callable[[], Any], ...] = (
            lambda: torch.cat([x[:, : self.middle].tanh(), x[:, self.middle :]], 1),
            lambda: torch.cat([piece * i for i, piece in enumerate(x.split(self.middle, 1))], 1),
            lambda: x.reshape(n, self.channels, -1, w).softmax(2).reshape(n, -1, h, w),
            lambda: x[:, torch.arange(self.middle)],
            lambda: torch.stack(x.chunk(2, 1), 2).flatten(1, 2) if x.shape[1] % 2 == 0 else x,
            lambda: F.normalize(x, dim=1) + x.std(1, correction=0, keepdim=True),
        )
        return makers[self.variant]()


class Pad(nn.Module):
    """Channels that are always zero, borders, turned maps."""

    def __init__(self, channels: int, variant: int) -> None:
        super().__init__()
        self.variant = variant % 5

    def forward(self, x: Tensor) -> Any:
        makers: tuple[Callable[[], Any], ...] = (
            lambda: F.pad(x, (0, 0, 0, 0, 2, 3)),
            lambda: F.pad(x, (1, 1, 1, 1), mode="reflect")[..., 1:-1, 1:-1],
            lambda: F.pad(x, (1, 0, 0, 1), value=0.5)[..., 1:, 1:],
            lambda: x.roll(1, 2).flip(3),
            lambda: x.repeat(1, 2, 1, 1),
        )
        return makers[self.variant]()


STEPS: dict[str, Callable[[int, int], nn.Module]] = {
    "conv": conv,
    "depthwise": depthwise,
    "transposed": transposed,
    "shuffle": Shuffle,
    "split": Split,
    "gate": Gate,
    "glu": Glu,
    "pixels": PixelShuffle,
    "attention": Attention,
    "torch_attention": TorchAttention,
    "pool": Pool,
    "pad": Pad,
    "fixed": Fixed,
}
"""Name -> maker of a step from input channels and a variant."""

BACK = ("add", "cat", "multiply", "again")
"""Steps that reach back: to the output of an earlier step, or to the step itself."""

Recipe = list[tuple[str, int]]
steps = st.tuples(st.sampled_from([*STEPS, *BACK, "conv", "add"]), st.integers(0, 23))


class RandomNet(nn.Module):
    """The network of a recipe, with a head behind it."""

    def __init__(self, recipe: Recipe, head: int) -> None:
        super().__init__()
        self.recipe, self.steps, self.fits = recipe, nn.ModuleList([conv(3, 4)]), nn.ModuleDict()
        image = SINGLE
        x = self.steps[0](image)
        seen = [image, x]
        for number, (name, variant) in enumerate(recipe):
            if name in STEPS:
                self.steps.append(STEPS[name](x.shape[1], variant))
            else:
                self.steps.append(nn.Identity())
                earlier = seen[variant % len(seen)]
                wanted = self._input_of(variant, seen) if name == "again" else earlier
                if name != "cat" and wanted.shape[1] != x.shape[1]:
                    self.fits[str(number)] = nn.Conv2d(x.shape[1], wanted.shape[1], 1)
            x = self._step(number, x, seen)
            seen.append(x)
        self.head = (nn.Linear(x[0].numel(), 5), nn.Linear(x.shape[1], 5), nn.Conv2d(x.shape[1], 5, 1))[head]

    def _input_of(self, variant: int, seen: list[Tensor]) -> Tensor:
        return seen[variant % (len(seen) - 1)]

    def _step(self, number: int, x: Tensor, seen: list[Tensor]) -> Any:
        name, variant = self.recipe[number]
        if name in STEPS:
            return self.steps[number + 1](x)
        if str(number) in self.fits:
            x = self.fits[str(number)](x)
        if name == "again":
            return self.steps[variant % (len(seen) - 1)](x)
        earlier = F.adaptive_avg_pool2d(seen[variant % len(seen)], (x.shape[2], x.shape[3]))
        if name == "cat":
            return torch.cat([x, earlier], 1)
        return x + earlier if name == "add" else x * earlier

    def forward(self, image: Tensor) -> Any:
        x = self.steps[0](image)
        seen = [image, x]
        for number in range(len(self.recipe)):
            x = self._step(number, x, seen)
            seen.append(x)
        if isinstance(self.head, nn.Conv2d):
            return self.head(x)
        return self.head(x.flatten(1) if self.head.in_features != x.shape[1] else x.mean((2, 3)))


def some_candidates(space: SearchSpace, seed: int) -> list[Candidate]:
    rng = np.random.default_rng(seed)
    mixed = [tuple(int(level) for level in rng.integers(0, space.num_levels)) for _ in range(2)]
    extremes = tuple(int(level) for level in rng.integers(0, 2, len(space.groups)) * (space.num_levels - 1))
    return [space.smallest, extremes, *mixed]


def check(recipe: Recipe, head: int, seed: int) -> SearchSpace | None:
    """All promises of a space, on one network; None where nothing in it can be cut."""
    model = randomised(RandomNet(recipe, head), seed).double()
    before = copy.deepcopy(model.state_dict())
    try:
        space = trace(model, IMAGE, align=1, max_levels=64)
    except UserError as error:
        if not str(error).startswith("Nothing in RandomNet can be cut"):
            raise
        return None
    with torch.no_grad():
        shape = model(IMAGE).shape
    for candidate in some_candidates(space, seed):
        assert space.verify(candidate) <= 1e-5, candidate
        subnet, costs = space.materialise(candidate), space.costs(candidate)
        assert costs.params == sum(p.numel() for p in subnet.parameters())
        with plain_kernels(), torch.no_grad(), FlopCounterMode(display=False) as counter:
            assert copy.deepcopy(subnet).to("meta")(IMAGE.to("meta")).shape == shape
        assert 2 * costs.macs == counter.get_total_flops(), candidate
    subnet.train()(IMAGE).square().sum().backward()
    assert any(p.grad is not None and p.grad.any() for p in subnet.parameters())
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    return space


@given(st.lists(steps, min_size=1, max_size=7), st.integers(0, 2), st.integers(0, 2**16))
def test_random_networks(recipe: Recipe, head: int, seed: int) -> None:
    space = check(recipe, head, seed)  # asserts what must hold for every one of them
    assert space is None or space.groups


def test_most_random_networks_can_be_cut() -> None:
    """The property above says nothing where a space is empty."""
    rng = np.random.default_rng(0)
    names = [*STEPS, *BACK]
    spaces = [
        check([(names[i], int(v)) for i, v in rng.integers((0, 0), (len(names), 24), (4, 2))], 1, 0) for _ in range(20)
    ]
    assert sum(space is not None for space in spaces) >= 16
