"""The whole numbers inside an ONNX graph, and how they follow from the widths of the network.

Groups of a depthwise convolution and sizes of a reshape are numbers in the graph, not tensors, and so are the shapes
that the exporter noted for every value (the optimiser folds with them). Two exports of one network at different widths
have the same nodes; every number in which they differ is tied to a dimension of a tensor that it is a fixed multiple
of in all exports, of the nearest module that has one.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from onnxscript import ir

SCOPES = "pkg.torch.onnx.name_scopes"
"""Metadata of a node by the exporter: module paths from the root down, then the operator."""

Shapes: TypeAlias = dict[str, tuple[int, ...]]
"""Name of a tensor -> its sizes."""

_TIMES = re.compile(r"(?:(\d+)\*)?([A-Za-z_]\w*)")


@dataclass(frozen=True, slots=True)
class Export:
    """What one export says: the numbers in its graph, the module path that each belongs to, the shapes of tensors."""

    numbers: tuple[int, ...]
    scopes: tuple[str, ...]
    shapes: Shapes

    @classmethod
    def read(cls, model: ir.Model) -> Export:
        """Read a graph."""
        found = [(number, scope(node)) for node, _, numbers in _places(model) for number in numbers]
        return cls(tuple(number for number, _ in found), tuple(path for _, path in found), shapes_of(model))

    def is_like(self, other: Export) -> bool:
        """Whether both have the same nodes, as far as numbers and tensors show it."""
        return self.scopes == other.scopes and self.shapes.keys() == other.shapes.keys()


@dataclass(frozen=True, slots=True)
class Multiple:
    """`ratio` times the size of dimension `axis` of the tensor `name`."""

    name: str
    axis: int
    ratio: Fraction

    def value(self, shapes: Shapes) -> int:
        """The number at other widths."""
        return int(self.ratio * shapes[self.name][self.axis])


def explain(dense: Export, others: Sequence[Export]) -> dict[int, Multiple | None]:
    """For each number that is not the same in all exports, what it is a multiple of; None where nothing fits."""
    found: dict[int, Multiple | None] = {}
    for index, number in enumerate(dense.numbers):
        if all(other.numbers[index] == number for other in others):
            continue
        candidates = [
            Multiple(name, axis, Fraction(number, size))
            for name, shape in dense.shapes.items()
            for axis, size in enumerate(shape)
            if size and all(other.numbers[index] * size == number * other.shapes[name][axis] for other in others)
        ]
        path = dense.scopes[index].split(".")
        found[index] = max(candidates, key=lambda multiple: _shared(path, multiple.name.split(".")), default=None)
    return found


def write_numbers(model: ir.Model, numbers: Sequence[int | None]) -> None:
    """Put `numbers` where `Export.read` finds them; None leaves an attribute as it is and removes a noted shape."""
    from onnxscript import ir

    at = 0
    for node, where, old in list(_places(model)):
        new = list(numbers[at : at + len(old)])
        at += len(old)
        if new == old:
            continue
        if isinstance(where, int):
            output = node.outputs[where]
            sizes = [_resized(size, number) for size, number in zip(output.shape or (), new, strict=True)]
            output.shape = None if None in new else ir.Shape(sizes)
        elif None not in new:
            attribute = node.attributes[where]
            value: Any = new
            if attribute.type == ir.AttributeType.INT:
                value = new[0]
            elif attribute.type == ir.AttributeType.TENSOR:
                value = ir.tensor(np.array(new, dtype=np.int64).reshape(attribute.value.numpy().shape))
            node.attributes[where] = ir.Attr(where, attribute.type, value)
            for output in node.outputs:
                output.const_value = None  # a note of the old number


def shapes_of(model: ir.Model) -> Shapes:
    """Sizes of the initializers."""
    return {
        name: tuple(value.const_value.shape.numpy())
        for name, value in model.graph.initializers.items()
        if value.const_value is not None
    }


def scope(node: Any) -> str:
    """Path of the module whose `forward` made a node, "" for the network itself."""
    return scope_of(node.metadata_props.get(SCOPES, "[]"))


def scope_of(text: str) -> str:
    """The module path in the value of `SCOPES`."""
    paths = ast.literal_eval(text)[:-1]
    return str(paths[-1]) if paths and not paths[-1].startswith("_empty_nn_module_stack") else ""


def _places(model: ir.Model) -> Iterator[tuple[ir.Node, str | int, list[int]]]:
    """Everything that holds whole numbers: (node, name of an attribute or index of an output, the numbers)."""
    from onnxscript import ir

    for node in model.graph:
        for name, attribute in node.attributes.items():
            if attribute.type == ir.AttributeType.INT:
                yield node, name, [attribute.value]
            elif attribute.type == ir.AttributeType.INTS:
                yield node, name, list(attribute.value)
            elif attribute.type == ir.AttributeType.TENSOR and attribute.value.dtype == ir.DataType.INT64:
                yield node, name, attribute.value.numpy().ravel().tolist()
        for index, output in enumerate(node.outputs):
            yield node, index, [_number(size) for size in output.shape or ()]


def _number(size: int | ir.SymbolicDim) -> int:
    """A noted size; of one that grows with the batch its factor, 4 in ``4*batch``; 0 where it is more complicated."""
    if isinstance(size, int):
        return size
    times = _TIMES.fullmatch(str(size.value))
    return int(times[1] or 1) if times else 0


def _resized(size: int | ir.SymbolicDim, number: int | None) -> int | str | None:
    """`size` with another number; None, which is any size, for what is more complicated."""
    if isinstance(size, int) or number is None:
        return number
    times = _TIMES.fullmatch(str(size.value))
    return None if times is None else times[2] if number == 1 else f"{number}*{times[2]}"


def _shared(path: list[str], name: list[str]) -> int:
    """How many parts two dotted names have in common from the left."""
    return next((i for i, (a, b) in enumerate(zip(path, name, strict=False)) if a != b), min(len(path), len(name)))
