"""Networks that people use: every group offered, exact at every ratio, costs equal to the counters."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from autoprune.search_spaces import trace
from tests.search_spaces.memory import PeakMemory
from tests.search_spaces.nets import randomised

# name -> (image size, groups, units, smallest reachable share of the dense MACs, rounded up)
NETWORKS = {
    "resnet18": (64, 12, 2880, 0.02),
    "resnet50": (64, 37, 11456, 0.01),
    "vgg16_bn": (32, 15, 12416, 0.01),
    "mobilenet_v2": (64, 25, 9128, 0.02),
    "shufflenet_v2_x0_5": (64, 20, 1927, 0.05),
    "densenet121": (64, 120, 10240, 0.02),
    "efficientnet_b0": (64, 40, 11404, 0.02),
    "vit_b_16": (224, 13, 36876, 0.01),  # heads and width in step, see docs/tracing.md
    "swin_t": (64, 16, 17709, 0.02),
    "timm:vit_tiny_patch16_224": (64, 25, 9444, 0.02),  # heads on their own
    "timm:convnext_atto": (64, 16, 7960, 0.01),
    "timm:coatnet_0_rw_224": (64, 34, 21746, 0.01),
}


def build(name: str, size: int) -> nn.Module:
    """The network with random weights, norms and statistics."""
    library, _, model = name.rpartition(":")
    if not library:
        return randomised(torchvision.models.get_model(model, weights=None))
    timm = pytest.importorskip("timm")
    return randomised(timm.create_model(model, **({} if "convnext" in model else {"img_size": size})))


def picture(size: int) -> Tensor:
    """One random image."""
    return torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", NETWORKS)
def test_network(name: str) -> None:
    size, num_groups, num_units, smallest = NETWORKS[name]
    model, image = build(name, size), picture(size)
    space = trace(model, image)
    assert (len(space.groups), sum(g.num_units for g in space.groups)) == (num_groups, num_units)
    assert not space.unknown_ops
    assert space.costs(space.smallest).macs <= smallest * space.costs(space.dense).macs
    rng = np.random.default_rng(0)
    mixed = tuple(int(level) for level in rng.integers(0, space.num_levels))
    for candidate in (space.candidate(0.9), space.candidate(0.5), space.candidate(0.1), mixed):
        assert space.verify(candidate) <= 1e-5
        subnet = space.materialise(candidate, share=True)
        costs = space.costs(candidate)
        assert costs.params == sum(p.numel() for p in subnet.parameters())
        torch.backends.mha.set_fastpath_enabled(False)  # the counter has no formula for the fused kernel
        try:
            with torch.no_grad(), FlopCounterMode(display=False) as counter:
                assert subnet.to("meta")(image.to("meta")).shape == (1, 1000)
        finally:
            torch.backends.mha.set_fastpath_enabled(True)
        assert 2 * costs.macs == counter.get_total_flops()


@pytest.mark.parametrize("name", ["resnet50", "mobilenet_v2", "shufflenet_v2_x0_5", "densenet121", "efficientnet_b0"])
def test_memory_is_what_the_subnet_allocates(name: str) -> None:
    size = NETWORKS[name][0]
    image = picture(size)
    space = trace(build(name, size), image)
    for candidate in (space.dense, space.candidate(0.5)):
        subnet = space.materialise(candidate, share=True)
        with torch.no_grad(), PeakMemory() as memory:
            subnet(image)
        assert space.costs(candidate).peak_bytes == pytest.approx(memory.peak, rel=0.1)
