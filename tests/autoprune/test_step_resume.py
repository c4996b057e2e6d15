"""A training goes on from any step and ends with the very weights of one that was not interrupted."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from autoprune import checkpoint, stopping
from autoprune.data.base import Batch, Data, concatenate
from autoprune.data.loaders import data_from_loaders
from autoprune.data.parts import train_parts
from autoprune.data.tensors import Augment, TensorBatches
from autoprune.finetune import FineTune, finetune
from autoprune.search_spaces.errors import UserError
from tests.autoprune.fakes import ListBatches, conv_net, image_data, same_state, state_of
from tests.autoprune.test_finetune import Stop, StopAfter, outcome

SETTINGS = FineTune(epochs=3, lr=0.2, kd_weight=0.5, ema=0.9, clip_norm=1.0, precision="fp32")
STEPS = 6  # an epoch


@pytest.fixture
def every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Store the state after every step."""
    monkeypatch.setattr(checkpoint, "EVERY_S", 0.0)
    monkeypatch.setattr(checkpoint, "MAX_SHARE", math.inf)


def augmented_data() -> Data:
    """`image_data`, moved and mirrored, in batches of different sizes."""
    train = image_data(train=91).train
    assert isinstance(train, TensorBatches)
    moved = TensorBatches(train.inputs, train.targets, batch_size=16, augment=Augment(shift=1, flip=True))
    return replace(image_data(), train=moved)


class Noisy(Dataset[tuple[Tensor, Tensor]]):
    """The samples of `image_data` with noise from the global generator; counts what is read."""

    def __init__(self) -> None:
        train = image_data().train
        assert isinstance(train, TensorBatches)
        self.inputs, self.targets, self.read = train.inputs, train.targets, 0

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        self.read += 1
        return self.inputs[index] + 0.1 * torch.randn(1, 6, 6), self.targets[index]


class Drawing(ListBatches):
    """A user's own batches, which draw from the global generator: the order at first, then noise."""

    is_sized = True

    def epoch(self, seed: int, epoch: int) -> Iterator[Batch]:
        for index in torch.randperm(len(self.batches)).tolist():
            inputs, targets = self.batches[index]
            assert isinstance(inputs, Tensor)
            yield inputs + 0.1 * torch.randn_like(inputs), targets

    def draw(self, num_samples: int, seed: int) -> Iterator[Batch]:
        return iter(self.batches)


def loader_data(**settings: Any) -> Data:
    loader = DataLoader(Noisy(), batch_size=16, **settings)
    return data_from_loaders(loader, list(image_data().search))


def own_data() -> Data:
    return replace(image_data(), train=Drawing(*image_data().train))  # type: ignore[arg-type]


def interrupted(data: Data, settings: FineTune, stop: int, path: Path) -> None:
    """Leave a checkpoint in `path` of a training that was ended in step `stop`, after `stop - 1` were stored."""
    with pytest.raises(Stop):
        finetune(conv_net(), data, settings, teacher=conv_net(7), checkpoint=path, progress=StopAfter(stop))


@pytest.mark.usefixtures("every_step")
@pytest.mark.parametrize(
    "changes",
    [{}, {"optimizer": "adamw", "lr": 0.01}, {"precision": "bf16"}, {"ema": None}],
    ids=["sgd", "adamw", "bf16", "plain"],
)
@pytest.mark.parametrize("stop", [1, 4, STEPS, STEPS + 1, 3 * STEPS - 1])
def test_a_training_goes_on_from_any_step(changes: dict[str, Any], stop: int, tmp_path: Path) -> None:
    data, settings, path = augmented_data(), replace(SETTINGS, **changes), tmp_path / "c"
    whole = finetune(conv_net(), data, settings, teacher=conv_net(7))
    interrupted(data, settings, stop, path)
    seen = StopAfter(10**6)
    resumed = finetune(conv_net(), data, settings, teacher=conv_net(7), checkpoint=path, progress=seen)
    assert outcome(resumed) == outcome(whole)
    assert 10**6 - seen.steps == 3 * STEPS - stop, "only the missing steps are made"


