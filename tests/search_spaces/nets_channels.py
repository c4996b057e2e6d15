"""Patterns of image and sequence networks: who shares channels with whom, and in what order they come."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.search_spaces.nets import IMAGE, conv


class C2f(nn.Module):
    """YOLOv8's block: two halves, the second through bottlenecks whose outputs are all kept and joined."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.enter = conv(3, 12), conv(12, 32, 1)
        self.inner = nn.ModuleList(nn.Sequential(conv(16, 16), conv(16, 16)) for _ in range(2))
        self.leave, self.head = conv(64, 20, 1), nn.Conv2d(20, 5, 1)

    def forward(self, x: Tensor) -> Any:
        pieces = list(self.enter(self.stem(x)).chunk(2, 1))
        for block in self.inner:
            pieces.append(pieces[-1] + block(pieces[-1]))
        return self.head(self.leave(torch.cat(pieces, 1)))


class Slices(nn.Module):
    """Quarters taken by slices whose bounds are made from the width (partial convolution)."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.partial, self.b, self.head = conv(3, 32), conv(8, 8), conv(32, 20), nn.Conv2d(20, 5, 1)

    def forward(self, x: Tensor) -> Any:
        x = self.a(x)
        quarter = x.shape[1] // 4
        x = torch.cat([self.partial(x[:, :quarter]), x[:, quarter : 2 * quarter], x[:, 2 * quarter :]], 1)
        return self.head(self.b(x))


class Upsampler(nn.Module):
    """Space to depth, and sub-pixel convolution by views instead of the named op."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.head = conv(3, 12), conv(48, 32), conv(8, 10), nn.Conv2d(10, 5, 1)

    def forward(self, x: Tensor) -> Any:
        x = self.b(F.pixel_unshuffle(self.a(x), 2))
        n, c, h, w = x.shape
        x = x.view(n, c // 4, 2, 2, h, w).permute(0, 1, 4, 2, 5, 3).reshape(n, c // 4, 2 * h, 2 * w)
        return self.head(self.c(x))


class GroupNormGrouped(nn.Module):
    """Group norm in 6 groups into a convolution in 4: units are what both divide."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b, self.head = (
            nn.Conv2d(3, 48, 3),
            nn.GroupNorm(6, 48),
            conv(48, 24, groups=4),
            conv(24, 5),
        )

    def forward(self, x: Tensor) -> Any:
        return self.head(self.b(self.norm(self.a(x)))).mean((2, 3))


class Flattened(nn.Module):
    """A linear layer over channels x height x width, in both orders, and one over the pixels (mixer)."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.mix, self.b = conv(3, 12), nn.Linear(64, 40), nn.Linear(40, 64)
        self.c = conv(12, 14)
        self.d, self.e, self.head = nn.Linear(14 * 64, 20), nn.Linear(14 * 64, 20), nn.Linear(20, 5)

    def forward(self, x: Tensor) -> Any:
        x = self.a(x)
        x = x + self.b(F.gelu(self.mix(x.flatten(2)))).view_as(x)
        x = self.c(x)
        y = self.d(x.flatten(1)) + self.e(x.permute(0, 2, 3, 1).flatten(1))
        return self.head(y.relu())


class Functional(nn.Module):
    """Functional calls on raw parameters; frozen parameters stay frozen and are cut."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel, self.bias = nn.Parameter(torch.randn(16, 3, 3, 3)), nn.Parameter(torch.randn(16))
        self.scale = nn.Parameter(torch.randn(1, 16, 1, 1), requires_grad=False)
        self.matrix = nn.Parameter(torch.randn(5, 16), requires_grad=False)
        self.shift: Tensor
        self.register_buffer("shift", torch.randn(16, 1, 1))

    def forward(self, x: Tensor) -> Any:
        x = F.conv2d(x, self.kernel, self.bias, padding=1) * self.scale + self.shift
        return F.linear(x.relu().mean((2, 3)), self.matrix)


class Sequence1d(nn.Module):
    """Convolutions over time, gated, with a skip."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.gated, self.skip = (
            nn.Conv1d(12, 16, 3, padding=1),
            nn.Conv1d(16, 32, 3, padding=2, dilation=2),
            nn.Conv1d(16, 16, 1),
        )
        self.norm, self.up, self.head = nn.BatchNorm1d(16), nn.ConvTranspose1d(16, 10, 4, 2, 1), nn.Conv1d(10, 5, 1)

    def forward(self, x: Tensor) -> Any:
        x = self.a(x.transpose(1, 2))
        a, b = self.gated(x).chunk(2, 1)
        x = self.norm(x + self.skip(a.tanh() * b.sigmoid()))
        return self.head(F.avg_pool1d(self.up(x), 2))


class Volume(nn.Module):
    """Three-dimensional convolutions, (2+1)-factorised, pooled."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm = nn.Conv3d(3, 16, (1, 3, 3), padding=(0, 1, 1)), nn.BatchNorm3d(16)
        self.b, self.c = nn.Conv3d(16, 12, (3, 1, 1), padding=(1, 0, 0)), nn.Conv3d(12, 12, 3, padding=1, groups=12)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Any:
        x = F.max_pool3d(self.norm(self.a(x)).relu(), (1, 2, 2))
        return self.head(F.adaptive_avg_pool3d(self.c(self.b(x)), 1).flatten(1))


class WidthSums(nn.Module):
    """Norms over pruned channels, spelled by hand and by name: response norm, instance norm, GRN."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = conv(3, 16), conv(16, 20), conv(20, 24), nn.Conv2d(24, 5, 1)
        self.instance = nn.InstanceNorm2d(20, affine=True, track_running_stats=True)
        self.gamma, self.beta = nn.Parameter(torch.randn(1, 24, 1, 1)), nn.Parameter(torch.randn(1, 24, 1, 1))

    def forward(self, x: Tensor) -> Any:
        x = self.instance(self.b(self.a(x)))
        x = self.c(F.instance_norm(x))
        size = x.norm(p=2, dim=(2, 3), keepdim=True)
        return self.d(x + self.gamma * (x * (size / (size.mean(1, keepdim=True) + 1e-6))) + self.beta)


class ResponseNorm(nn.Module):
    """Local response norm looks at a window of neighbouring channels, which are others after a cut."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b, self.head = conv(3, 16), nn.LocalResponseNorm(5), conv(16, 12), nn.Conv2d(12, 5, 1)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.b(self.norm(self.a(x))))


VOLUME = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
TIMES = torch.randn(2, 8, 12, generator=torch.Generator().manual_seed(0))
NETS: dict[str, tuple[Any, Any]] = {
    "c2f": (C2f, IMAGE),
    "slices": (Slices, IMAGE),
    "upsampler": (Upsampler, IMAGE),
    "group_norm_grouped": (GroupNormGrouped, IMAGE),
    "flattened": (Flattened, IMAGE),
    "functional": (Functional, IMAGE),
    "sequence1d": (Sequence1d, TIMES),
    "volume": (Volume, VOLUME),
    "width_sums": (WidthSums, IMAGE),
    "response_norm": (ResponseNorm, IMAGE),
}
