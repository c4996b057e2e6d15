"""Patterns of modules: weights made from other tensors, recurrent layers, inputs and outputs of every kind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils import weight_norm as hooked_weight_norm

from tests.search_spaces.nets import IMAGE, TOKENS, conv


class StandardisedConv(nn.Conv2d):
    """A convolution whose weight has mean 0 and variance 1 over each row."""

    def forward(self, x: Tensor) -> Any:
        mean, var = self.weight.mean((1, 2, 3), keepdim=True), self.weight.var((1, 2, 3), keepdim=True, correction=0)
        return F.conv2d(x, (self.weight - mean) / (var + 1e-5).sqrt(), self.bias, padding=1)


class Standardised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = StandardisedConv(3, 16, 3), StandardisedConv(16, 24, 3), nn.Conv2d(24, 5, 1)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.b(self.a(x).relu()).relu())


class Doubled(nn.Module):
    """A parametrization by one's own hand."""

    def forward(self, weight: Tensor) -> Any:
        return 2 * weight.tanh()


class Parametrized(nn.Module):
    """A parametrization of one's own, the old weight norm by hooks, and spectral norm."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(12, 16), hooked_weight_norm(nn.Linear(16, 20))
        self.c, self.d, self.head = (
            parametrizations.spectral_norm(nn.Linear(20, 24)),
            nn.Linear(24, 28),
            nn.Linear(28, 5),
        )
        parametrize.register_parametrization(self.a, "weight", Doubled())

    def forward(self, x: Tensor) -> Any:
        return self.head(self.d(self.c(self.b(self.a(x).relu()).relu()).relu()).relu())


class Recurrent(nn.Module):
    """LSTM, GRU and RNN, with layers before and after each."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.lstm, self.b = (
            nn.Linear(12, 16),
            nn.LSTM(16, 10, 2, batch_first=True, bidirectional=True),
            nn.Linear(20, 18),
        )
        self.c, self.gru, self.d, self.rnn = (
            nn.Linear(18, 14),
            nn.GRU(14, 9, batch_first=True),
            nn.Linear(9, 11),
            nn.RNN(11, 7),
        )
        self.e, self.head = nn.Linear(7, 13), nn.Linear(13, 5)

    def forward(self, x: Tensor) -> Any:
        x = self.lstm(self.a(x).relu())[0]
        x = self.gru(self.c(self.b(x).relu()).relu())[0]
        x = self.rnn(self.d(x).transpose(0, 1))[0]
        return self.head(self.e(x).relu())


class Cells(nn.Module):
    """Recurrent cells stepped by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.lstm, self.gru, self.head = (
            nn.Linear(12, 16),
            nn.LSTMCell(16, 10),
            nn.GRUCell(10, 9),
            nn.Linear(9, 5),
        )

    def forward(self, x: Tensor) -> Any:
        x = self.a(x)
        state, hidden = None, None
        for t in range(x.shape[1]):
            state = self.lstm(x[:, t], state)
            hidden = self.gru(state[0], hidden)
        return self.head(hidden)


@dataclass
class Result:
    """An output of one's own."""

    logits: Tensor
    extra: dict[str, Any]


class ManyInputs(nn.Module):
    """Two inputs, one optional, and outputs nested in a dataclass, a dict, a list and None."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.tokens, self.join, self.head = (
            conv(3, 16),
            nn.Linear(12, 20),
            nn.Linear(36, 24),
            nn.Linear(24, 5),
        )
        self.box = nn.Linear(24, 4)

    def forward(self, image: Tensor, tokens: Tensor, *, scale: Tensor | None = None) -> Any:
        x = torch.cat([self.image(image).mean((2, 3)), self.tokens(tokens).amax(1)], 1)
        x = F.gelu(self.join(x if scale is None else x * scale))
        return Result(self.head(x), {"boxes": [self.box(x).sigmoid(), None], "size": image.shape[-1]})


class DataDependent(nn.Module):
    """Which layer runs, and how often, depends on the numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.head = conv(3, 16), conv(16, 16), conv(16, 20), nn.Linear(20, 5)

    def forward(self, x: Tensor) -> Any:
        y = self.a(x)
        for _ in range(3 if x.mean().item() > -1 else 1):
            y = y + self.b(y)
        return self.head(self.c(y).mean((2, 3)))


class Indices(nn.Module):
    """Integer side tensors: gather of positions, largest values, masks, scatter, a table of offsets."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(12, 16), nn.Linear(16, 20), nn.Linear(20, 5)
        self.order: Tensor
        self.register_buffer("order", torch.tensor([2, 0, 1, 6, 3]))
        self.table = nn.Parameter(torch.randn(9, 16))

    def forward(self, x: Tensor) -> Any:
        x = self.a(x)[:, self.order] + self.table[self.order]
        x = x.masked_fill((torch.arange(5, device=x.device) == 3)[None, :, None], 0.5)
        order = x.detach().sum(-1).argsort(1)
        x = self.b(torch.gather(x, 1, order[..., None].expand_as(x)))
        return self.head(torch.where(x > 0, x, 0.1 * x))


NETS: dict[str, tuple[Any, Any]] = {
    "standardised": (Standardised, IMAGE),
    "parametrized": (Parametrized, TOKENS),
    "recurrent": (Recurrent, TOKENS),
    "cells": (Cells, TOKENS),
    "many_inputs": (ManyInputs, ((IMAGE, TOKENS), {"scale": torch.full((2, 1), 0.5)})),
    "data_dependent": (DataDependent, IMAGE),
    "indices": (Indices, TOKENS),
}
