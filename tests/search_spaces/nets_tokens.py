"""Patterns of token networks: attention in several spellings, norms over the width, positions, look-ups."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.search_spaces.nets import TOKENS


class SingleHead(nn.Module):
    """One head whose width can be cut: the scale 1 / sqrt(width) of the fused op follows what is kept."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.q, self.k, self.v = nn.Linear(12, 20), nn.Linear(20, 16), nn.Linear(20, 16), nn.Linear(20, 24)
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Any:
        x = self.embed(x)
        y = F.scaled_dot_product_attention(self.q(x)[:, None], self.k(x)[:, None], self.v(x)[:, None])
        return self.head(y[:, 0])


class GroupedQuery(nn.Module):
    """Six query heads on two key heads, causal, by the fused op; and a second layer with a mask and a given scale."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.q, self.k, self.v = nn.Linear(12, 20), nn.Linear(20, 24), nn.Linear(20, 8), nn.Linear(20, 8)
        self.out, self.q2, self.kv2, self.head = (
            nn.Linear(24, 20),
            nn.Linear(20, 24),
            nn.Linear(20, 48),
            nn.Linear(24, 5),
        )

    def heads(self, x: Tensor) -> Any:
        return x.unflatten(-1, (-1, 4)).transpose(1, 2)

    def forward(self, x: Tensor, mask: Tensor) -> Any:
        x = self.embed(x)
        y = F.scaled_dot_product_attention(
            self.heads(self.q(x)), self.heads(self.k(x)), self.heads(self.v(x)), is_causal=True, enable_gqa=True
        )
        x = x + self.out(y.transpose(1, 2).flatten(2))
        k, v = self.kv2(x).chunk(2, -1)
        y = F.scaled_dot_product_attention(
            self.heads(self.q2(x)), self.heads(k), self.heads(v), attn_mask=mask, scale=0.3
        )
        return self.head(y.transpose(1, 2).flatten(2))


class RepeatedHeads(nn.Module):
    """Grouped-query attention as most code spells it: key heads expanded, joined and multiplied."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.q, self.k, self.v = nn.Linear(12, 20), nn.Linear(20, 24), nn.Linear(20, 8), nn.Linear(20, 8)
        self.out, self.head = nn.Linear(24, 20), nn.Linear(20, 5)

    def forward(self, x: Tensor) -> Any:
        x = self.embed(x)
        n, t, _ = x.shape
        q, k, v = (layer(x).view(n, t, -1, 4).transpose(1, 2) for layer in (self.q, self.k, self.v))
        k = k[:, :, None].expand(n, k.shape[1], 3, t, 4).reshape(n, -1, t, 4)
        v = v.repeat_interleave(3, dim=1)
        y = torch.matmul((q @ k.transpose(2, 3) / 2).softmax(-1), v)
        return self.head(x + self.out(y.transpose(1, 2).reshape(n, t, -1)))


class Einsum(nn.Module):
    """Attention and projections by einsum, weights as raw [width, heads, head width] parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(12, 20)
        self.q, self.k, self.v = (nn.Parameter(torch.randn(20, 6, 4)) for _ in range(3))
        self.o, self.head = nn.Parameter(torch.randn(6, 4, 20)), nn.Linear(20, 5)

    def forward(self, x: Tensor) -> Any:
        x = self.embed(x)
        q, k = torch.einsum("btc,chd->bthd", x, self.q), torch.einsum("btc,chd->bthd", x, self.k)
        v = torch.einsum("b t c, c h d -> b h t d", x, self.v)
        weights = torch.einsum("bqhd,bkhd->bhqk", q, k).softmax(-1)
        x = x + torch.einsum("bthd,hdc->btc", torch.einsum("bhqk,bhkd->bqhd", weights, v), self.o)
        return self.head(x)


class Rotary(nn.Module):
    """Rotary positions, as complex numbers and as a rotation of halves; heads from shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.q, self.k, self.v = nn.Linear(12, 20), nn.Linear(20, 24), nn.Linear(20, 24), nn.Linear(20, 24)
        self.out, self.head = nn.Linear(24, 20), nn.Linear(20, 5)

    def forward(self, x: Tensor) -> Any:
        x = self.embed(x)
        n, t, _ = x.shape
        q, k, v = (layer(x).view(n, t, -1, 4) for layer in (self.q, self.k, self.v))
        angles = torch.outer(torch.arange(t, device=x.device).float(), torch.tensor([1.0, 0.1], device=x.device))
        turn = torch.polar(torch.ones_like(angles), angles)[:, None]
        q, k = (torch.view_as_real(torch.view_as_complex(z.reshape(n, t, -1, 2, 2)) * turn).flatten(3) for z in (q, k))
        cos, sin = angles.cos().repeat(1, 2)[:, None], angles.sin().repeat(1, 2)[:, None]
        q, k = (z * cos + torch.cat([-z[..., 2:], z[..., :2]], -1) * sin for z in (q, k))
        y = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True)
        return self.head(x + self.out(y.transpose(1, 2).reshape(n, t, -1)))


