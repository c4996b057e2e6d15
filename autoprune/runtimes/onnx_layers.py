"""Which module of the network a node of its ONNX graph belongs to, under the names that runtimes report.

A node belongs to the module of its first weight, so that a convolution fused with its norm and activation counts for
the convolution; a node without one to the module whose `forward` made it. What a runtime adds of its own (reorders)
counts for the whole network, path "". Where a runtime computes several layers in one kernel and names them all, its
time is shared among them in proportion to the sizes of their weights, and so to their multiplications per position.
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
        self._sizes = {name: weight.numel() for name, weight in model.named_parameters(remove_duplicate=False)}
        self._weights = {node.output[0]: _first_weight(node, self._sizes) for node in nodes}
        self._by_name = {node.name: node for node in nodes}
        self._by_output = {name: node for node in nodes for name in node.output}

    def path(self, reported: str, op: str | None = None) -> str:
        """Module path of the node that a runtime calls `reported`: a node's name, or that of its output.

        `op` is its kind: a convolution that was fused with what follows may be reported under the last output, and
        is found from there.
        """
        node = self._find(reported)
        return "" if node is None else self._path(self._producer(node, (op or "").removeprefix("Fused")))

    def shares(self, reported: Iterable[str]) -> dict[str, float]:
        """Module path -> its share of a kernel that computes all nodes in `reported`; empty where none has a weight."""
        nodes = [node for node in map(self._find, reported) if node is not None]
        sizes = {name: self._sizes[name] for node in nodes if (name := self._weights[node.output[0]])}
        shares: dict[str, float] = defaultdict(float)
        for name, size in sizes.items():
            shares[_module(name)] += size / sum(sizes.values())
        return dict(shares)

    def _find(self, reported: str) -> Any:
        name = reported.removeprefix("fused ").partition("/")[0].removesuffix("_nchwc")
        return self._by_name.get(name) or self._by_output.get(name)

    def _path(self, node: Any) -> str:
        weight = self._weights[node.output[0]]
        if weight:
            return _module(weight)
        return scope_of(next((entry.value for entry in node.metadata_props if entry.key == SCOPES), "[]"))

    def _producer(self, node: Any, op: str) -> Any:
        """The nearest node of kind `op` from which `node` follows, at most three nodes back; else `node`."""
        near = [node]
        for _ in range(3):
            for candidate in near:
                if candidate.op_type == op:
                    return candidate
            near = [self._by_output[name] for found in near for name in found.input if name in self._by_output]
        return node


def sum_by_module(times: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Add (module path, milliseconds) up by module path."""
    total: dict[str, float] = defaultdict(float)
    for path, ms in times:
        total[path] += ms
    return dict(total)


def _first_weight(node: Any, weights: Container[str]) -> str | None:
    return next((str(name) for name in node.input if name in weights), None)


def _module(parameter: str) -> str:
    return parameter.rpartition(".")[0]
