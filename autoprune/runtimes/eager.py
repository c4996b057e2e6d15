"""PyTorch as it is, one operator after the other: on the processor, or on CUDA (there also as a CUDA graph)."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping
from contextlib import ExitStack
from statistics import median
from typing import Any, ClassVar

import torch
from torch import nn

from autoprune.runtimes.base import Session
from autoprune.runtimes.torch_network import TorchRunnable, TorchRuntime
from autoprune.search_spaces.errors import UserError

LAYER_RUNS = 5
"""`layers` gives the median of this many runs, after one more."""


class EagerRuntime(TorchRuntime):
    """Eager mode.

    `graph` captures the whole run as a CUDA graph, which takes the launching of kernels out of the time.
    """

    name: ClassVar[str] = "eager"

    def __init__(self, *, graph: str = "false", **common: Any) -> None:
        super().__init__(**common)
        self.graph = graph == "true"
        if self.graph and not self.on_cuda:
            raise UserError("graph=true is a CUDA graph: it needs the device cuda.")

    @property
    def settings(self) -> Mapping[str, str]:
        return {**super().settings, **({"graph": "true"} if self.graph else {})}

    def open(self, dense: nn.Module, inputs: Any) -> Session:
        return _EagerSession(self, inputs)


class _EagerSession(Session):
    def __init__(self, runtime: EagerRuntime, inputs: Any) -> None:
        self._runtime, self._inputs = runtime, runtime.converted_inputs(inputs)

    def load(self, model: nn.Module) -> EagerRunnable:
        return EagerRunnable(self._runtime, self._runtime.converted(model), self._inputs)


class EagerRunnable(TorchRunnable):
    """A network in eager mode."""

    def __init__(self, runtime: EagerRuntime, model: nn.Module, inputs: Any) -> None:
        super().__init__(runtime, model, inputs)
        self._on_cuda = runtime.on_cuda
        if runtime.graph:
            self._capture()

    def layers(self) -> dict[str, float] | None:
        """Time that each module spent outside its submodules; work of functions is their caller's.

        A module that runs several times counts with the sum. The times add up to about that of one run with hooks.
        """
        runs = [self._run_with_hooks() for _ in range(LAYER_RUNS + 1)][1:]
        return {path: median(run.get(path, 0.0) for run in runs) for path in runs[0]}

    def _run_with_hooks(self) -> dict[str, float]:
        own: dict[str, float] = defaultdict(float)
        open_calls: list[list[float]] = []  # per module that is running: (start, time of its submodules so far)

        def enter(*_: Any) -> None:
            open_calls.append([self._now(), 0.0])

        def leave(path: str) -> None:
            start, inner = open_calls.pop()
            total = self._now() - start
            own[path] += total - inner
            if open_calls:
                open_calls[-1][1] += total

        with ExitStack() as stack:
            for path, module in self.model.named_modules():
                hook = module.register_forward_pre_hook(enter)
                stack.callback(hook.remove)
                hook = module.register_forward_hook(lambda *_, path=path: leave(path))
                stack.callback(hook.remove)
            with self._circumstances():
                args, kwargs = self.inputs
                self.model(*args, **kwargs)
        return dict(own)

    def _now(self) -> float:
        """Milliseconds on the clock of single layers: processor time, on CUDA the time until the device is idle."""
        if self._on_cuda:
            torch.cuda.synchronize()
            return time.perf_counter() * 1e3
        clock = time.thread_time if self._threads == 1 else time.perf_counter
        return clock() * 1e3

    def _capture(self) -> None:
        """Record one run as a CUDA graph; torch asks for a few runs on a side stream before."""
        args, kwargs = self.inputs
        with self._circumstances():
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(3):
                    self.model(*args, **kwargs)
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            try:
                with torch.cuda.graph(graph):
                    outputs = self.model(*args, **kwargs)
            except RuntimeError as error:
                first = str(error).splitlines()[0]
                raise UserError(f"This network cannot be captured as a CUDA graph: {first} Use graph=false.") from error

        def replay(*_: Any, **__: Any) -> Any:
            graph.replay()
            return outputs

        self.function = replay
