"""ONNX graphs of subnets made from one export, and the runtimes that run them."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from autoprune.export_graph import export_onnx, max_difference
from autoprune.runtimes import make_runtime
from autoprune.runtimes.onnx_layers import NodeModules
from autoprune.runtimes.onnx_template import OnnxTemplate
from autoprune.runtimes.onnxruntime import OnnxCall
from autoprune.search_spaces.errors import UserError
from tests.autoprune.runtimes.nets import SmallNet, image, small_net, subnets

onnx = pytest.importorskip("onnx")


@pytest.fixture(scope="module")
def net() -> SmallNet:
    return small_net()


@pytest.fixture(scope="module")
def nets(net: SmallNet) -> list[nn.Module]:
    return subnets(net, 7)[1]


@pytest.fixture(scope="module")
def template(net: SmallNet, nets: list[nn.Module]) -> OnnxTemplate:
    """It has seen the first subnets, and knows from them which numbers follow widths."""
    template = OnnxTemplate(net, image())
    for subnet in nets[:5]:
        template.make(subnet, start)
    return template


def start(graph: bytes) -> OnnxCall:
    return OnnxCall(graph, 1)


def run(model: nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        outputs: torch.Tensor = model(image())
    return outputs


def structure(graph: bytes) -> list[tuple[Any, ...]]:
    """Nodes with their attributes, shapes of the tensors that they take and the shape noted for what they give.

    Names made by the exporter are left out, and so are reshapes to the shape that their input has: for attention with
    one head the exporter multiplies nothing by the heads, so that its optimiser sees that a reshape does nothing; a
    template of more heads multiplies by 1, and the reshape stays.
    """
    model = onnx.load_from_string(graph)
    noted = {value.name: value.type.SerializeToString() for value in model.graph.value_info}
    shapes = {tensor.name: (tuple(tensor.dims), tensor.data_type) for tensor in model.graph.initializer}
    return [
        (
            node.op_type,
            sorted(attribute.SerializeToString() for attribute in node.attribute),
            [shapes.get(i) for i in node.input],
            noted.get(node.output[0]),
        )
        for node in model.graph.node
        if not (node.op_type == "Reshape" and noted.get(node.input[0], "unknown") == noted.get(node.output[0]))
    ]


def test_graphs_of_subnets_are_those_of_their_own_export(
    template: OnnxTemplate, nets: list[nn.Module], tmp_path: Path
) -> None:
    """And need no export any more, once a few subnets have shown which numbers follow which widths."""
    before = template.exports
    for subnet in nets[5:]:
        graph, call = template.make(subnet, start)
        export_onnx(subnet, image(), tmp_path / "own.onnx")
        assert structure(graph) == structure((tmp_path / "own.onnx").read_bytes())
        assert np.allclose(call(template.feed)[0], run(subnet).numpy(), atol=1e-5)
    assert template.exports == before


def test_numbers_are_learnt_from_few_exports(template: OnnxTemplate) -> None:
    assert 2 <= template.exports <= 4


def test_widths_in_the_graph_are_those_of_the_subnet(template: OnnxTemplate, nets: list[nn.Module]) -> None:
    graph, _ = template.make(nets[5], start)
    convolutions = [node for node in onnx.load_from_string(graph).graph.node if node.op_type == "Conv"]
    groups = [next(a.i for a in node.attribute if a.name == "group") for node in convolutions]
    width = nets[5].state_dict()["stem.weight"].shape[0]
    assert width != 16
    assert groups == [1, width, 1]


def test_a_graph_that_computes_something_else_is_not_used(
    template: OnnxTemplate, nets: list[nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The filled graph gets weights of another subnet: the check sees it, and the subnet is exported."""
    wrong = copy.deepcopy(nets[5])
    with torch.no_grad():
        wrong.head.weight.mul_(2)  # type: ignore[operator,union-attr]
    fill = template._fill
    monkeypatch.setattr(template, "_fill", lambda model: fill(wrong))
    before = template.exports
    _, call = template.make(nets[5], start)
    assert template.exports == before + 1
    assert np.allclose(call(template.feed)[0], run(nets[5]).numpy(), atol=1e-5)


