"""Small networks, one per pattern that a tracer gets wrong easily."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random norm weights, biases and running statistics: with fresh ones (1, 0, 0, 1) wrong cuts stay unseen."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if not tensor.is_floating_point():
                continue
            if "var" in name:
                tensor.uniform_(0.5, 2, generator=generator)
            elif tensor.dim() <= 1:
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.5 + ("weight" in name))
            else:
                fan_in = tensor[0].numel()
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * (2 / fan_in) ** 0.5)
    return model.eval()


def conv(into: int, out: int, kernel: int = 3, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(into, out, kernel, padding=kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(out), nn.ReLU()
    )


class Plain(nn.Sequential):
    """Two convolutions and a linear layer behind a flattened map."""

    def __init__(self) -> None:
        super().__init__(conv(3, 16), conv(16, 24), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(96, 10))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = conv(3, 16), conv(16, 16), conv(16, 16)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        x = x + self.b(self.a(x))
        return self.head(x.mean((2, 3)))


class Dense(nn.Module):
    """Concatenation with the network's input and with earlier outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv(3, 16), conv(19, 16), nn.Conv2d(35, 5, 1)

    def forward(self, x: Tensor) -> Any:
        y = torch.cat([x, self.a(x)], 1)
        return self.head(torch.cat([self.b(y), y], 1))


class InvertedResidual(nn.Module):
    """Depthwise convolution (multiplier 2) between pointwise ones, squeeze-excite on it."""

    def __init__(self) -> None:
        super().__init__()
        self.expand, self.depthwise = conv(3, 16, 1), conv(16, 32, 3, groups=16)
        self.squeeze, self.excite = nn.Conv2d(32, 8, 1), nn.Conv2d(8, 32, 1)
        self.project = nn.Conv2d(32, 6, 1)

    def forward(self, x: Tensor) -> Any:
        x = self.depthwise(self.expand(x))
        gate = self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1))))
        return self.project(x * gate.sigmoid())


class Grouped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = conv(3, 16), conv(16, 32, groups=4), nn.Conv2d(32, 5, 1)

    def forward(self, x: Tensor) -> Any:
        return self.c(self.b(self.a(x)))


class Shuffle(nn.Module):
    """Grouped convolutions with a channel shuffle between them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = conv(3, 24), conv(24, 24, 1, groups=3), conv(24, 24, 1, groups=3)
        self.head = nn.Conv2d(24, 5, 1)

    def forward(self, x: Tensor) -> Any:
        x = self.b(self.a(x))
        n, c, h, w = x.shape
        x = x.view(n, 3, c // 3, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.head(self.c(x))


class Split(nn.Module):
    """Chunks that go different ways, and a gated pair."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.head = conv(3, 32), conv(16, 16), nn.Conv2d(32, 16, 1), nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Any:
        left, right = self.a(x).chunk(2, 1)
        y = self.c(torch.cat([left, self.b(right)], 1))
        return self.head(F.glu(y, 1))


class Norms(nn.Module):
    """Group norm and layer norm over pruned channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Conv2d(3, 16, 3), nn.GroupNorm(4, 16), nn.Conv2d(16, 24, 3)
        self.layer_norm, self.head = nn.LayerNorm(24), nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Any:
        x = self.b(F.gelu(self.norm(self.a(x))))
        return self.head(self.layer_norm(x.permute(0, 2, 3, 1)).mean((1, 2)))


class Attention(nn.Module):
    """Self-attention whose sizes come from shapes and from one attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Linear(12, 32), nn.LayerNorm(32)
        self.qkv, self.out = nn.Linear(32, 3 * 32), nn.Linear(32, 32)
        self.up, self.down, self.head = nn.Linear(32, 64), nn.Linear(64, 32), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Any:
        x = self.embed(x)
        n, length, _ = x.shape
        q, k, v = self.qkv(self.norm(x)).view(n, length, 3, -1, 8).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.softmax(q @ k.transpose(-2, -1) * 8**-0.5, -1) @ v
        x = x + self.out(y.transpose(1, 2).reshape(n, length, -1))
        x = x + self.down(F.gelu(self.up(x)))
        return self.head(x.mean(1))


