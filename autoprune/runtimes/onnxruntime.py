"""ONNX Runtime on the processor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from torch import nn

from autoprune.runtimes.base import Runtime, Session, Times
from autoprune.runtimes.clock import cpu_timer
from autoprune.runtimes.onnx_template import Call, OnnxTemplate, require_onnx

PROVIDER = "CPUExecutionProvider"


class OnnxRuntime(Runtime):
    """Runs the graph that `autoprune export` would write."""

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
        return _OnnxSession(self, OnnxTemplate(dense, inputs))


class _OnnxSession(Session):
    def __init__(self, runtime: OnnxRuntime, template: OnnxTemplate) -> None:
        self._runtime, self.template = runtime, template

    def load(self, model: nn.Module) -> OnnxRunnable:
        started: list[Any] = []

        def start(graph: bytes) -> Call:
            session = start_session(graph, self._runtime.threads)
            started.append(session)
            return caller(session)

        self.template.make(model, start)
        return OnnxRunnable(started[-1], self.template.feed, self._runtime.threads)


class OnnxRunnable:
    """A session of ONNX Runtime."""

    def __init__(self, session: Any, feed: list[np.ndarray], threads: int) -> None:
        self._session = session
        self._feed = dict(zip((node.name for node in session.get_inputs()), feed, strict=True))
        self._timer = cpu_timer(threads)

    def __call__(self) -> Times:
        return self._timer(self._run)

    def outputs(self) -> list[np.ndarray]:
        """Run once, untimed."""
        outputs: list[np.ndarray] = self._run()
        return outputs

    def layers(self) -> dict[str, float] | None:
        return None

    def _run(self) -> Any:
        return self._session.run(None, self._feed)


def start_session(graph: bytes, threads: int) -> Any:
    """A session with one graph at a time and `threads` threads inside an operator."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # what goes wrong comes as an exception
    return onnxruntime.InferenceSession(graph, options, providers=[PROVIDER])


def caller(session: Any) -> Call:
    """The session as a function of arrays."""
    names = [node.name for node in session.get_inputs()]
    return lambda arrays: list(session.run(None, dict(zip(names, arrays, strict=True))))
