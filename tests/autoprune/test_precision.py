from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from autoprune import precision
from autoprune.precision import has_fast_bf16, is_wide, prepare, resolve_precision
from autoprune.search_spaces.errors import UserError
from tests.autoprune.fakes import conv_net

CPU = torch.device("cpu")


@pytest.fixture(params=[True, False], ids=["fast", "slow"])
def fast(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(precision, "has_fast_bf16", lambda device: request.param)
    return bool(request.param)


def wide() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 32, 3), nn.Conv2d(32, 64, 3), nn.Flatten(), nn.Linear(64, 10))


def test_auto_needs_the_hardware_and_a_wide_network(fast: bool) -> None:
    assert resolve_precision("auto", wide()) == ("bf16" if fast else "fp32")
    assert resolve_precision("auto", conv_net()) == "fp32"


def test_what_is_asked_for_is_taken(fast: bool) -> None:
    assert resolve_precision("bf16", conv_net()) == "bf16"
    assert resolve_precision("fp32", wide()) == "fp32"


def test_an_unknown_precision() -> None:
    with pytest.raises(UserError, match=r"Unknown precision 'bf61'. Did you mean 'bf16'\?"):
        resolve_precision("bf61", wide())


def test_width_counts_weights_within_groups() -> None:
    assert is_wide(nn.Conv2d(64, 64, 3))
    assert not is_wide(nn.Conv2d(64, 64, 3, groups=4))
    assert not is_wide(nn.Conv2d(64, 64, 3, groups=64))
    assert not is_wide(nn.Conv2d(64, 64, 3).to(torch.float64))
    assert not is_wide(nn.ReLU())


def test_hardware_is_asked_without_an_error() -> None:
    assert has_fast_bf16(CPU) in (True, False)
    assert has_fast_bf16(torch.device("meta")) is False


def test_images_become_channels_last_with_bf16_only() -> None:
    images, other = torch.rand(2, 3, 4, 4), torch.rand(2, 5)

    def is_channels_last(tensor: Tensor) -> bool:
        return tensor.is_contiguous(memory_format=torch.channels_last)

    inputs = prepare({"images": images, "other": other}, CPU, "bf16")
    assert is_channels_last(inputs["images"])
    assert torch.equal(inputs["images"], images)
    assert inputs["other"] is other
    assert prepare(images, CPU, "fp32") is images