class WidthNorms(nn.Module):
    """RMS norms by module, by function and by hand; tokens through BatchNorm1d; an unbiased variance; cosine."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Linear(12, 20), nn.Linear(20, 24), nn.Linear(24, 28), nn.Linear(28, 16)
        self.rms, self.scale, self.gain = nn.RMSNorm(20), nn.Parameter(torch.randn(24)), nn.Parameter(torch.randn(28))
        self.batch, self.key, self.head = nn.BatchNorm1d(16), nn.Linear(12, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Any:
        key = self.key(x)
        x = self.b(self.rms(self.a(x)))
        x = F.rms_norm(x, (x.shape[-1],), self.scale)
        x = self.c(x)
        x = self.gain * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5)
        x = self.batch(self.d(x).transpose(1, 2)).transpose(1, 2)
        spread = x.var(-1, keepdim=True, correction=0)
        return self.head(F.normalize(x, dim=-1)) * F.cosine_similarity(x, key, dim=-1)[..., None] + spread


class UnbiasedVariance(nn.Module):
    """A variance over the width with Bessel's correction: of one channel it is not a number."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(12, 16), nn.Linear(16, 24), nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Any:
        x = self.a(x)
        x = (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 1e-5)
        return self.head(self.b(x).relu())


class ScalarOfWidth(nn.Module):
    """Python numbers made from a width that a cut changes."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.q, self.k, self.head = nn.Linear(12, 16), nn.Linear(16, 24), nn.Linear(16, 24), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Any:
        x = self.a(x)
        q, k = self.q(x), self.k(x)
        x = (q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])).softmax(-1) @ x
        return self.head(x)


class LanguageModel(nn.Module):
    """A head tied to the embedding, learnt positions by index, one layer between."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(50, 24), nn.Embedding(16, 24)
        self.norm, self.up, self.down = nn.LayerNorm(24), nn.Linear(24, 40), nn.Linear(40, 24)
        self.head = nn.Linear(24, 50, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, ids: Tensor) -> Any:
        places = torch.arange(ids.shape[1], device=ids.device)
        x = self.tokens(ids) + self.places(places)
        return self.head(x + self.down(F.gelu(self.up(self.norm(x)))))


class LibraryAttention(nn.Module):
    """torch's own attention and encoder layer between layers of one's own."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.up, self.down = nn.Linear(12, 24), nn.Linear(24, 40), nn.Linear(40, 24)
        self.attention = nn.MultiheadAttention(24, 6, batch_first=True)
        self.layer = nn.TransformerEncoderLayer(24, 4, 36, batch_first=True)
        self.after, self.head = nn.Linear(24, 20), nn.Linear(20, 5)

    def forward(self, x: Tensor) -> Any:
        x = self.embed(x)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        x = x + self.down(F.gelu(self.up(x)))
        x = x + self.attention(x, x, x)[0]
        return self.head(self.after(self.layer(x)).relu())


MASK = torch.zeros(7, 7).masked_fill(torch.ones(7, 7).triu(1).bool(), -1e4)
NETS: dict[str, tuple[Any, Any]] = {
    "single_head": (SingleHead, TOKENS),
    "grouped_query": (GroupedQuery, (TOKENS, MASK)),
    "repeated_heads": (RepeatedHeads, TOKENS),
    "einsum": (Einsum, TOKENS),
    "rotary": (Rotary, TOKENS),
    "width_norms": (WidthNorms, TOKENS),
    "unbiased_variance": (UnbiasedVariance, TOKENS),
    "scalar_of_width": (ScalarOfWidth, TOKENS),
    "language_model": (LanguageModel, torch.randint(0, 50, (2, 7), generator=torch.Generator().manual_seed(0))),
    "library_attention": (LibraryAttention, TOKENS),
}