class UnequalPieces(nn.Module):
    """One layer makes two pieces of unequal size for two others."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.both = conv(3, 8), conv(3, 16), conv(3, 24)
        self.c, self.d, self.head = conv(8, 16), conv(16, 16), nn.Conv2d(16, 5, 1)

    def forward(self, x: Tensor) -> Any:
        a, b, both = self.a(x), self.b(x), self.both(x)
        first, second = both.split([a.shape[1], b.shape[1]], 1)
        return self.head(self.c(a * first) + self.d(b * second) * (b * both[:, a.shape[1] :]).mean(1, keepdim=True))


class Middle(nn.Module):
    """A slice of fixed place: what is cut before it would move other channels into it, at the same size."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv(3, 24), conv(8, 16), nn.Conv2d(40, 5, 1)

    def forward(self, x: Tensor) -> Any:
        x = self.a(x)
        return self.head(torch.cat([x, self.b(x[:, 4:12])], 1))


class SharedByHeads(nn.Module):
    """All heads share a norm over their width, a rotation and a table of relative positions: heads are the units."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.qkv, self.norm = nn.Linear(12, 16), nn.Linear(16, 96), nn.LayerNorm(8)
        self.table, self.out, self.head = nn.Parameter(torch.randn(7, 8)), nn.Linear(32, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Any:
        x = self.embed(x)
        n, length, _ = x.shape
        q, k, v = self.qkv(x).view(n, length, 3, -1, 8).permute(2, 0, 3, 1, 4).unbind(0)
        angles = torch.arange(56.0, device=x.device).view(7, 8)
        q = self.norm(q) * angles.cos()
        scores = q @ k.transpose(-2, -1) + q @ self.table.transpose(0, 1)
        y = F.softmax(scores, -1) @ v
        return self.head((x + self.out(y.transpose(1, 2).reshape(n, length, -1))).mean(1))


class BiasOfHeads(nn.Module):
    """Makes a bias per head, by a method of its own: its code runs, but it is never called as a module."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.mlp = 4, nn.Sequential(nn.Linear(1, 12), nn.ReLU(), nn.Linear(12, 4))

    def bias(self, x: Tensor) -> Any:
        steps = torch.arange(float(x.shape[1]), device=x.device)
        table = self.mlp((steps - steps[:, None]).unsqueeze(-1)).view(-1, self.num_heads)
        return table.view(len(steps), len(steps), self.num_heads).permute(2, 0, 1)


