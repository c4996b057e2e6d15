from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from autoprune.data.base import Data
from autoprune.finetune import FineTune, FineTuned, FineTuneFailed, finetune
from autoprune.progress import NO_PROGRESS, Task
from autoprune.scores import accuracy
from autoprune.search_spaces.errors import UserError
from tests.autoprune.fakes import ConvNet, ListBatches, conv_net, image_data, same_state, state_of

SETTINGS = FineTune(epochs=3, lr=0.2, kd_weight=0.5, precision="fp32")


def outcome(result: FineTuned) -> tuple[object, ...]:
    """Everything that must be equal, bit for bit; the seconds are not."""
    history = [replace(epoch, seconds=0.0) for epoch in result.history]
    weights = [(name, tensor.tolist()) for name, tensor in result.model.state_dict().items()]
    return history, weights, result.best_epoch, result.score_before, result.score_after


class Stop(Exception):
    pass


class StopAfter:
    """A `Progress` and its `Task` that interrupts the training after so many steps."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def task(self, description: str, total: float, unit: str = "", *, done: float = 0) -> StopAfter:
        return self

    def __enter__(self) -> Task:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def advance(self, steps: float = 1, *, note: str = "") -> None:
        self.steps -= int(steps)
        if self.steps < 0:
            raise Stop

    def say(self, text: str) -> None:
        pass


# -- training --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_training_from_scratch_learns(optimizer: str) -> None:
    data, net = image_data(), conv_net()
    before = state_of(net)
    lr = 0.2 if optimizer == "sgd" else 0.02
    result = finetune(net, data, FineTune(epochs=8, optimizer=optimizer, lr=lr, clip_norm=5.0, label_smoothing=0.05))
    assert result.score_before < 0.5 < 0.8 < result.score_after
    assert result.score_after == accuracy(result.model, data.search, precision=result.precision)
    assert [epoch.epoch for epoch in result.history] == list(range(1, 9))
    assert result.history[-1].loss < result.history[0].loss
    assert same_state(before, state_of(net))
    assert not any(module.training for module in result.model.modules())


def test_a_student_learns_from_its_teacher_without_labels() -> None:
    data = image_data()
    teacher = finetune(conv_net(), data, FineTune(epochs=8, lr=0.2)).model
    before, wrong = state_of(teacher), image_data()
    wrong.train.targets.copy_((wrong.train.targets + 1) % 6)  # type: ignore[attr-defined]
    settings = FineTune(epochs=8, lr=0.1, kd_weight=1.0)
    taught = finetune(conv_net(1), wrong, settings, teacher=teacher.train())
    alone = finetune(conv_net(1), wrong, settings)
    assert alone.score_after < 0.4 < 0.6 < taught.score_after
    assert same_state(before, state_of(teacher)), "the teacher must be in evaluation mode"
    assert teacher.training


def test_no_epoch_returns_the_input() -> None:
    data, net = image_data(), conv_net()
    result = finetune(net, data, FineTune(epochs=0))
    assert result.model is net
    assert result.score_before == result.score_after == accuracy(net, data.search)
    assert result.history == ()


def test_the_best_epoch_is_returned_not_the_last() -> None:
    data = image_data()
    good = finetune(conv_net(), data, FineTune(epochs=8, lr=0.2)).model
    ruined = finetune(good, data, FineTune(epochs=2, lr=3.0, warmup_epochs=0, momentum=0))
    scores = [ruined.score_before, *(epoch.score for epoch in ruined.history)]
    assert ruined.score_after == max(scores) > scores[-1]
    assert ruined.score_after == accuracy(ruined.model, data.search) == scores[ruined.best_epoch]


@pytest.mark.parametrize("ema", [None, 0.5])
def test_the_last_epoch_where_that_is_wanted(ema: float | None) -> None:
    data = image_data()
    good = finetune(conv_net(), data, FineTune(epochs=8, lr=0.2)).model
    settings = FineTune(epochs=2, lr=3.0, warmup_epochs=0, momentum=0, ema=ema, precision="fp32")
    ruined = finetune(good, data, settings, last=True)
    assert ruined.best_epoch == 2
    assert ruined.score_after == ruined.history[-1].score == accuracy(ruined.model, data.search, precision="fp32")
    assert not same_state(state_of(ruined.model), state_of(good))
    if ema is None:
        assert ruined.score_after < ruined.score_before


def test_averaged_weights_are_scored_with_statistics_of_their_own() -> None:
    data = image_data()
    result = finetune(conv_net(), data, replace(SETTINGS, epochs=6, ema=0.9))
    assert result.score_after > 0.8
    net = result.model
    assert isinstance(net, ConvNet)
    recorded = net.bn1.running_mean
    assert recorded is not None
    with torch.no_grad():  # of the weights it has, over the un-augmented training split (96 samples, whole batches)
        means = [net.conv1(inputs).mean((0, 2, 3)) for inputs in data.calibration(96)]
    torch.testing.assert_close(recorded, torch.stack(means).mean(0))
    plain = finetune(conv_net(), data, replace(SETTINGS, epochs=6))
    assert not same_state(state_of(net), state_of(plain.model))


def test_frozen_parameters_stay_frozen() -> None:
    net = conv_net()
    net.conv1.weight.requires_grad_(False)
    result = finetune(net, image_data(), replace(SETTINGS, ema=0.9)).model
    assert isinstance(result, ConvNet)
    assert torch.equal(result.conv1.weight, net.conv1.weight)
    assert not result.conv1.weight.requires_grad
    with pytest.raises(UserError, match="nothing can be trained"):
        finetune(conv_net().requires_grad_(False), image_data(), SETTINGS)


def test_results_depend_on_the_seed_alone() -> None:
    data = image_data()
    torch.manual_seed(1)
    one = finetune(conv_net(), data, SETTINGS, seed=3)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert outcome(finetune(conv_net(), data, SETTINGS, seed=3)) == outcome(one)
    assert torch.equal(torch.get_rng_state(), state)
    assert outcome(finetune(conv_net(), data, SETTINGS, seed=4)) != outcome(one)


def test_bf16_trains_and_returns_float32_in_standard_layout() -> None:
    result = finetune(conv_net(), image_data(), replace(SETTINGS, epochs=8, precision="bf16"))
    assert result.precision == "bf16"
    assert result.score_after > 0.8
    assert all(p.dtype == torch.float32 and p.is_contiguous() for p in result.model.parameters())


def test_progress_reports_every_step() -> None:
    seen: list[tuple[float, float]] = []

    class Recorder(StopAfter):
        def task(self, description: str, total: float, unit: str = "", *, done: float = 0) -> StopAfter:
            seen.append((total, done))
            return self

    recorder = Recorder(10**6)
    finetune(conv_net(), image_data(), SETTINGS, progress=recorder)
    assert seen == [(18, 0)]
    assert 10**6 - recorder.steps == 18


# -- what does not fit -----------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_keeps_the_best() -> None:
    class Poisoned(ListBatches):
        """The batches of `image_data`, with a NaN in the third batch of the second epoch."""

        def epoch(self, seed: int, epoch: int):  # type: ignore[no-untyped-def]
            for index, (inputs, targets) in enumerate(image_data().train_epoch(seed, epoch)):
                assert isinstance(inputs, Tensor)
                yield (inputs * float("nan") if (epoch, index) == (1, 2) else inputs), targets

    data = replace(image_data(), train=Poisoned(*image_data().train))  # type: ignore[arg-type]
    with pytest.raises(FineTuneFailed, match=r"nan in epoch 2, step 3 of 6, at learning rate 0\.1.*lr=0\.02") as caught:
        finetune(conv_net(), data, SETTINGS)
    best = caught.value.best
    assert best is not None
    assert best.best_epoch == len(best.history) == 1
    assert best.score_after == accuracy(best.model, data.search, precision="fp32")
    assert isinstance(caught.value, UserError)


def test_a_network_that_cannot_be_scored() -> None:
    net = conv_net()
    nn.init.constant_(net.head.bias, torch.nan)
    with pytest.raises(FineTuneFailed, match=r"cannot be scored.*NaN") as caught:
        finetune(net, image_data(), SETTINGS)
    assert caught.value.best is None


def test_a_batch_of_one_sample_does_not_stop_batch_norm() -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.norm = nn.Linear(36, 6), nn.BatchNorm1d(6)

        def forward(self, x: Tensor) -> Tensor:
            normed: Tensor = self.norm(self.layer(x.flatten(1)))
            return normed

    class Odd(ListBatches):
        def epoch(self, seed: int, epoch: int):  # type: ignore[no-untyped-def]
            return iter(self)

    inputs, targets = next(iter(image_data().train))
    assert isinstance(inputs, Tensor)
    data = replace(image_data(), train=Odd((inputs, targets), (inputs[:1], targets[:1])))  # type: ignore[arg-type]
    assert len(finetune(Last(), data, SETTINGS).history) == 3
    data = replace(data, train=Odd((inputs[:1], targets[:1])))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="no batch to train on"):
        finetune(Last(), data, SETTINGS)


def test_a_teacher_with_other_outputs() -> None:
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(36, 7))
    with pytest.raises(UserError, match=r"teacher returns \[16, 7\], the model \[16, 6\]"):
        finetune(conv_net(), image_data(), SETTINGS, teacher=teacher)


def test_labels_beyond_the_outputs() -> None:
    data = image_data()
    data.train.targets[:] = 6  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="class indices must be 0 to 5, but the train split holds 6"):
        finetune(conv_net(), data, SETTINGS)


def test_a_batch_size_of_its_own() -> None:
    sizes: list[int] = []

    class Watched(ConvNet):
        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                sizes.append(len(x))
            return super().forward(x)

    finetune(Watched(), image_data(), replace(SETTINGS, epochs=1, batch_size=48))
    assert sizes == [48, 48]


# -- going on --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [{}, {"optimizer": "adamw", "lr": 0.01, "ema": 0.9, "clip_norm": 1.0}, {"precision": "bf16"}],
    ids=["sgd", "adamw-ema-clip", "bf16"],
)
@pytest.mark.parametrize("stop", [3, 6, 15])  # in the first epoch, after it, in the third
def test_an_interrupted_training_ends_the_same(settings: dict[str, Any], stop: int, tmp_path: Path) -> None:
    data, teacher, path = image_data(), conv_net(7), tmp_path / "point" / "finetune.ckpt"
    chosen = replace(SETTINGS, **settings)
    whole = finetune(conv_net(), data, chosen, teacher=teacher)
    with pytest.raises(Stop):
        finetune(conv_net(), data, chosen, teacher=teacher, checkpoint=path, progress=StopAfter(stop))
    assert path.exists() == (stop >= 6)
    resumed = finetune(conv_net(), data, chosen, teacher=teacher, checkpoint=path)
    assert outcome(resumed) == outcome(whole)


def test_a_finished_training_is_not_repeated(tmp_path: Path) -> None:
    data, path = image_data(), tmp_path / "finetune.ckpt"
    first = finetune(conv_net(), data, SETTINGS, checkpoint=path)
    again = finetune(conv_net(), data, SETTINGS, checkpoint=path, progress=StopAfter(0))
    assert outcome(again) == outcome(first)
    assert again.history == first.history


CHILD = """
import json, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from autoprune.finetune import FineTune, finetune
from tests.autoprune.fakes import conv_net, image_data
settings = FineTune.from_dict(json.loads(sys.argv[1]))
result = finetune(conv_net(), image_data(), settings, teacher=conv_net(7), checkpoint=Path(sys.argv[2]))
torch.save(result.model.state_dict(), sys.argv[3])
"""


def test_a_killed_training_ends_the_same(tmp_path: Path) -> None:
    settings = replace(SETTINGS, epochs=40, ema=0.9)
    path, result = tmp_path / "finetune.ckpt", tmp_path / "result.pt"
    command = [sys.executable, "-c", CHILD, json.dumps(settings.to_dict()), str(path), str(result)]
    child, deadline = subprocess.Popen(command, cwd=Path(__file__).parents[2]), time.monotonic() + 60
    while not path.exists() and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    assert not result.exists()
    subprocess.run(command, cwd=Path(__file__).parents[2], check=True, timeout=60)
    whole = finetune(conv_net(), image_data(), settings, teacher=conv_net(7))
    assert same_state(torch.load(result, weights_only=True), state_of(whole.model))


def checkpointed(path: Path, data: Data | None = None) -> None:
    with pytest.raises(Stop):
        finetune(conv_net(), data or image_data(), SETTINGS, checkpoint=path, progress=StopAfter(6))


def test_a_checkpoint_of_other_settings_is_refused_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "finetune.ckpt"
    checkpointed(path)
    before = path.read_bytes()
    with pytest.raises(UserError, match=r"belongs to another training: lr was 0\.2, is now 0\.1\. .*Delete it"):
        finetune(conv_net(), image_data(), replace(SETTINGS, lr=0.1), checkpoint=path)
    with pytest.raises(UserError, match="seed was 0, is now 1"):
        finetune(conv_net(), image_data(), SETTINGS, seed=1, checkpoint=path)
    with pytest.raises(UserError, match="teacher was False, is now True"):
        finetune(conv_net(), image_data(), SETTINGS, teacher=conv_net(), checkpoint=path)
    assert path.read_bytes() == before


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "finetune.ckpt"
    checkpointed(path)
    with pytest.raises(UserError, match="shapes was"):
        finetune(ConvNet(4), image_data(), SETTINGS, checkpoint=path)
    with pytest.raises(UserError, match="other weights of the same shapes"):
        finetune(conv_net(1), image_data(), SETTINGS, checkpoint=path)


@pytest.mark.parametrize("damage", ["cut", "bit", "foreign", "empty"])
def test_a_damaged_checkpoint_is_refused_and_kept(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "finetune.ckpt"
    checkpointed(path)
    content = bytearray(path.read_bytes())
    if damage == "bit":
        content[len(content) // 2] ^= 1
    else:
        content = {"cut": content[:-10], "foreign": bytearray(b"not a checkpoint"), "empty": bytearray()}[damage]
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"not a whole checkpoint.*Delete it"):
        finetune(conv_net(), image_data(), SETTINGS, checkpoint=path)
    assert path.read_bytes() == content


def test_a_checkpoint_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"cannot be (read|written)"):
        finetune(conv_net(), image_data(), SETTINGS, checkpoint=tmp_path / "file" / "finetune.ckpt")


def test_nothing_is_reported_without_progress(capsys: pytest.CaptureFixture[str]) -> None:
    finetune(conv_net(), image_data(), SETTINGS, progress=NO_PROGRESS)
    assert capsys.readouterr() == ("", "")
