"""Small residual networks for the demo, the tests and the benchmarks: seconds to train on a CPU.

    autoprune search --model autoprune.nets:digits_resnet --data digits ...

Shape letters: N batch, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoprune.search_spaces.errors import UserError


class Block(nn.Module):
    """Two 3x3 convolutions with BatchNorm and a shortcut, which is a 1x1 convolution where the shape changes.

    Source: He et al. 2016, "Deep Residual Learning for Image Recognition", arXiv:1512.03385, fig. 2 and option B.
    """

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != channels:
            conv = nn.Conv2d(in_channels, channels, 1, stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        """[N, in_channels, H, W] -> [N, channels, H / stride, W / stride]."""
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class SmallResNet(nn.Module):
    """Stem, stages of blocks (each stage after the first at half the resolution), mean over H and W, classifier."""

    def __init__(
        self, num_classes: int, in_channels: int, widths: Sequence[int], blocks: Sequence[int], stem_stride: int
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_channels, widths[0], 3, stem_stride, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(widths[0])
        stages, channels = [], widths[0]
        for stage, (width, count) in enumerate(zip(widths, blocks, strict=True)):
            strides = [1 if stage == 0 else 2] + [1] * (count - 1)
            inputs = [channels] + [width] * (count - 1)
            stages.append(nn.Sequential(*(Block(i, width, s) for i, s in zip(inputs, strides, strict=True))))
            channels = width
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """[N, in_channels, H, W] -> logits [N, num_classes]."""
        x = self.stages(F.relu(self.bn(self.stem(x))))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


def small_resnet(
    num_classes: int = 10,
    in_channels: int = 1,
    widths: Sequence[int] = (16, 32, 64),
    blocks: Sequence[int] = (2, 2, 1),
    stem_stride: int = 1,
    seed: int = 0,
) -> SmallResNet:
    """Return a residual net of `blocks[i]` blocks with `widths[i]` channels, its weights drawn from `seed`.

    The global random state is left alone. The defaults make 100,986 parameters.

    Raises:
        UserError: `widths` and `blocks` of different or no length, or a number below 1 in them.
    """
    if not 0 < len(widths) == len(blocks) or min(*widths, *blocks) < 1:
        raise UserError(f"A net needs a width and a number of blocks, from 1 on, a stage: got {widths} and {blocks}.")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return SmallResNet(num_classes, in_channels, widths, blocks, stem_stride)


def digits_resnet(num_classes: int = 10, in_channels: int = 1, seed: int = 0) -> SmallResNet:
    """Return the net for 8 x 8 digits: one block a stage, 77,754 parameters."""
    return small_resnet(num_classes, in_channels, blocks=(1, 1, 1), seed=seed)


def fashion_resnet(num_classes: int = 10, in_channels: int = 1, seed: int = 0) -> SmallResNet:
    """Return the net for 28 x 28 images: five blocks behind a stem of stride 2, 100,986 parameters."""
    return small_resnet(num_classes, in_channels, stem_stride=2, seed=seed)


def fashion_mobilenet(num_classes: int = 10, in_channels: int = 1, seed: int = 0) -> nn.Module:
    """Return a small MobileNetV2 for 28 x 28 images: seven inverted residual blocks, depthwise convolutions.

    Source: Sandler et al. 2018, "MobileNetV2", arXiv:1801.04381, as in torchvision; narrower and with fewer strides.
    """
    from torchvision.models import MobileNetV2  # not needed for the other nets

    settings = [[1, 32, 1, 1], [4, 48, 2, 2], [4, 64, 2, 2], [4, 96, 2, 1]]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        net: nn.Module = MobileNetV2(num_classes, width_mult=0.5, inverted_residual_setting=settings, dropout=0.0)
        stem = net.get_submodule("features.0")
        assert isinstance(stem, nn.Sequential)
        stem[0] = nn.Conv2d(in_channels, 16, 3, 2, padding=1, bias=False)
    return net