class MethodOfAnother(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.relative, self.head = nn.Linear(12, 96), BiasOfHeads(), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Any:
        n, length, _ = x.shape
        q, k, v = self.qkv(x).view(n, length, 3, -1, 8).permute(2, 0, 3, 1, 4).unbind(0)
        scores = q @ k.transpose(-2, -1) + self.relative.bias(x)
        return self.head((F.softmax(scores, -1) @ v).transpose(1, 2).reshape(n, length, -1).mean(1))


class OneKeyForAll(nn.Module):
    """A product over heads with what all heads share, stored once each: the width of heads is the unit."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.head = nn.Linear(12, 24), nn.Linear(12, 8), nn.Linear(12, 10), nn.Linear(30, 5)

    def forward(self, x: Tensor) -> Any:
        n, length, _ = x.shape
        q = self.q(x).view(n, length, 3, -1).transpose(1, 2)
        shared = (self.k(x).softmax(1).transpose(1, 2) @ self.v(x)).unsqueeze(1)
        return self.head((q @ shared).transpose(1, 2).reshape(n, length, -1).mean(1))


class Baked(nn.Module):
    """Python code that holds the width of one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv(3, 16), conv(16, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Any:
        x = self.b(self.a(x))
        return self.head(x.view(x.shape[0], 16, -1).mean(2))


class Transposed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.up = conv(3, 16), nn.ConvTranspose2d(16, 16, 2, 2)
        self.grouped, self.depthwise = (
            nn.ConvTranspose2d(16, 24, 2, 2, groups=4),
            nn.ConvTranspose2d(24, 24, 1, groups=24),
        )
        self.head = nn.Conv2d(24, 5, 1)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.depthwise(self.grouped(self.up(self.a(x)))))


class Shared(nn.Module):
    """One convolution called twice, one linear layer tied to another."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.twice = conv(3, 16), conv(16, 16)
        self.up, self.down, self.head = nn.Linear(16, 24, bias=False), nn.Linear(24, 16), nn.Linear(16, 5)
        self.again = nn.Linear(16, 24, bias=False)
        self.again.weight = self.up.weight

    def forward(self, x: Tensor) -> Any:
        x = self.twice(self.twice(self.stem(x))).mean((2, 3))
        x = self.down(F.relu(self.up(x)))
        return self.head(self.down(F.relu(self.again(x))))


class AuxiliaryHead(nn.Module):
    """A head that runs only in training."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head, self.auxiliary = conv(3, 16), conv(16, 24), nn.Linear(24, 5), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Any:
        x = self.a(x)
        main = self.head(self.b(x).mean((2, 3)))
        return (main, self.auxiliary(x.mean((2, 3)))) if self.training else main


class Exotic(nn.Module):
    """An op without a rule."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv(3, 16), conv(16, 24), nn.Conv2d(24, 5, 1)

    def forward(self, x: Tensor) -> Any:
        return self.head(torch.fft.fft(self.b(self.a(x)), dim=1).real)


class ShuffledTwice(nn.Module):
    """A square shuffle of what was shuffled: which axis shrinks cannot be told from labels alone."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv(3, 16), conv(16, 16), nn.Conv2d(16, 5, 1)

    def forward(self, x: Tensor) -> Any:
        x = self.a(x)
        for _ in range(2):
            x = x.unflatten(1, (4, x.shape[1] // 4)).transpose(1, 2).flatten(1, 2)
        return self.head(self.b(x))


class Constants(nn.Module):
    """Slices at a fixed channel, and halves that fit only while two layers are cut alike."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = conv(3, 16), conv(16, 16), conv(16, 16)
        self.d, self.head = conv(32, 16), nn.Conv2d(16, 5, 1)

    def forward(self, x: Tensor) -> Any:
        x = self.a(x)
        x = torch.cat([x[:, :8].tanh(), x[:, 8:]], 1)
        y = torch.cat([self.b(x), self.c(x)], 1)
        return self.head(self.d(y.unflatten(1, (2, -1)).sigmoid().flatten(1, 2)))


class Pixels(nn.Module):
    """Channels that become pixels and back, shuffled on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv(3, 32), conv(32, 12), nn.Conv2d(12, 5, 1)

    def forward(self, x: Tensor) -> Any:
        x = F.pixel_unshuffle(F.pixel_shuffle(self.a(x), 2), 2)
        return self.head(F.channel_shuffle(self.b(x), 3))


class SpatialGate(nn.Module):
    """Mean and largest value over channels gate the pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.gate, self.head = conv(3, 16), nn.Conv2d(2, 1, 3, padding=1), nn.Conv2d(16, 5, 1)

    def forward(self, x: Tensor) -> Any:
        x = self.a(x)
        gate = self.gate(torch.cat([x.mean(1, keepdim=True), x.max(1, keepdim=True)[0]], 1))
        return self.head(x * gate.sigmoid())


class Windows(nn.Module):
    """Windows cut out as columns and put back, and windows as a dimension of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.mix = conv(3, 16), conv(16, 12), nn.Conv1d(48, 32, 1)
        self.c, self.head = conv(8, 16), nn.Conv2d(16, 5, 1)

    def forward(self, x: Tensor) -> Any:
        x = self.b(self.a(x).unfold(2, 3, 1).amax(-1).unfold(3, 3, 1).sum(-1))
        x = F.fold(self.mix(F.unfold(x, 2, stride=2)), x.shape[2:], 2, stride=2)
        return self.head(self.c(x))


class ChannelAttention(nn.Module):
    """A convolution over the channels of pooled maps gates them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.over, self.head = conv(3, 16), nn.Conv1d(1, 1, 3, padding=1), nn.Conv2d(16, 5, 1)

    def forward(self, x: Tensor) -> Any:
        x = self.a(x)
        gate = self.over(x.mean((2, 3)).unsqueeze(1)).sigmoid()
        return self.head(x * gate.view(x.shape[0], -1, 1, 1))


class StandardisedByBatchNorm(nn.Module):
    """Kernels standardised over their input channels by the op of batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv(3, 16), nn.Conv2d(16, 24, 3), nn.Conv2d(24, 5, 1)

    def forward(self, x: Tensor) -> Any:
        kernel = self.b.weight.flatten(1).unsqueeze(0)
        kernel = F.batch_norm(kernel, None, None, training=True).view_as(self.b.weight)
        return self.head(F.conv2d(self.a(x), kernel, self.b.bias).relu())


class ReplacedBuffer(nn.Module):
    """Code that replaces a buffer: the memory of the old one goes to what is made next."""

    table: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.zeros(1, 4))
        self.a, self.b, self.head = nn.Linear(12, 16), nn.Linear(16, 24), nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Any:
        if self.table.shape[1] != x.shape[1]:
            self.table = torch.ones(1, x.shape[1], device=x.device)
        x = F.relu(self.b(F.relu(self.a(x)))) * self.table[..., None]
        return self.head(x.mean(1))


class Normalised(nn.Module):
    """Tokens looked up by index, weights divided by their norm, cosine similarity to class vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = weight_norm(nn.Linear(12, 16)), weight_norm(nn.Linear(16, 24))
        self.classes, self.scale = nn.Linear(24, 5), nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Any:
        x = self.b(F.relu(self.a(x)))[:, torch.tensor([0, 3], device=x.device)]
        return self.scale * F.linear(F.normalize(x, dim=-1), F.normalize(self.classes.weight))


IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
TOKENS = torch.randn(2, 7, 12, generator=torch.Generator().manual_seed(0))
NETS: dict[str, tuple[type[nn.Module], Tensor]] = {
    "plain": (Plain, IMAGE),
    "residual": (Residual, IMAGE),
    "dense": (Dense, IMAGE),
    "inverted_residual": (InvertedResidual, IMAGE),
    "grouped": (Grouped, IMAGE),
    "shuffle": (Shuffle, IMAGE),
    "split": (Split, IMAGE),
    "norms": (Norms, IMAGE),
    "attention": (Attention, TOKENS),
    "unequal_pieces": (UnequalPieces, IMAGE),
    "middle": (Middle, IMAGE),
    "shared_by_heads": (SharedByHeads, TOKENS),
    "method_of_another": (MethodOfAnother, TOKENS),
    "one_key_for_all": (OneKeyForAll, TOKENS),
    "baked": (Baked, IMAGE),
    "transposed": (Transposed, IMAGE),
    "shared": (Shared, IMAGE),
    "auxiliary": (AuxiliaryHead, IMAGE),
    "exotic": (Exotic, IMAGE),
    "shuffled_twice": (ShuffledTwice, IMAGE),
    "constants": (Constants, IMAGE),
    "pixels": (Pixels, IMAGE),
    "spatial_gate": (SpatialGate, IMAGE),
    "windows": (Windows, IMAGE),
    "channel_attention": (ChannelAttention, IMAGE),
    "standardised_by_batch_norm": (StandardisedByBatchNorm, IMAGE),
    "replaced_buffer": (ReplacedBuffer, TOKENS),
    "normalised": (Normalised, TOKENS),
}
