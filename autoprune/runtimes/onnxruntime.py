"""ONNX Runtime on the processor."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from autoprune.runtimes.base import Runtime, Session, Times
from autoprune.runtimes.clock import cpu_timer
from autoprune.runtimes.onnx_layers import NodeModules, sum_by_module
from autoprune.runtimes.onnx_template import Arrays, Call, OnnxTemplate, require_onnx

PROVIDER = "CPUExecutionProvider"
LAYER_RUNS = 5
"""`layers` gives the mean of this many runs, after one more."""


class OnnxRuntime(Runtime):
    """Runs the graph that `autoprune export` would write, its batch size left free as there."""

    name: ClassVar[str] = "onnxruntime"

    def __init__(self, *, threads: int = 1) -> None:
        require_onnx()
        self.threads, self.precision = threads, "model"
        self.clock = "cpu" if threads == 1 else "wall"

    @property
    def version(self) -> str:
        import onnxruntime

        return str(onnxruntime.__version__)

    @property
    def settings(self) -> Mapping[str, str]:
        return {"provider": PROVIDER.removesuffix("ExecutionProvider")}

    def open(self, dense: nn.Module, inputs: Any) -> Session:
        return _OnnxSession(OnnxTemplate(dense, inputs), self.threads)


class _OnnxSession(Session):
    def __init__(self, template: OnnxTemplate, threads: int) -> None:
        self._template, self._threads = template, threads

    def load(self, model: nn.Module) -> OnnxRunnable:
        _, call = self._template.make(model, lambda graph: OnnxCall(graph, self._threads))
        return OnnxRunnable(self._template, model, call, self._threads)


class OnnxRunnable:
    """A network in ONNX Runtime."""

    def __init__(self, template: OnnxTemplate, model: nn.Module, call: Call, threads: int) -> None:
        self._template, self._model, self._call, self._threads = template, model, call, threads
        self._feed, self._timer = template.feed, cpu_timer(threads)

    def __call__(self) -> Times:
        return self._timer(self.outputs)

    def outputs(self) -> Arrays:
        """Run once, untimed."""
        return self._call(self._feed)

    def layers(self) -> dict[str, float] | None:
        """By ONNX Runtime's own profile of one more session."""
        with tempfile.TemporaryDirectory(prefix="autoprune-") as folder:
            graph, call = self._template.make(
                self._model, lambda graph: OnnxCall(graph, self._threads, profile=Path(folder) / "profile")
            )
            for _ in range(LAYER_RUNS):  # `make` has run it once
                call(self._feed)
            events = json.loads(Path(call.session.end_profiling()).read_text())
        starts = [event["ts"] for event in events if event["name"] == "model_run"]
        modules = NodeModules(graph, self._model)
        return sum_by_module(
            (
                modules.path(event["name"].removesuffix("_kernel_time"), event["args"].get("op_name")),
                event["dur"] / 1e3 / LAYER_RUNS,
            )
            for event in events
            if event["cat"] == "Node" and event["ts"] >= starts[1]
        )


class OnnxCall:
    """A session of ONNX Runtime as a function of the arrays of its inputs."""

    def __init__(self, graph: bytes, threads: int, profile: Path | None = None) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        # idle threads of one session would go on waiting actively while the next one is timed
        options.add_session_config_entry("session.force_spinning_stop", "1")
        options.log_severity_level = 4  # what goes wrong comes as an exception
        if profile:
            options.enable_profiling, options.profile_file_prefix = True, str(profile)
        self.session = onnxruntime.InferenceSession(graph, options, providers=[PROVIDER])
        self._names = [node.name for node in self.session.get_inputs()]

    def __call__(self, arrays: Arrays) -> Arrays:
        outputs: Arrays = self.session.run(None, dict(zip(self._names, arrays, strict=True)))
        return outputs
