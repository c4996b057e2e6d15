"""Tiny networks, data and a space for the tests of evaluation and training."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from autoprune.data.base import Batch, Data, Inputs
from autoprune.data.tensors import TensorBatches
from autoprune.search_spaces.types import Candidate

CLASSES = 6
WIDTH = 8


class ConvNet(nn.Module):
    """[N, 1, 6, 6] -> logits [N, CLASSES], with BatchNorm and dropout."""

    def __init__(self, width: int = WIDTH, dropout: float = 0.1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, WIDTH, 3, stride=2, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(WIDTH)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(x)))
        logits: Tensor = self.head(self.dropout(x.mean((2, 3))))
        return logits


class FakeSpace:
    """One group: the channels of `conv1`; the candidate (k,) keeps the first k + 1 of them.

    The uncut layers of a materialised network are the dense model's parameters *and buffers*, as badly shared as a
    space could do it.
    """

    def __init__(self, model: ConvNet) -> None:
        self.model: nn.Module = model
        self._net = model

    @property
    def dense(self) -> Candidate:
        return (self._net.bn1.num_features - 1,)

    def materialise(self, candidate: Candidate, importance: str = "l2", *, share: bool = False) -> nn.Module:
        width, dense = candidate[0] + 1, self._net
        net = ConvNet(width).eval()
        with torch.no_grad():
            net.conv1.weight.copy_(dense.conv1.weight[:width])
            for name, tensor in net.bn1.state_dict().items():
                tensor.copy_(dense.bn1.state_dict()[name][:width] if tensor.dim() else dense.bn1.state_dict()[name])
            net.conv2.weight.copy_(dense.conv2.weight[:, :width])
        for name in ("bn2", "head"):
            theirs = getattr(dense, name)
            ours = theirs if not share else copy.copy(theirs)  # a copy of the module over the same tensors
            if share:
                ours._parameters, ours._buffers = dict(theirs._parameters), dict(theirs._buffers)
            setattr(net, name, ours if share else copy.deepcopy(theirs))
        return net.eval()


def conv_net(seed: int = 0, dropout: float = 0.1) -> ConvNet:
    """Return a network in evaluation mode whose norms are not those of a fresh network."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = ConvNet(dropout=dropout)
        for norm in (net.bn1, net.bn2):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias)
            nn.init.normal_(norm.running_mean)  # type: ignore[arg-type]
            nn.init.uniform_(norm.running_var, 0.5, 2.0)  # type: ignore[arg-type]
    return net.eval()


def image_data(seed: int = 0, train: int = 96, search: int = 48, batch_size: int = 16) -> Data:
    """Return images whose class is the row with the light bar: learnt in a few epochs."""
    rng = torch.Generator().manual_seed(seed)

    def batches(count: int) -> TensorBatches:
        targets = torch.randint(CLASSES, (count,), generator=rng)
        images = 0.3 * torch.randn(count, 1, 6, 6, generator=rng)
        images[torch.arange(count), 0, targets] += 2.0
        return TensorBatches(images, targets, batch_size=batch_size)

    return Data("bars", batches(train), batches(search), None, CLASSES, seed)


class ListBatches:
    """Given batches in the given order."""

    def __init__(self, *batches: tuple[Inputs, Tensor]) -> None:
        self.batches = list(batches)

    @property
    def num_samples(self) -> int:
        return sum(len(targets) for _, targets in self.batches)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.batches)


class Constant(nn.Module):
    """Returns the given logits, whatever the inputs; one parameter, so that it has a device."""

    def __init__(self, *logits: Tensor) -> None:
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(()))
        self._logits = list(logits)
        self._calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self._calls += 1
        return self._logits[(self._calls - 1) % len(self._logits)]


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """Copies of everything in the state of `model`."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same_state(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Whether two states are equal, bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
