from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from autoprune.recalibrate import recalibrate, tracking_layers
from autoprune.search_spaces.errors import UserError
from tests.autoprune.fakes import conv_net, same_state, state_of


def images(*sizes: int) -> list[Tensor]:
    rng = torch.Generator().manual_seed(0)
    return [torch.randn(size, 1, 6, 6, generator=rng) for size in sizes]


def test_statistics_are_the_plain_average_over_batches() -> None:
    net, batches = conv_net(), images(8, 8, 8)
    assert recalibrate(net, batches) == 2
    with torch.no_grad():
        seen = [net.conv1(batch) for batch in batches]
    mean = torch.stack([x.mean((0, 2, 3)) for x in seen]).mean(0)
    variance = torch.stack([x.var((0, 2, 3)) for x in seen]).mean(0)
    torch.testing.assert_close(net.bn1.running_mean, mean)
    torch.testing.assert_close(net.bn1.running_var, variance)


def test_only_statistics_change_and_modes_come_back() -> None:
    net = conv_net(dropout=0.9)
    net.bn1.momentum = 0.3
    before = state_of(net)
    recalibrate(net, images(8, 8))
    changed = {name for name, tensor in state_of(net).items() if not torch.equal(tensor, before[name])}
    assert changed == {
        f"{bn}.{s}" for bn in ("bn1", "bn2") for s in ("running_mean", "running_var", "num_batches_tracked")
    }
    assert net.bn1.momentum == 0.3
    assert not any(module.training for module in net.modules())
    net.train()
    recalibrate(net, images(8, 8))
    assert all(module.training for module in net.modules())


def test_dropout_stays_off() -> None:
    class Dropped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dropout, self.bn = nn.Dropout(0.5), nn.BatchNorm1d(1)

        def forward(self, x: Tensor) -> Tensor:
            normed: Tensor = self.bn(self.dropout(x))
            return normed

    net = Dropped()
    recalibrate(net, [torch.ones(64, 1)])
    assert net.bn.running_mean is not None
    assert net.bn.running_mean.item() == 1.0


def test_a_smaller_last_batch_is_left_out() -> None:
    one, other = conv_net(), conv_net()
    recalibrate(one, images(8, 8))
    recalibrate(other, images(8, 8, 1))
    assert same_state(state_of(one), state_of(other))


def test_layers_that_are_not_reached_keep_their_statistics() -> None:
    class Auxiliary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.main, self.aux = nn.BatchNorm1d(3), nn.BatchNorm1d(3)

        def forward(self, x: Tensor) -> Tensor:
            normed: Tensor = self.main(x)
            return normed + self.aux(x) if self.training else normed

    net = Auxiliary()
    nn.init.constant_(net.aux.running_mean, 5.0)  # type: ignore[arg-type]
    before = state_of(net.aux)
    assert recalibrate(net, [torch.rand(8, 3)]) == 1
    assert same_state(before, state_of(net.aux))


@pytest.mark.parametrize(
    "norm",
    [
        nn.BatchNorm2d(1, track_running_stats=False),
        nn.GroupNorm(1, 1),
        nn.InstanceNorm2d(1, track_running_stats=True),
        nn.Identity(),
    ],
    ids=lambda norm: type(norm).__name__,
)
def test_without_statistics_to_estimate_nothing_is_done(norm: nn.Module) -> None:
    net = nn.Sequential(nn.Conv2d(1, 1, 3), norm)
    before = state_of(net)
    assert tracking_layers(net) == []
    assert recalibrate(net, images(8)) == 0
    assert same_state(before, state_of(net))


def test_an_exception_leaves_the_network_as_it_was() -> None:
    class Breaks(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("mine")

    net = nn.Sequential(conv_net().bn1, Breaks()).train()
    before = state_of(net)
    with pytest.raises(RuntimeError, match="mine"):
        recalibrate(net, [torch.rand(4, 8, 2, 2)])
    assert same_state(before, state_of(net))
    assert all(module.training for module in net.modules())


def test_no_inputs() -> None:
    with pytest.raises(UserError, match="at least one batch"):
        recalibrate(conv_net(), [])
