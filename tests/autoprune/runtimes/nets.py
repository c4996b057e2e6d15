"""A small network with what makes graphs depend on widths: depthwise convolution, flattening, attention heads."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from autoprune.search_spaces import SearchSpace, trace


class SmallNet(nn.Module):
    """[N, 3, 32, 32] -> [N, 5]: convolution, depthwise convolution, attention over 16 positions, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, stride=4, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.depthwise = nn.Conv2d(16, 16, 3, stride=2, padding=1, groups=16)
        self.mix = nn.Conv2d(16, 24, 1)
        self.attention = nn.MultiheadAttention(24, 4, batch_first=True)
        self.hidden = nn.Linear(24 * 16, 20)
        self.head = nn.Linear(20, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mix(torch.relu(self.depthwise(torch.relu(self.norm(self.stem(x))))))
        tokens = x.flatten(2).transpose(1, 2)
        tokens = tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0]
        logits: Tensor = self.head(torch.relu(self.hidden(tokens.transpose(1, 2).flatten(1))))
        return logits


def small_net() -> SmallNet:
    """A network in evaluation mode whose norm is not that of a fresh one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = SmallNet()
        nn.init.uniform_(net.norm.weight, 0.5, 1.5)
        nn.init.normal_(net.norm.running_mean)  # type: ignore[arg-type]
        nn.init.uniform_(net.norm.running_var, 0.5, 2.0)  # type: ignore[arg-type]
    return net.eval()


def image(batch: int = 1) -> Tensor:
    """A batch of random images."""
    return torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def subnets(net: nn.Module, number: int) -> tuple[SearchSpace, list[nn.Module]]:
    """Different subnets of `net`, each group at a level of its own."""
    space = trace(net, (image(),))
    candidates = [
        tuple((5 * i + 3 * k) % (len(g.levels) - 1) for k, g in enumerate(space.groups)) for i in range(number)
    ]
    return space, [space.materialise(candidate).eval() for candidate in candidates]