@pytest.mark.usefixtures("every_step")
@pytest.mark.parametrize("make", [loader_data, own_data])
def test_random_draws_of_the_data_are_those_of_the_step(make: Any, tmp_path: Path) -> None:
    whole = finetune(conv_net(), make(), SETTINGS, teacher=conv_net(7))
    for stop in (4, STEPS + 3):
        path = tmp_path / str(stop)
        interrupted(make(), SETTINGS, stop, path)
        assert outcome(finetune(conv_net(), make(), SETTINGS, teacher=conv_net(7), checkpoint=path)) == outcome(whole)


@pytest.mark.usefixtures("every_step")
def test_kill_after_kill_after_kill(tmp_path: Path) -> None:
    data, path, kills = augmented_data(), tmp_path / "c", 0
    whole = finetune(conv_net(), data, SETTINGS, teacher=conv_net(7))
    while True:
        try:
            stop = StopAfter(2)  # of three steps one is lost
            resumed = finetune(conv_net(), data, SETTINGS, teacher=conv_net(7), checkpoint=path, progress=stop)
            break
        except Stop:
            kills += 1
    assert kills == 8
    assert outcome(resumed) == outcome(whole)


def test_a_stop_stores_the_step_it_comes_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, path, asked = augmented_data(), tmp_path / "c", 0

    def wanted() -> bool:
        nonlocal asked
        asked += 1
        return asked == 9

    whole = finetune(conv_net(), data, SETTINGS)
    monkeypatch.setattr(stopping, "wanted", wanted)
    asked = 0
    with pytest.raises(stopping.Stopped):
        finetune(conv_net(), data, SETTINGS, checkpoint=path)
    seen = StopAfter(10**6)
    assert outcome(finetune(conv_net(), data, SETTINGS, checkpoint=path, progress=seen)) == outcome(whole)
    assert 10**6 - seen.steps == 3 * STEPS - 9


CHILD = """
import json, math, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from autoprune import checkpoint
from autoprune.finetune import FineTune, finetune
from tests.autoprune.fakes import conv_net
from tests.autoprune.test_step_resume import augmented_data
checkpoint.EVERY_S, checkpoint.MAX_SHARE = 0.0, math.inf
settings = FineTune.from_dict(json.loads(sys.argv[1]))
result = finetune(conv_net(), augmented_data(), settings, teacher=conv_net(7), checkpoint=Path(sys.argv[2]))
torch.save(result.model.state_dict(), sys.argv[3])
"""


@pytest.mark.slow
def test_killed_processes_end_the_same(tmp_path: Path) -> None:
    settings, root = replace(SETTINGS, epochs=30), Path(__file__).parents[2]
    path, result = tmp_path / "c", tmp_path / "result.pt"
    command = [sys.executable, "-c", CHILD, json.dumps(settings.to_dict()), str(path), str(result)]
    for written in range(3):
        before = path.stat().st_mtime_ns if path.exists() else 0
        child, deadline = subprocess.Popen(command, cwd=root), time.monotonic() + 60
        while child.poll() is None and time.monotonic() < deadline:
            if path.exists() and path.stat().st_mtime_ns != before:
                break
            time.sleep(0.001)
        time.sleep(0.013 * written)  # somewhere in the steps that follow
        os.kill(child.pid, signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
    assert not result.exists()
    subprocess.run(command, cwd=root, check=True, timeout=120)
    whole = finetune(conv_net(), augmented_data(), settings, teacher=conv_net(7))
    assert same_state(torch.load(result, weights_only=True), state_of(whole.model))


# -- the file --------------------------------------------------------------------------------------------------------


def test_a_checkpoint_of_format_1_is_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, path = augmented_data(), tmp_path / "c"
    whole = finetune(conv_net(), data, SETTINGS, teacher=conv_net(7))
    write = checkpoint.write_checkpoint

    def old(path: Path, identity: Any, state: Any) -> None:
        write(path, identity, {name: value for name, value in state.items() if name != "under_way"})

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "write_checkpoint", old)
        patched.setattr(checkpoint, "FORMAT", 1)
        interrupted(data, SETTINGS, STEPS + 2, path)
    assert outcome(finetune(conv_net(), data, SETTINGS, teacher=conv_net(7), checkpoint=path)) == outcome(whole)


