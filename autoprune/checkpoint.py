"""The state of a training between two steps, in one file that is whole or absent.

The file is what `torch.save` writes, behind a SHA-256 digest of it (torch does not notice a flipped bit in a tensor).
It is read back with ``weights_only=True``: no code is run.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from autoprune.documents import Damaged, Newer
from autoprune.files import atomic_write
from autoprune.search_spaces.errors import UserError

FORMAT = 2
"""Format 1 was written after whole epochs only, and has no state within one."""

EVERY_S = 60.0
"""Seconds after which a training writes its state, besides after every epoch: what a kill can cost."""

MAX_SHARE = 0.05
"""Of the time, at most, is spent on that: where writing takes more than 3 seconds, it is done less often."""

_MAGIC = b"autoprune training\n"
_DELETE = "Delete it to train from the beginning, or name another file."


class CheckpointWriter:
    """Writes the state of one training, from time to time or when told to."""

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        self._path, self._identity = path, identity
        self._next = time.monotonic() + EVERY_S

    @property
    def is_due(self) -> bool:
        """Whether it was written long enough ago."""
        return time.monotonic() >= self._next

    def write(self, state: Mapping[str, Any]) -> None:
        """Write `state`; see `write_checkpoint`."""
        start = time.monotonic()
        write_checkpoint(self._path, self._identity, state)
        end = time.monotonic()
        self._next = end + max(EVERY_S, (end - start) / MAX_SHARE)


def write_checkpoint(path: Path, identity: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Write `state` (tensors, numbers, strings, lists and dicts of them) of the training called `identity`.

    Raises:
        UserError: the disk is full or the folder may not be written; an earlier checkpoint is still there.
    """
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, "identity": dict(identity), "state": dict(state)}, buffer)
    content = buffer.getvalue()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, _MAGIC + hashlib.sha256(content).digest() + content)
    except OSError as error:
        raise UserError(
            f"The checkpoint {path} cannot be written: {error.strerror or error}. What was written before is still "
            "there: make room or choose another folder, then go on: with `autoprune resume` if there is a run "
            "folder, else with the same command."
        ) from None


def read_checkpoint(path: Path, identity: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the state in `path`, or None where there is no such file.

    Raises:
        UserError: the file is damaged, or is the checkpoint of another training. It is left as it is: what it holds
            may be worth more than the wish to overwrite it.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"The checkpoint {path} cannot be read: {error.strerror or error}.") from None
    saved = _parsed(path, content)
    other = [
        f"{name} was {saved['identity'].get(name)!r}, is now {identity.get(name)!r}"
        for name in sorted(saved["identity"].keys() | identity.keys())
        if saved["identity"].get(name) != identity.get(name)
    ]
    if other:
        raise UserError(
            f"The checkpoint {path} belongs to another training: {'; '.join(other)}. Use its settings to go on with "
            f"it. {_DELETE}"
        )
    state: dict[str, Any] = saved["state"]
    return state


def check_checkpoint(path: Path) -> None:
    """Refuse a file that is no whole checkpoint, of whatever training.

    Raises:
        Damaged: it is torn or altered.
        Newer: it is of a format to come.
    """
    _parsed(path, path.read_bytes())


def _parsed(path: Path, content: bytes) -> dict[str, Any]:
    """What `write_checkpoint` wrote: ``format``, ``identity`` and ``state``, if it is whole."""
    start = len(_MAGIC) + hashlib.sha256().digest_size
    digest, payload = content[len(_MAGIC) : start], content[start:]
    if not content.startswith(_MAGIC) or hashlib.sha256(payload).digest() != digest:
        raise Damaged(path, "it is not a whole checkpoint of autoprune", _DELETE)
    try:
        saved: Any = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
        if not (isinstance(saved, dict) and saved.keys() >= {"format", "identity", "state"}):
            raise TypeError("it holds no state of a training")
        version = int(saved["format"])
    except (pickle.UnpicklingError, RuntimeError, AttributeError, TypeError, ValueError, MemoryError) as error:
        raise Damaged(path, str(error).rstrip("."), _DELETE) from None
    if version > FORMAT:
        raise Newer(path, version, FORMAT)
    return saved


def shapes_digest(model: nn.Module) -> str:
    """Hex digest of names and shapes in the state of `model`."""
    shapes = [(name, tuple(tensor.shape)) for name, tensor in model.state_dict().items()]
    return hashlib.sha256(repr(shapes).encode()).hexdigest()[:16]


def weight_norms(model: nn.Module) -> Tensor:
    """Norm of every parameter, float64 [parameters] on the CPU: tells networks of equal shapes apart.

    Compare with a tolerance: weights computed on another machine differ in their last bits.
    """
    norms = [parameter.detach().double().norm().cpu() for parameter in model.parameters()]
    return torch.stack(norms) if norms else torch.zeros(0, dtype=torch.float64)


def copy_state(model: nn.Module) -> dict[str, Tensor]:
    """Copies on the CPU of all tensors in the state of `model`, in standard layout."""
    return {
        name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, tensor in model.state_dict().items()
    }