def test_numbers_that_nothing_explains_cost_an_export_each_time() -> None:
    """A reshape to the sum of two widths: no multiple of a dimension of any tensor."""

    class Sum(nn.Module):
        def __init__(self, a: int, b: int) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, a, 3, stride=8), nn.Conv2d(3, b, 3, stride=8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat((self.a(x), self.b(x)), 1).flatten(1).mean(1)

    template = OnnxTemplate(Sum(4, 6), image())
    for widths, exports in (((4, 6), 1), ((2, 6), 2), ((4, 2), 3), ((2, 6), 4), ((4, 6), 4)):
        model = Sum(*widths)
        _, call = template.make(model, start)
        assert np.allclose(call(template.feed)[0], run(model).numpy(), atol=1e-5)
        assert template.exports == exports


def test_a_network_that_cannot_be_exported_is_refused() -> None:
    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.conv(x)
            return y if y.sum() > 0 else -y

    with pytest.raises(UserError, match="cannot be written as ONNX"):
        OnnxTemplate(Branch(), image())


@pytest.mark.parametrize("spec", ["onnxruntime", "openvino"])
def test_runtime_runs_dense_and_subnet(spec: str, net: SmallNet, nets: list[nn.Module]) -> None:
    pytest.importorskip(spec)
    before = copy.deepcopy(net.state_dict())
    net.train()
    try:
        with make_runtime(spec).open(net, image()) as session:
            for model in (net, nets[0]):
                runnable: Any = session.load(model)
                times = runnable()
                assert times.wall > 0
                assert times.cpu > 0
                expected = run(model.eval())
                assert max_difference([torch.from_numpy(o) for o in runnable.outputs()], [expected]) < 1e-4
                net.train()
        assert all(module.training for module in net.modules())
    finally:
        net.eval()
    assert all(torch.equal(a, b) for a, b in zip(before.values(), net.state_dict().values(), strict=True))
    layers = runnable.layers()
    assert set(layers) <= {name for name, _ in nets[0].named_modules()}
    assert {"stem", "depthwise", "mix", "attention", "hidden", "head"} <= set(layers)
    assert all(ms >= 0 for ms in layers.values())


def test_openvino_precision_is_the_stated_one(net: SmallNet) -> None:
    pytest.importorskip("openvino")
    runtime = make_runtime("openvino")
    assert runtime.precision == "fp32"
    runnable: Any = runtime.open(net, image()).load(net)
    compiled = runnable._call.request.get_compiled_model()
    assert compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name() == "f32"
    assert compiled.get_property("INFERENCE_NUM_THREADS") == 1


def test_openvino_precision_that_the_processor_lacks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    openvino = pytest.importorskip("openvino")
    monkeypatch.setattr(openvino, "Core", lambda: SimpleNamespace(get_property=lambda *_: ["FP32", "BF16"]))
    assert make_runtime("openvino:precision=bf16").precision == "bf16"
    with pytest.raises(UserError, match="does not compute in fp16"):
        make_runtime("openvino:precision=fp16")


def test_nodes_of_unknown_name_belong_to_the_network(template: OnnxTemplate, nets: list[nn.Module]) -> None:
    graph, _ = template.make(nets[5], start)
    modules = NodeModules(graph, nets[5])
    convolution = next(node for node in onnx.load_from_string(graph).graph.node if node.op_type == "Conv")
    assert modules.path("ReorderOutput", "ReorderOutput") == ""
    assert modules.path(convolution.name, "Conv") == "stem"
    assert modules.path(f"{convolution.output[0]}_nchwc", "Conv") == "stem"


def test_time_of_a_kernel_of_several_layers_is_shared_by_the_sizes_of_their_weights(
    template: OnnxTemplate, nets: list[nn.Module]
) -> None:
    """As OpenVINO computes a small perceptron at once, and reports both linear layers under the name of the last."""
    graph, _ = template.make(nets[5], start)
    modules = NodeModules(graph, nets[5])
    last = onnx.load_from_string(graph).graph.node[-3:]
    assert [node.op_type for node in last] == ["Gemm", "Relu", "Gemm"]
    sizes = {name: nets[5].state_dict()[f"{name}.weight"].numel() for name in ("hidden", "head")}
    shares = modules.shares([f"{last[0].name}/WithoutBiases", *(node.name for node in last), last[-1].output[0], ""])
    assert shares == pytest.approx({name: size / sum(sizes.values()) for name, size in sizes.items()})
    assert modules.shares([last[1].name]) == {}


def test_missing_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(UserError, match=r"pip install 'autoprune\[openvino\]'"):
        make_runtime("openvino")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    make: Callable[[], object]
    for make in (lambda: make_runtime("onnxruntime"), lambda: make_runtime("command:true")):
        with pytest.raises(UserError, match=r"pip install 'autoprune\[onnx\]'"):
            make()


OVERLAPPING = """
import faulthandler, gc, signal
from autoprune.runtimes import make_runtime
from tests.autoprune.runtimes.nets import image, small_net

faulthandler.enable()  # gives the process a signal stack; handlers run on it
signal.signal(signal.SIGUSR1, lambda *_: print("handled", flush=True))
with make_runtime("openvino").open(small_net(), image()) as session:
    networks = [session.load(small_net()) for _ in range(2)]
    signal.raise_signal(signal.SIGUSR1)
    while networks:
        del networks[0]
        gc.collect()
        signal.raise_signal(signal.SIGUSR1)
gc.collect()
signal.raise_signal(signal.SIGUSR1)
"""


def test_signals_are_handled_while_openvino_has_networks_and_after() -> None:
    """Control-C among them. In a process of its own, which would end with the first signal."""
    pytest.importorskip("openvino")
    done = subprocess.run([sys.executable, "-c", OVERLAPPING], capture_output=True, text=True, check=False)
    assert (done.stdout.split(), done.returncode) == (["handled"] * 4, 0), done.stderr
