"""Networks that people use: every group offered, exact at every ratio, costs equal to the counters."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torchvision
from torch.utils.flop_counter import FlopCounterMode

from autoprune.search_spaces import trace
from tests.search_spaces.nets import randomised

# name -> (image size, groups, units, smallest reachable share of the dense MACs, rounded up)
NETWORKS = {
    "resnet18": (64, 12, 2880, 0.02),
    "resnet50": (64, 37, 11456, 0.01),
    "vgg16_bn": (32, 15, 12416, 0.01),
    "mobilenet_v2": (64, 25, 9128, 0.02),
    "densenet121": (64, 120, 10240, 0.02),
    "efficientnet_b0": (64, 40, 11404, 0.02),
    "vit_b_16": (224, 13, 36876, 0.01),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_network(name: str) -> None:
    size, num_groups, num_units, smallest = NETWORKS[name]
    model = randomised(torchvision.models.get_model(name, weights=None))
    image = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
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
