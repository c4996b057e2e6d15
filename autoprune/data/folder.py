"""Folders of images, one sub-folder a class, read with torchvision's `ImageFolder`.

    DIR/train/CLASS/*.jpg, DIR/test/CLASS/*.jpg     search split carved from train
    ... and DIR/val/CLASS/*.jpg                     which is the search split then
    DIR/train, DIR/val                              val serves as test split, search carved from train
    DIR/CLASS/*.jpg                                 a fifth is the test split, the same for every seed

Images are resized to 256 and cropped to 224 pixels and normalised as for ImageNet; `train_epoch` crops at random
places and scales and mirrors.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Subset

from autoprune.data.base import Data
from autoprune.data.loaders import LoaderBatches
from autoprune.data.rng import generator
from autoprune.data.tensors import carve
from autoprune.search_spaces.errors import UserError

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, which pretrained models expect
_FEW = 2_000  # below this many images starting worker processes takes longer than they save


def image_folder(folder: Path, *, seed: int, search_size: float | None, batch_size: int) -> Data:
    """Load `imagefolder:DIR`; see the head of this file for what may be in it.

    Raises:
        UserError: no folder, no images in it, or splits with different classes.
    """
    parts = {name: folder / name for name in ("train", "val", "test") if (folder / name).is_dir()}
    if "train" not in parts and parts:
        raise UserError(
            f"{folder} has {', '.join(parts)} but no train folder: training images belong in {folder / 'train'}."
        )
    source = parts.get("train", folder)
    plain, augmented = _read(source, augment=False), _read(source, augment=True)
    for path in parts.values():
        if (classes := _read(path, augment=False).classes) != plain.classes:
            odd = sorted(set(classes) ^ set(plain.classes))
            raise UserError(f"{path} and {source} must have the same classes, but differ in {', '.join(odd[:5])}.")

    targets = torch.tensor(plain.targets)
    rest = torch.arange(len(targets))
    test: Any = None
    search: Any = None
    if not parts:
        rest, tested = carve(targets, 0.2, generator(0))
        test = Subset(plain, tested.tolist())
    elif (final := parts.get("test", parts.get("val"))) is not None:
        test = _read(final, augment=False)
    if len(parts) == 3:
        search = _read(parts["val"], augment=False)
    else:
        kept, carved = carve(targets[rest], search_size, generator(seed))
        search, rest = Subset(plain, rest[carved].tolist()), rest[kept]

    def batches(dataset: Any, split: str, **training: Any) -> LoaderBatches:
        workers = 0 if len(dataset) < _FEW else min(8, os.cpu_count() or 1)
        size = min(batch_size, len(dataset))
        loader = DataLoader(dataset, batch_size=size, num_workers=workers, drop_last="trains" in training)
        return LoaderBatches(loader, split, **training)

    return Data(
        f"imagefolder:{folder.name}",
        train=batches(Subset(augmented, rest.tolist()), "train", trains=True, plain=Subset(plain, rest.tolist())),
        search=batches(search, "search"),
        test=None if test is None else batches(test, "test"),
        num_classes=len(plain.classes),
        seed=seed,
    )


def _read(folder: Path, *, augment: bool) -> Any:
    from torchvision import datasets
    from torchvision.transforms import v2

    if not folder.is_dir():
        raise UserError(f"imagefolder:DIR needs a folder with one sub-folder of images a class, but {folder} is none.")
    crop = [v2.RandomResizedCrop(224), v2.RandomHorizontalFlip()] if augment else [v2.Resize(256), v2.CenterCrop(224)]
    as_tensor = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(_MEAN, _STD), v2.ToPureTensor()]
    try:
        return datasets.ImageFolder(str(folder), v2.Compose([*crop, *as_tensor]), loader=_open)
    except FileNotFoundError as error:  # no class folders, or one without images
        raise UserError(f"Cannot use the image folder {folder}: {error}") from error


def _open(path: str) -> Any:
    from PIL import Image

    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except OSError as error:
        raise UserError(f"Cannot read the image {path}: {error}. Repair or remove it.") from error
