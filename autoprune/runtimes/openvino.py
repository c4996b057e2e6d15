"""OpenVINO on the processor.

Its own choice of precision is bfloat16 where the processor has it, with errors of a few percent: here the precision is
always stated. Shapes are fixed to the measured batch size, as its documentation advises for speed.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, ClassVar

import numpy as np
from torch import nn

from autoprune.runtimes.base import Runtime, Session, Times
from autoprune.runtimes.clock import process_timer
from autoprune.runtimes.onnx_layers import NodeModules, sum_by_module
from autoprune.runtimes.onnx_template import Arrays, OnnxTemplate, require_onnx
from autoprune.runtimes.onnxruntime import OnnxCall
from autoprune.search_spaces.errors import UserError

_HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}
LAYER_RUNS = 5
"""`layers` gives the mean of this many runs, after one more."""


class OpenVinoRuntime(Runtime):
    """Runs the ONNX graph of a network with the latency hint."""

    name: ClassVar[str] = "openvino"

    def __init__(self, *, threads: int = 1, precision: str = "fp32") -> None:
        require_onnx()
        self.library = _library()
        capabilities = core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if precision != "fp32" and precision.upper() not in capabilities:
            raise UserError(f"OpenVINO does not compute in {precision} on this processor. Use openvino:precision=fp32.")
        self.threads, self.precision = threads, precision
        self.clock = "cpu" if threads == 1 else "wall"

    @property
    def version(self) -> str:
        return str(self.library.get_version()).partition("-")[0]

    @property
    def settings(self) -> Mapping[str, str]:
        return {"hint": "latency"}

    def open(self, dense: nn.Module, inputs: Any) -> Session:
        return _OpenVinoSession(self, OnnxTemplate(dense, inputs, free=False))


class _OpenVinoSession(Session):
    def __init__(self, runtime: OpenVinoRuntime, template: OnnxTemplate) -> None:
        self.runtime, self.template = runtime, template

    def load(self, model: nn.Module) -> OpenVinoRunnable:
        graph = self.graph(model)
        return OpenVinoRunnable(self, model, OpenVinoCall(self.runtime, graph))

    def graph(self, model: nn.Module) -> bytes:
        """Checked in float by ONNX Runtime: OpenVINO's own outputs are rounded where the precision is lower."""
        graph, _ = self.template.make(model, lambda graph: OnnxCall(graph, self.runtime.threads))
        return graph


class OpenVinoRunnable:
    """A network in OpenVINO."""

    def __init__(self, session: _OpenVinoSession, model: nn.Module, call: OpenVinoCall) -> None:
        self._session, self._model, self._call = session, model, call
        self._feed = session.template.feed

    def __call__(self) -> Times:
        return process_timer(self.outputs)  # OpenVINO may hand the work to a thread of its own

    def outputs(self) -> Arrays:
        """Run once, untimed."""
        return self._call(self._feed)

    def layers(self) -> dict[str, float] | None:
        """By the performance counters of a network compiled once more with them."""
        graph = self._session.graph(self._model)
        call = OpenVinoCall(self._session.runtime, graph, counters=True)
        call(self._feed)
        modules, computed = NodeModules(graph, self._model), call.computed()
        times: list[tuple[str, float]] = []
        for _ in range(LAYER_RUNS):
            call(self._feed)
            for kernel in call.request.get_profiling_info():
                ms = kernel.real_time.total_seconds() * 1e3 / LAYER_RUNS
                shares = modules.shares(computed.get(kernel.node_name, ())) or {modules.path(kernel.node_name): 1.0}
                times += [(path, share * ms) for path, share in shares.items()]
        return sum_by_module(times)


class OpenVinoCall:
    """A compiled network as a function of the arrays of its inputs."""

    def __init__(self, runtime: OpenVinoRuntime, graph: bytes, counters: bool = False) -> None:
        settings = {
            "INFERENCE_PRECISION_HINT": _HINTS[runtime.precision],
            "INFERENCE_NUM_THREADS": runtime.threads,
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "PERF_COUNT": counters,
        }
        try:
            self.request = core().compile_model(core().read_model(graph), "CPU", settings).create_infer_request()
        except RuntimeError as error:
            first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
            raise UserError(f"OpenVINO cannot run this network: {first}") from error

    def __call__(self, arrays: Arrays) -> Arrays:
        outputs = self.request.infer(arrays, share_inputs=True)
        return [np.asarray(output) for output in outputs.values()]

    def computed(self) -> dict[str, list[str]]:
        """Name of a kernel -> the nodes of the graph that it computes."""
        kernels = self.request.get_compiled_model().get_runtime_model().get_ops()
        return {
            kernel.get_friendly_name(): kernel.get_rt_info()["originalLayersNames"].astype(str).split(",")
            for kernel in kernels
        }


@cache
def core() -> Any:
    """The one `Core` of the process, which stays.

    Each brings a signal stack of its own for the calling thread, and when it goes puts back the one that it found. Of
    two that overlap the second puts back memory that the first has freed, and the next signal with a handler, Control-C
    or the end of a child process, ends the process with a segmentation fault (OpenVINO 2026.4).
    """
    return _library().Core()


def _library() -> Any:
    try:
        import openvino
    except ImportError:
        raise UserError("This runtime needs openvino. Install it: pip install 'autoprune[openvino]'.") from None
    return openvino
