"""`architecture.json`: what turns the dense model's skeleton into the pruned one, as plain data.

It names where the dense model came from, and for every tensor its shape before and after, and which indices of each
dimension were kept. Everything read back is checked before it is used; no name in it is ever taken for a file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from torch import Tensor

from autoprune.files import read_json
from autoprune.search_spaces.errors import UserError

FORMAT = 1
"""Version of the folder format; a reader refuses higher ones."""

FILE = "architecture.json"

Number: TypeAlias = int | float
AttributeValue: TypeAlias = Number | tuple[Number, ...]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class TensorRecord:
    """One parameter or buffer: `dense` and pruned `shape`, `dtype` (``float32``), and per dimension what was kept.

    `kept` holds, for each dimension, the kept indices of the dense tensor in their new order, or None for all.
    """

    dense: tuple[int, ...]
    shape: tuple[int, ...]
    dtype: str
    kept: tuple[tuple[int, ...] | None, ...]

    def __post_init__(self) -> None:
        if not len(self.dense) == len(self.shape) == len(self.kept):
            raise ValueError("dense, shape and kept differ in length")
        for dense, size, kept in zip(self.dense, self.shape, self.kept, strict=True):
            if size != (dense if kept is None else len(kept)):
                raise ValueError(f"shape {self.shape} does not follow from {self.dense} and the kept indices")
            if kept is not None and not all(0 <= index < dense for index in kept):
                raise ValueError(f"a kept index lies outside 0..{dense - 1}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """The content of `architecture.json`.

    Attributes:
        model: qualified name of the model's class, for people.
        source: ``{"spec", "kwargs", "weights"}`` of the dense model; None for a module handed over in Python.
        tensors: by the name that `model.safetensors` uses.
        attributes: ``(module path, attribute, value)`` that surgery set.
        inputs: shapes and dtypes of the example call.
        importance, candidate, space: criterion, level per group and fingerprint of the search space, for the record.
        sha256: of `model.safetensors`.
        versions: of autoprune and torch at the time of writing.
        meta: what the engine added: costs, scores, budget.
    """

    model: str
    source: Mapping[str, Any] | None
    tensors: Mapping[str, TensorRecord]
    attributes: tuple[tuple[str, str, AttributeValue], ...]
    inputs: Mapping[str, Any]
    importance: str
    candidate: tuple[int, ...]
    space: str
    sha256: str
    versions: Mapping[str, str]
    meta: Mapping[str, Any]

    def to_json(self) -> str:
        """Text of the file: one line per tensor. Index lists, which many tensors share, are stored once."""
        numbers: dict[tuple[int, ...], int] = {}
        tensors = {
            name: {
                "dense": record.dense,
                "shape": record.shape,
                "dtype": record.dtype,
                "kept": [None if kept is None else numbers.setdefault(kept, len(numbers)) for kept in record.kept],
            }
            for name, record in self.tensors.items()
        }
        content = {
            "format": FORMAT,
            "versions": self.versions,
            "model": self.model,
            "source": self.source,
            "importance": self.importance,
            "candidate": self.candidate,
            "space": self.space,
            "inputs": self.inputs,
            "sha256": self.sha256,
            "meta": self.meta,
            "attributes": self.attributes,
            "tensors": tensors,
            "indices": list(numbers),
        }
        return "{\n" + ",\n".join(f"{json.dumps(key)}: {_lines(value)}" for key, value in content.items()) + "\n}\n"

    @classmethod
    def read(cls, folder: Path) -> Architecture:
        """Read and check the file in `folder`.

        Raises:
            UserError: the file is missing, damaged, or of a newer format.
        """
        path = folder / FILE
        content = read_json(path)
        version = content.get("format") if isinstance(content, dict) else None
        if isinstance(version, int) and version > FORMAT:
            raise UserError(
                f"{folder} was written by a newer autoprune (folder format {version}, this one reads up to {FORMAT}). "
                "Upgrade autoprune to load it."
            )
        if version != FORMAT:
            raise UserError(f"{path} does not describe an exported model (its format is {version!r}, not {FORMAT}).")
        try:
            return cls._parse(content)
        except KeyError as error:
            raise _damaged(path, f"{error} is missing") from None
        except (AttributeError, TypeError, ValueError, IndexError) as error:
            raise _damaged(path, str(error)) from None

    @classmethod
    def _parse(cls, content: Mapping[str, Any]) -> Architecture:
        indices = _list(content["indices"], _integers)

        def record(entry: Mapping[str, Any]) -> TensorRecord:
            kept = _list(entry["kept"], lambda number: None if number is None else indices[_integer(number)])
            return TensorRecord(_integers(entry["dense"]), _integers(entry["shape"]), _text(entry["dtype"]), kept)

        source = content["source"]
        if source is not None:
            source = {
                "spec": _text(source["spec"]),
                "kwargs": dict(source["kwargs"]),
                "weights": source.get("weights"),
            }
        return cls(
            model=_text(content["model"]),
            source=source,
            tensors={_text(name): record(entry) for name, entry in content["tensors"].items()},
            attributes=_list(content["attributes"], lambda a: (_text(a[0]), _text(a[1]), _attribute_value(a[2]))),
            inputs=dict(content["inputs"]),
            importance=_text(content["importance"]),
            candidate=_integers(content["candidate"]),
            space=_text(content["space"]),
            sha256=_text(content["sha256"]),
            versions=dict(content["versions"]),
            meta=dict(content["meta"]),
        )


def dtype_name(tensor: Tensor) -> str:
    """``float32`` for `torch.float32`."""
    return str(tensor.dtype).removeprefix("torch.")


def _lines(value: Any) -> str:
    """JSON with one line per entry of a list or dict of containers, so that the file can be read and compared."""
    if isinstance(value, dict) and any(isinstance(item, dict | list | tuple) for item in value.values()):
        return "{\n" + ",\n".join(f" {json.dumps(key)}: {_dumps(item)}" for key, item in value.items()) + "\n}"
    if isinstance(value, list | tuple) and any(isinstance(item, dict | list | tuple) for item in value):
        return "[\n" + ",\n".join(f" {_dumps(item)}" for item in value) + "\n]"
    return _dumps(value)


def _dumps(value: Any) -> str:
    return json.dumps(value, allow_nan=False)


def _damaged(path: Path, why: str) -> UserError:
    return UserError(f"{path} is damaged: {why}. Restore it from a copy, or export the point again.")


def _list(values: Any, read: Callable[[Any], T]) -> tuple[T, ...]:
    if not isinstance(values, list):
        raise TypeError(f"expected a list, found {values!r:.80}")
    return tuple(read(value) for value in values)


def _integer(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"expected a whole number, found {value!r:.80}")
    return value


def _integers(values: Any) -> tuple[int, ...]:
    return _list(values, _integer)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected a text, found {value!r:.80}")
    return value


def _number(value: Any) -> Number:
    if not isinstance(value, int | float) or value != value or value in (float("inf"), float("-inf")):
        raise ValueError(f"expected a finite number, found {value!r:.80}")
    return value


def _attribute_value(value: Any) -> AttributeValue:
    return _list(value, _number) if isinstance(value, list) else _number(value)
