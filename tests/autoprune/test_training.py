from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from autoprune.search_spaces.errors import UserError
from autoprune.training import (
    FineTune,
    learning_rate,
    make_average,
    make_optimizer,
    training_loss,
    update_average,
)
from tests.autoprune.fakes import conv_net


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epochs": -1}, "`epochs` must be a whole number of at least 0, but got -1"),
        ({"epochs": 1.5}, "`epochs` must be a whole number"),
        ({"batch_size": 0}, "`batch_size` must be a whole number of at least 1"),
        ({"optimizer": "sdg"}, r"Unknown optimizer 'sdg'. Did you mean 'sgd'\?"),
        ({"precision": "fp16"}, "Unknown precision 'fp16'"),
        ({"lr": 0.0}, "`0 < lr` must hold"),
        ({"lr": math.nan}, "`0 < lr` must hold"),
        ({"lr": "fast"}, "got lr='fast'"),
        ({"momentum": 1.0}, "momentum < 1"),
        ({"weight_decay": -1e-4}, "weight_decay >= 0"),
        ({"warmup_epochs": -1}, "warmup_epochs >= 0"),
        ({"kd_weight": 90}, "`0 <= kd_weight <= 1` must hold for fine-tuning, but got kd_weight=90"),
        ({"kd_weight": None}, "kd_weight=None"),
        ({"temperature": 0}, "temperature > 0"),
        ({"label_smoothing": 1.0}, "label_smoothing < 1"),
        ({"clip_norm": 0}, "clip_norm > 0"),
        ({"ema": 1.0}, "0 < ema < 1"),
    ],
)
def test_settings_out_of_range(values: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        FineTune(**values)  # type: ignore[arg-type]


def test_settings_survive_a_file() -> None:
    settings = FineTune(epochs=2, ema=0.99, lr=0.1)
    assert FineTune.from_dict(settings.to_dict()) == settings
    assert None not in settings.to_dict().values()
    with pytest.raises(UserError, match=r"Unknown setting of fine-tuning 'epoch'. Did you mean 'epochs'\?"):
        FineTune.from_dict({"epoch": 3})


def test_the_learning_rate_rises_and_falls() -> None:
    settings = FineTune(epochs=3, lr=1.0, warmup_epochs=0.5)
    rates = [learning_rate(settings, step, 8) for step in range(24)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4] == 1.0
    assert rates[14] == pytest.approx(0.5)  # half of the 20 steps after the warm-up
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert 0 < rates[-1] < 0.01


@pytest.mark.parametrize("settings", [FineTune(epochs=1, lr=1.0, warmup_epochs=5), FineTune(epochs=1, lr=1.0)])
def test_the_learning_rate_of_a_single_step(settings: FineTune) -> None:
    assert learning_rate(settings, 0, 1) == 1.0


def test_the_loss_by_hand() -> None:
    student, teacher, targets = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]]), torch.tensor([0])
    p = [1 / (1 + math.e), math.e / (1 + math.e)]  # teacher at T = 2
    q = [math.exp(0.5) / (1 + math.exp(0.5)), 1 / (1 + math.exp(0.5))]
    towards = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    entropy = -math.log(math.e / (1 + math.e))
    settings = FineTune(kd_weight=0.75, temperature=2.0)
    loss = training_loss(student, targets, teacher, settings)
    assert float(loss) == pytest.approx(0.25 * entropy + 0.75 * 4 * towards, rel=1e-6)
    assert float(training_loss(student, targets, None, settings)) == pytest.approx(entropy, rel=1e-6)


def test_the_loss_of_pixels_is_the_mean_over_pixels() -> None:
    student, teacher = torch.randn(2, 5, 3, 3), torch.randn(2, 5, 3, 3)
    targets = torch.randint(5, (2, 3, 3))
    flat = [tensor.movedim(1, -1).reshape(-1, 5) for tensor in (student, teacher)]
    settings = FineTune(label_smoothing=0.1)
    expected = training_loss(flat[0], targets.flatten(), flat[1], settings)
    torch.testing.assert_close(training_loss(student, targets, teacher, settings), expected)


def test_label_smoothing_is_used() -> None:
    logits, targets = torch.randn(4, 3), torch.arange(4) % 3
    loss = training_loss(logits, targets, None, FineTune(label_smoothing=0.2))
    torch.testing.assert_close(loss, F.cross_entropy(logits, targets, label_smoothing=0.2))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_norms_and_biases_do_not_decay(optimizer: str) -> None:
    net = conv_net()
    groups = make_optimizer(net, FineTune(optimizer=optimizer, weight_decay=0.1)).param_groups
    decay = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
    assert {name: decay[id(p)] for name, p in net.named_parameters()} == {
        "conv1.weight": 0.1,
        "bn1.weight": 0.0,
        "bn1.bias": 0.0,
        "conv2.weight": 0.1,
        "bn2.weight": 0.0,
        "bn2.bias": 0.0,
        "head.weight": 0.1,
        "head.bias": 0.0,
    }


def test_averaged_weights_by_hand() -> None:
    net = conv_net()
    average = make_average(net)
    values = []
    for step in range(4):
        torch.nn.init.constant_(net.head.bias, float(step))
        update_average(average, net, decay=0.3, step=step)
        values.append(average.module.state_dict()["head.bias"][0].item())
    expected = [0.0]
    for step in (1, 2, 3):
        decay = min(0.3, (1 + step) / (10 + step))
        expected.append(decay * expected[-1] + (1 - decay) * step)
    assert values == pytest.approx(expected)
