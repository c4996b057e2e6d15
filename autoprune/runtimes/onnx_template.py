"""ONNX graphs of many subnets of one network from a single export.

The dense network is exported once, unoptimised: then its initializers still have the names and shapes of the network's
tensors. The graph of a subnet is this one with the subnet's tensors in place, optimised as `torch.onnx.export` does:
what `autoprune export` would write, several times sooner.

Every graph is run and compared with PyTorch. Where it does not fit, the subnet is exported itself, and the numbers in
the graph that depend on widths are learnt from that (see `onnx_numbers`), so that later subnets fit. A number that
nothing explains makes subnets in which it changes be exported themselves: slower, never wrong.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from autoprune.export_graph import (
    TOLERANCE,
    Inputs,
    as_inputs,
    batch_size,
    explained,
    free_batch,
    largest_output,
    max_difference,
    silent,
    with_batch,
)
from autoprune.running import evaluation_mode
from autoprune.runtimes.onnx_numbers import Export, Multiple, explain, shapes_of, write_numbers
from autoprune.search_spaces.errors import UserError

Arrays: TypeAlias = list[NDArray[Any]]
"""The inputs or the outputs of a graph, in order."""

Call = TypeVar("Call", bound=Callable[[Arrays], Arrays])
"""A graph that is ready to run."""


class OnnxTemplate:
    """Makes ONNX graphs of subnets of `dense`, which is exported at once.

    Args:
        dense: not changed.
        inputs: of the measured batch size.
        free: leave the batch size free, as `autoprune export` does, where the network allows it.

    Attributes:
        feed: the inputs of the graphs.
        exports: how many networks had to be exported so far.

    Raises:
        UserError: the extra is missing, or the network cannot be exported.
    """

    def __init__(self, dense: nn.Module, inputs: Any, *, free: bool = True) -> None:
        require_onnx()
        self._inputs: Inputs = as_inputs(pytree.tree_map_only(Tensor, lambda tensor: tensor.detach().cpu(), inputs))
        self.feed = _arrays(self._inputs)
        self.exports = 0
        self._free = free
        self._program = self._export(dense)
        self._dense = Export.read(self._program.model)
        self._others: list[Export] = []
        self._multiples: dict[int, Multiple | None] = {}

    def make(self, model: nn.Module, start: Callable[[bytes], Call]) -> tuple[bytes, Call]:
        """The graph of the dense network or a subnet, started by `start` and compared with PyTorch.

        Raises:
            UserError: it cannot be exported, does not run, or computes something else.
        """
        model = _on_cpu(model)
        args, kwargs = self._inputs
        with evaluation_mode(model), torch.inference_mode():
            expected = [leaf for leaf in pytree.tree_leaves(model(*args, **kwargs)) if isinstance(leaf, Tensor)]
        try:
            graph = self._fill(model)
            call = start(graph)
            self._check(call, expected)
        except OSError:
            raise
        except Exception:  # whatever the optimiser and the runtime raise on a graph that does not fit together
            with explained("This network cannot be run as an ONNX graph"):
                graph = self._export_and_learn(model)
                call = start(graph)
                self._check(call, expected)
        return graph, call

    def _check(self, call: Callable[[Arrays], Arrays], expected: list[Tensor]) -> None:
        difference = max_difference([torch.from_numpy(np.asarray(output)) for output in call(self.feed)], expected)
        largest = largest_output(expected)
        if not difference <= TOLERANCE * max(largest, 1e-6):
            raise UserError(
                f"Its outputs differ from PyTorch's by {difference:.2g}, allowed is {TOLERANCE:g} of the largest output"
                f" ({largest:.2g})."
            )

    def _export(self, model: nn.Module) -> torch.onnx.ONNXProgram:
        self.exports += 1
        model = _on_cpu(model)
        with evaluation_mode(model), torch.no_grad(), silent():
            if self._free:
                batch = batch_size(self._inputs)
                example = with_batch(self._inputs, batch, max(batch, 2))  # a batch of 1 would be taken for a constant
                try:
                    return _program(model, example, free_batch(model, example))
                except Exception:  # the exporter's errors share no base class
                    self._free = False
            with explained("This network cannot be written as ONNX"):
                return _program(model, self._inputs, None)

    def _export_and_learn(self, model: nn.Module) -> bytes:
        program = self._export(model)
        export = Export.read(program.model)
        if export.is_like(self._dense):
            self._others.append(export)
            self._multiples = explain(self._dense, self._others)
        return _optimised(program)

    def _fill(self, model: nn.Module) -> bytes:
        from onnxscript import ir

        program = copy.copy(self._program)
        program.model = filled = self._program.model.clone()
        tensors: dict[str, Tensor] = {
            **dict(model.named_parameters(remove_duplicate=False)),
            **dict(model.named_buffers(remove_duplicate=False)),
        }
        for name, value in filled.graph.initializers.items():
            if name in tensors:
                tensor = tensors[name].detach().contiguous()
                value.const_value, value.shape = ir.tensor(tensor, name=name), ir.Shape(tensor.shape)
        if self._multiples:
            numbers: list[int | None] = list(self._dense.numbers)
            shapes = shapes_of(filled)
            for index, multiple in self._multiples.items():
                numbers[index] = multiple.value(shapes) if multiple else None
            write_numbers(filled, numbers)
        return _optimised(program)


def require_onnx() -> None:
    """Check that what the runtimes on ONNX graphs need is installed.

    Raises:
        UserError: it is not.
    """
    try:
        import onnxruntime
        import onnxscript
    except ImportError as error:
        raise UserError(f"This runtime needs {error.name}. Install it: pip install 'autoprune[onnx]'.") from None
    del onnxruntime, onnxscript


def _program(model: nn.Module, inputs: Inputs, dynamic_shapes: Any) -> torch.onnx.ONNXProgram:
    exported = torch.export.export(model, inputs[0], inputs[1], dynamic_shapes=dynamic_shapes)
    program = torch.onnx.export(exported, (), dynamo=True, optimize=False, verbose=False)
    assert program is not None  # it is None only with dynamo=False
    return program


def _optimised(program: torch.onnx.ONNXProgram) -> bytes:
    with silent():
        program.optimize()
        graph: bytes = program.model_proto.SerializeToString()
    return graph


def _on_cpu(model: nn.Module) -> nn.Module:
    tensors = [*model.parameters(), *model.buffers()]
    return model if all(tensor.device.type == "cpu" for tensor in tensors) else copy.deepcopy(model).cpu()


def _arrays(inputs: Inputs) -> Arrays:
    tensors = [leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor)]
    unknown = [str(tensor.dtype) for tensor in tensors if tensor.dtype == torch.bfloat16]
    if unknown:
        raise UserError(
            f"ONNX runtimes take inputs that NumPy knows, not {unknown[0]}: give model and inputs in float."
        )
    return [tensor.numpy() for tensor in tensors]
