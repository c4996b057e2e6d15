from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autoprune.config import FILE, SearchConfig
from autoprune.search_spaces.errors import UserError

FULL = SearchConfig(
    model="torchvision:resnet18",
    model_args={"num_classes": 10, "name": 'ä "quoted" = x', "weights": None},
    weights="dense.safetensors",
    data="fashion-mnist",
    data_root="/data",
    search_size=0.25,
    budget=("macs=0.5x", "latency=8ms"),
    agent_options={"startup": 5},
    aim="front",
    sweep=(1.0, 0.8),
    finetune={"epochs": 2, "lr": 0.05, "ema": None},
    formats=("onnx",),
    fingerprints={"space": "ab"},
    versions={"torch": "2.14.1"},
)


@pytest.mark.parametrize("config", [FULL, SearchConfig(budget=("macs=0.5x",))])
def test_round_trip(tmp_path: Path, config: SearchConfig) -> None:
    config.write(tmp_path)
    assert SearchConfig.read(tmp_path) == config


def test_torn_temporary_file_is_not_read(tmp_path: Path) -> None:
    FULL.write(tmp_path)
    (tmp_path / f".{FILE}.99.tmp").write_text("[run]\nform")
    assert SearchConfig.read(tmp_path) == FULL


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("format = 1", "format = 2", "newer autoprune"),
        ("format = 1", "format = 0", "another version"),
        ("trials = 100", "trials = 100\nsweep = [true, [1]]", "`sweep` must|overwrite"),
        ("format = 1", "", "is damaged"),
        ("trials = 100", "trials = ", "damaged"),
        ("trials = 100", "trials = 0", "`trials` must be"),
        ("trials = 100", 'trials = "60"', "`trials` must be"),
        ('aim = "front"', 'aim = "fronts"', "Did you mean 'front'"),
        ("trials = 100", "trails = 100", "Did you mean 'trials'"),
        ("[search]", "[serach]", "Did you mean 'search'"),
        ("budget", "# budget", "damaged|lacks"),
    ],
)
def test_unreadable_file_names_the_reason(tmp_path: Path, old: str, new: str, message: str) -> None:
    FULL.write(tmp_path)
    path = tmp_path / FILE
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(UserError, match=message):
        SearchConfig.read(tmp_path)


def test_a_file_written_before_there_was_an_aim(tmp_path: Path) -> None:
    FULL.write(tmp_path)
    path = tmp_path / FILE
    path.write_text(path.read_text().replace('aim = "front"\n', ""))
    assert SearchConfig.read(tmp_path) == replace(FULL, aim="score")


def test_folder_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a run folder"):
        SearchConfig.read(tmp_path)
    with pytest.raises(UserError, match="There is no run folder"):
        SearchConfig.read(tmp_path / "absent")


@pytest.mark.parametrize(
    "wrong", [{"trials": 0}, {"seed": -1}, {"points": True}, {"sweep": ()}, {"sweep": (1.2,)}, {"batch_size": 2.0}]
)
def test_settings_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"`{next(iter(wrong))}` must"):
        SearchConfig(budget=("macs=0.5x",), **wrong)