def test_a_checkpoint_of_a_later_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c"
    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "FORMAT", 3)
        interrupted(augmented_data(), SETTINGS, STEPS + 2, path)
    with pytest.raises(UserError, match="newer autoprune"):
        finetune(conv_net(), augmented_data(), SETTINGS, teacher=conv_net(7), checkpoint=path)


def test_writing_takes_a_bounded_share_of_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, took = 1000.0, 0.0

    def write(*_: Any) -> None:
        nonlocal now
        now += took

    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(checkpoint, "write_checkpoint", write)
    writer = checkpoint.CheckpointWriter(tmp_path / "c", {})
    for seconds, pause in ((0.1, checkpoint.EVERY_S), (30.0, 30.0 / checkpoint.MAX_SHARE), (0.1, checkpoint.EVERY_S)):
        took = seconds
        writer.write({})
        now += pause - 0.01
        assert not writer.is_due
        now += 0.02
        assert writer.is_due


# -- the parts of a batch --------------------------------------------------------------------------------------------


def same_inputs(one: Any, other: Any) -> bool:
    return bool(torch.equal(one, other))


@pytest.mark.parametrize("make", [augmented_data, loader_data, own_data])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_parts_make_up_the_batch_from_any_start(make: Any, world: int) -> None:
    train = make().train
    whole = list(train_parts(train, 3, 1))
    for start in (0, 2, STEPS):
        ranks = [list(train_parts(train, 3, 1, start, rank, world)) for rank in range(world)]
        for parts, batch in zip(zip(*ranks, strict=True), whole[start:], strict=True):
            assert sum(part.own for part in parts) == batch.own == batch.total
            assert {part.total for part in parts} == {batch.total}
            assert torch.equal(torch.cat([part.targets for part in parts]), batch.targets)
            if make is not loader_data or world == 1:  # whose noise is drawn by each process for itself
                assert same_inputs(concatenate([part.inputs for part in parts]), batch.inputs)


def test_a_process_without_samples_gets_one_that_does_not_count() -> None:
    train = image_data(train=3, batch_size=2).train  # two batches: of two samples and of one
    ranks = [list(train_parts(train, 0, 0, rank=rank, world=3)) for rank in range(3)]
    for parts in zip(*ranks, strict=True):
        assert all(len(part.targets) == 1 for part in parts)
        assert sum(part.own for part in parts) == parts[0].total
    assert [part.own for part in (ranks[0][1], ranks[1][1], ranks[2][1])] == [0, 0, 1]


@pytest.mark.parametrize(("start", "rank", "world", "read"), [(0, 0, 1, 96), (4, 0, 1, 32), (0, 1, 2, 48)])
def test_a_loader_reads_only_what_is_needed(start: int, rank: int, world: int, read: int) -> None:
    noisy = Noisy()
    train = data_from_loaders(DataLoader(noisy, batch_size=16), [(torch.zeros(2, 1), torch.zeros(2))]).train
    noisy.read = 0
    list(train_parts(train, 0, 0, start, rank, world))
    assert noisy.read == read


def test_workers_draw_what_the_process_itself_would() -> None:
    alone = [part.inputs for part in train_parts(loader_data().train, 0, 0)]
    workers = [part.inputs for part in train_parts(loader_data(num_workers=2).train, 0, 0, start=1)]
    for one, other in zip(alone[1:], workers, strict=True):
        assert same_inputs(one, other)
