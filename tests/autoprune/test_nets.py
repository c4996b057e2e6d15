"""The built-in networks: size, reproducible weights, no trace in the global random state."""

from __future__ import annotations

import pytest
import torch

from autoprune.nets import SmallResNet, digits_resnet, fashion_resnet, small_resnet
from autoprune.search_spaces.errors import UserError


def num_params(net: SmallResNet) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def test_sizes() -> None:
    assert num_params(digits_resnet()) == 77_754
    assert num_params(fashion_resnet()) == num_params(small_resnet()) == 100_986
    assert digits_resnet()(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    assert fashion_resnet(num_classes=7, in_channels=3)(torch.zeros(2, 3, 28, 28)).shape == (2, 7)


def test_strides() -> None:
    maps: list[tuple[int, ...]] = []
    net = fashion_resnet()
    for stage in net.stages:
        stage.register_forward_hook(lambda module, inputs, output: maps.append(tuple(output.shape[1:])))
    net(torch.zeros(1, 1, 28, 28))
    assert maps == [(16, 14, 14), (32, 7, 7), (64, 4, 4)]


def test_weights_depend_on_the_seed_only() -> None:
    before = torch.get_rng_state()
    one = digits_resnet(seed=3).state_dict()
    torch.rand(2)
    same, other = digits_resnet(seed=3).state_dict(), digits_resnet(seed=4).state_dict()
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["stem.weight"], other["stem.weight"])
    torch.set_rng_state(before)
    digits_resnet(seed=5)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("widths", "blocks"), [((8, 16), (1,)), ((), ()), ((8, 0), (1, 1)), ((8,), (0,))])
def test_stages_must_make_sense(widths: tuple[int, ...], blocks: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="needs a width and a number of blocks"):
        small_resnet(widths=widths, blocks=blocks)
