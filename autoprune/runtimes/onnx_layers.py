"""Which module of the network a node of its ONNX graph belongs to, under the names that runtimes report.

A node belongs to the module of its first weight, so that a convolution fused with its norm and activation counts for
the convolution; a node without one to the module whose `forward` made it. What a runtime adds of its own (reorders)
counts for the whole network, path "".
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Iterable
from typing import Any

from torch import nn

from autoprune.runtimes.onnx_numbers import SCOPES, scope_of


class NodeModules:
    """The module paths of the nodes of a graph."""

    def __init__(self, graph: bytes, model: nn.Module) -> None:
        import onnx

        nodes = onnx.load_from_string(graph).graph.node
        weights = {name for name, _ in model.named_parameters(remove_duplicate=False)}
        self._paths = {node.output[0]: _path_of(node, weights) for node in nodes}
        self._by_name = {node.name: node for node in nodes}
        self._by_output = {name: node for node in nodes for name in node.output}

    def path(self, reported: str, op: str | None = None) -> str:
        """Module path of the node that a runtime calls `reported`: a node's name, or that of its output.

        `op` is its kind: a convolution that was fused with what follows may be reported under the last output, and
        is found from there.
        """
        name = reported.removeprefix("fused ").partition("/")[0].removesuffix("_nchwc")
        node = self._by_name.get(name) or self._by_output.get(name)
        if node is None:
            return ""
        return self._paths[self._producer(node, (op or "").removeprefix("Fused")).output[0]]

    def _producer(self, node: Any, op: str) -> Any:
        """The nearest node of kind `op` from which `node` follows, at most three nodes back; else `node`."""
        near = [node]
        for _ in range(3):
            for candidate in near:
                if candidate.op_type == op:
                    return candidate
            near = [self._by_output[name] for found in near for name in found.input if name in self._by_output]
        return node


def sum_by_module(nodes: NodeModules, times: Iterable[tuple[str, str | None, float]]) -> dict[str, float]:
    """Add (reported name, kind of op, milliseconds) up by module path."""
    total: dict[str, float] = defaultdict(float)
    for name, op, ms in times:
        total[nodes.path(name, op)] += ms
    return dict(total)


def _path_of(node: Any, weights: Container[str]) -> str:
    for name in node.input:
        if name in weights:
            return str(name).rpartition(".")[0]
    return scope_of(next((entry.value for entry in node.metadata_props if entry.key == SCOPES), "[]"))
