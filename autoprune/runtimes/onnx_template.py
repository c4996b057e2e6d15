"""ONNX graphs of many subnets of one network from a single export.

The dense network is exported once, unoptimised: then its initializers still have the names and shapes of the network's
tensors. The graph of a subnet is this one with the subnet's tensors in place, optimised as `torch.onnx.export` does:
what `autoprune export` would write, several times sooner.

Numbers inside the graph that depend on widths (groups of a depthwise convolution, sizes of a reshape) are *learnt*:
where a filled graph does not compute what PyTorch does, the subnet is exported itself, and every number in which the
two exports differ is tied to a dimension of a tensor that explains it in all exports seen so far. A number that no
dimension explains makes later subnets that depend on it be exported themselves: slower, never wrong.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from autoprune.export_graph import (
    TOLERANCE,
    Inputs,
    _batch_size,
    _free_batch,
    _quiet,
    _step,
    _with_batch,
    as_inputs,
    largest_output,
    max_difference,
)
from autoprune.running import evaluation_mode
from autoprune.search_spaces.errors import UserError

if TYPE_CHECKING:
    import onnx_ir as ir

Call: TypeAlias = Callable[[list[np.ndarray]], list[np.ndarray]]
"""A graph that is ready to run: arrays of the inputs -> arrays of the outputs."""


class _Dimension(NamedTuple):
    """`ratio` times the size of dimension `axis` of the tensor `name`."""

    name: str
    axis: int
    ratio: Fraction


class OnnxTemplate:
    """Makes ONNX graphs of subnets of `dense`.

    Args:
        dense: exported at once, with a free batch size where it allows that; a copy on the CPU.
        inputs: of the measured batch size.

    Raises:
        UserError: the extra is missing, or the network cannot be exported.
    """

    def __init__(self, dense: nn.Module, inputs: Any) -> None:
        require_onnx()
        args, kwargs = as_inputs(pytree.tree_map_only(Tensor, lambda tensor: tensor.detach().cpu(), inputs))
        self.inputs: Inputs = args, kwargs
        self.exports = 0
        self._program = self._export(dense)
        self._dense = _integers(self._program.model)
        self._learnt: list[tuple[dict[str, tuple[int, ...]], list[int]]] = []  # tensor shapes, numbers of each export
        self._formulas: dict[int, _Dimension | None] = {}

    @property
    def feed(self) -> list[np.ndarray]:
        """The inputs of the graph."""
        return [leaf.numpy() for leaf in pytree.tree_leaves(self.inputs) if isinstance(leaf, Tensor)]

    def make(self, model: nn.Module, start: Callable[[bytes], Call]) -> tuple[bytes, Call]:
        """The graph of the dense network or a subnet, started by `start` and compared with PyTorch.

        Raises:
            UserError: it cannot be exported, does not run, or computes something else.
        """
        expected = self._expected(model)
        try:
            graph = self._fill(model)
            call = start(graph)
            self._compare(call, expected)
            return graph, call
        except OSError:
            raise
        except Exception:  # whatever the runtime raises on a graph that does not fit together
            graph = self._export_and_learn(model)
        with _step("The ONNX graph of this network failed its check"):
            call = start(graph)
            self._compare(call, expected)
        return graph, call

    def _expected(self, model: nn.Module) -> list[Tensor]:
        model = _on_cpu(model)
        args, kwargs = self.inputs
        with evaluation_mode(model), torch.inference_mode():
            return [leaf for leaf in pytree.tree_leaves(model(*args, **kwargs)) if isinstance(leaf, Tensor)]

    def _compare(self, call: Call, expected: list[Tensor]) -> None:
        found = [torch.from_numpy(np.asarray(output)) for output in call(self.feed)]
        difference, largest = max_difference(found, expected), largest_output(expected)
        if not difference <= TOLERANCE * max(largest, 1e-6):
            raise UserError(
                f"Its outputs differ from PyTorch's by {difference:.2g}, allowed is {TOLERANCE:g} of the largest output"
                f" ({largest:.2g})."
            )

    def _export(self, model: nn.Module) -> torch.onnx.ONNXProgram:
        """The unoptimised graph, with a free batch size as `autoprune export` writes it, else with the measured one."""
        self.exports += 1
        model = _on_cpu(model)
        batch = _batch_size(self.inputs)
        example = _with_batch(self.inputs, batch, max(batch, 2))
        with evaluation_mode(model), torch.no_grad(), _quiet():
            try:
                return _exported(model, example, _free_batch(model, example))
            except Exception:  # the exporters' errors share no base class
                with _step("This network cannot be written as ONNX"):
                    return _exported(model, self.inputs, None)

    def _export_and_learn(self, model: nn.Module) -> bytes:
        program = self._export(model)
        numbers = _integers(program.model)
        if len(numbers) == len(self._dense):
            self._learnt.append((_shapes(program.model), numbers))
            dense = _shapes(self._program.model), self._dense
            self._formulas = _explain(dense, self._learnt)
        return _optimised(program)

    def _fill(self, model: nn.Module) -> bytes:
        import onnx_ir as ir

        program = copy.copy(self._program)
        program.model = self._program.model.clone()
        tensors = dict(model.named_parameters(remove_duplicate=False)) | dict(
            model.named_buffers(remove_duplicate=False)
        )
        for name, value in program.model.graph.initializers.items():
            if name in tensors:
                tensor = ir.tensor(tensors[name].detach().cpu().contiguous(), name=name)
                value.const_value, value.shape = tensor, tensor.shape
        for node in program.model.graph:
            for output in node.outputs:  # what the exporter noted of the dense network; the optimiser would believe it
                output.shape, output.const_value = None, None
        if self._formulas:
            shapes = _shapes(program.model)
            numbers = list(self._dense)
            for index, formula in self._formulas.items():
                if formula is not None:
                    numbers[index] = int(formula.ratio * shapes[formula.name][formula.axis])
            _set_integers(program.model, numbers)
        with _quiet():
            return _optimised(program)


def require_onnx() -> None:
    """Check that what the ONNX runtimes need is installed.

    Raises:
        UserError: it is not.
    """
    try:
        import onnx_ir  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(f"This runtime needs {error.name}. Install it: pip install 'autoprune[onnx]'.") from None
    del onnxruntime


def _exported(model: nn.Module, inputs: Inputs, dynamic_shapes: Any) -> torch.onnx.ONNXProgram:
    exported = torch.export.export(model, inputs[0], inputs[1], dynamic_shapes=dynamic_shapes)
    program = torch.onnx.export(exported, (), dynamo=True, optimize=False, verbose=False)
    assert program is not None  # it is None only with dynamo=False
    return program


def _optimised(program: torch.onnx.ONNXProgram) -> bytes:
    program.optimize()
    return program.model_proto.SerializeToString()


def _on_cpu(model: nn.Module) -> nn.Module:
    tensors = [*model.parameters(), *model.buffers()]
    return model if all(tensor.device.type == "cpu" for tensor in tensors) else copy.deepcopy(model).cpu()


def _shapes(model: ir.Model) -> dict[str, tuple[int, ...]]:
    return {
        name: tuple(value.const_value.shape.numpy())
        for name, value in model.graph.initializers.items()
        if value.const_value is not None
    }


def _slots(model: ir.Model) -> Iterator[tuple[ir.Node, str, Any]]:
    """Every attribute of whole numbers in the graph: (node, attribute, its numbers)."""
    import onnx_ir as ir

    for node in model.graph:
        for name, attribute in node.attributes.items():
            if attribute.type == ir.AttributeType.INT:
                yield node, name, [attribute.value]
            elif attribute.type == ir.AttributeType.INTS:
                yield node, name, list(attribute.value)
            elif attribute.type == ir.AttributeType.TENSOR and attribute.value.dtype == ir.DataType.INT64:
                yield node, name, attribute.value.numpy().ravel().tolist()


def _integers(model: ir.Model) -> list[int]:
    return [int(number) for _, _, numbers in _slots(model) for number in numbers]


def _set_integers(model: ir.Model, numbers: list[int]) -> None:
    """Write back what `_integers` read."""
    import onnx_ir as ir

    at = 0
    for node, name, old in list(_slots(model)):
        new = numbers[at : at + len(old)]
        at += len(old)
        if new == old:
            continue
        attribute = node.attributes[name]
        value: Any = new
        if attribute.type == ir.AttributeType.INT:
            value = new[0]
        elif attribute.type == ir.AttributeType.TENSOR:
            value = ir.tensor(np.array(new, dtype=np.int64).reshape(attribute.value.numpy().shape))
        node.attributes[name] = ir.Attr(name, attribute.type, value)


def _explain(
    dense: tuple[dict[str, tuple[int, ...]], list[int]], others: list[tuple[dict[str, tuple[int, ...]], list[int]]]
) -> dict[int, _Dimension | None]:
    """For each number that is not the same in all exports, the dimension that it is a fixed multiple of."""
    shapes, numbers = dense
    formulas: dict[int, _Dimension | None] = {}
    for index, number in enumerate(numbers):
        if all(found[index] == number for _, found in others):
            continue
        formulas[index] = next(
            (
                _Dimension(name, axis, Fraction(number, size))
                for name, shape in shapes.items()
                for axis, size in enumerate(shape)
                if size and all(found[index] * size == number * other[name][axis] for other, found in others)
            ),
            None,
        )
    return formulas
