"""Folders of images: the layouts, their splits, mistakes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from autoprune.data import load_data
from autoprune.search_spaces.errors import UserError


def write_images(folder: Path, per_class: int, classes: tuple[str, ...] = ("cat", "dog")) -> None:
    from PIL import Image

    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for i in range(per_class):
            Image.new("RGB", (20, 16), (100 * number, i, 0)).save(folder / name / f"{i}.png")


def sizes(data: Any) -> tuple[int, int, int | None]:
    return data.train.num_samples, data.search.num_samples, None if data.test is None else data.test.num_samples


@pytest.mark.parametrize(
    ("splits", "expected"),
    [
        ({"train": 5}, (6, 4, None)),
        ({"train": 5, "test": 2}, (6, 4, 4)),
        ({"train": 5, "val": 2}, (6, 4, 4)),
        ({"train": 5, "val": 1, "test": 2}, (10, 2, 4)),
        ({".": 5}, (4, 4, 2)),
    ],
)
def test_image_folders(tmp_path: Path, splits: dict[str, int], expected: tuple[int, int, int | None]) -> None:
    for name, per_class in splits.items():
        write_images(tmp_path / name, per_class)
    data = load_data(f"imagefolder:{tmp_path}", search_size=4, batch_size=2)
    assert sizes(data) == expected
    assert data.num_classes == 2
    for inputs, targets in data.search:
        assert isinstance(inputs, Tensor)
        assert inputs.shape[1:] == (3, 224, 224)
        red = inputs[:, 0].mean((1, 2)) * 0.229 + 0.485
        assert torch.allclose(red, targets * 100 / 255, atol=1e-4)


def test_image_folder_single_splits_are_apart_and_test_is_fixed(tmp_path: Path) -> None:
    write_images(tmp_path, 10)

    def pixels(batches: Any) -> set[tuple[int, int]]:
        mean, std = torch.tensor([0.485, 0.456]), torch.tensor([0.229, 0.224])
        colours = [((x[:, :2, 0, 0] * std + mean) * 255).round().int().tolist() for x, _ in batches]
        return {(red, green) for batch in colours for red, green in batch}

    splits = []
    for seed in (0, 1):
        data = load_data(f"imagefolder:{tmp_path}", seed=seed, search_size=6, batch_size=2)
        parts = [pixels(split) for split in (data.train, data.search, data.test)]
        assert sum(map(len, parts)) == len(set.union(*parts)) == 20
        splits.append(parts)
    assert splits[0][2] == splits[1][2]
    assert splits[0][1] != splits[1][1]


def test_image_folder_trains_on_random_crops_and_calibrates_without(tmp_path: Path) -> None:
    from PIL import Image

    write_images(tmp_path / "train", 2)
    gradient = np.tile(np.arange(256, dtype=np.uint8)[None, :, None], (256, 1, 3))
    for path in (tmp_path / "train").glob("*/*.png"):
        Image.fromarray(gradient).save(path)
    data = load_data(f"imagefolder:{tmp_path}", search_size=1, batch_size=3)
    plain = data.calibration(3)[0]
    assert isinstance(plain, Tensor)
    assert torch.equal(plain[0], plain[1])
    epochs = [next(data.train_epoch(0, epoch))[0] for epoch in (0, 0, 1)]
    assert all(isinstance(epoch, Tensor) for epoch in epochs)
    assert torch.equal(epochs[0], epochs[1])  # type: ignore[arg-type]
    assert not torch.equal(epochs[0], epochs[2])  # type: ignore[arg-type]
    assert not torch.equal(epochs[0][0], epochs[0][1])  # type: ignore[index]


def test_image_folder_mistakes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="needs a folder with one sub-folder"):
        load_data(f"imagefolder:{tmp_path / 'none'}")
    (tmp_path / "empty" / "cat").mkdir(parents=True)
    with pytest.raises(UserError, match=r"Cannot use the image folder .*cat"):
        load_data(f"imagefolder:{tmp_path / 'empty'}")
    write_images(tmp_path / "lone" / "test", 1)
    with pytest.raises(UserError, match="has test but no train folder"):
        load_data(f"imagefolder:{tmp_path / 'lone'}")
    write_images(tmp_path / "odd" / "train", 2)
    write_images(tmp_path / "odd" / "test", 2, ("cat", "cow"))
    with pytest.raises(UserError, match="same classes, but differ in cow, dog"):
        load_data(f"imagefolder:{tmp_path / 'odd'}")
    write_images(tmp_path / "torn", 2)
    for path in (tmp_path / "torn").glob("*/*.png"):
        path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(UserError, match=r"Cannot read the image .*\.png"):
        load_data(f"imagefolder:{tmp_path / 'torn'}", search_size=1)
