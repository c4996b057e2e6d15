"""`torch.compile` with Inductor: every subnet is compiled for its own shapes, once, when it is loaded."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import nn

from autoprune.runtimes.base import Session
from autoprune.runtimes.torch_network import TorchRunnable, TorchRuntime
from autoprune.search_spaces.errors import UserError

_MANY = 100_000
_NO_COMPILER = ("InvalidCxxCompiler", "C++ compiler", "gcc")


class CompileRuntime(TorchRuntime):
    """Compiled mode; `mode` is that of `torch.compile`."""

    name: ClassVar[str] = "compile"

    def __init__(self, *, mode: str = "default", **common: Any) -> None:
        super().__init__(**common)
        self.mode = mode

    @property
    def settings(self) -> Mapping[str, str]:
        return {**super().settings, "mode": self.mode}

    def open(self, dense: nn.Module, inputs: Any) -> Session:
        return _CompileSession(self, inputs)


class _CompileSession(Session):
    def __init__(self, runtime: CompileRuntime, inputs: Any) -> None:
        self._runtime, self._inputs = runtime, runtime.converted_inputs(inputs)

    def load(self, model: nn.Module) -> CompiledRunnable:
        return CompiledRunnable(self._runtime, self._runtime.converted(model), self._inputs)


class CompiledRunnable(TorchRunnable):
    """A compiled network, compiled and run twice when it is made."""

    def __init__(self, runtime: CompileRuntime, model: nn.Module, inputs: Any) -> None:
        super().__init__(runtime, model, inputs)
        # Subnets share their code, and a compiled form is kept per code: by default the second subnet would be
        # compiled for any width, and the ninth not at all.
        settings: dict[str, Any] = {"dynamic": False, "mode": runtime.mode}
        if "isolate_recompiles" in inspect.signature(torch.compile).parameters:
            settings["isolate_recompiles"] = True
        self.function = torch.compile(model, **settings)
        import torch._dynamo as dynamo

        try:
            with dynamo.config.patch(recompile_limit=_MANY, accumulated_recompile_limit=_MANY):
                self.outputs()
                self.outputs()
        except Exception as error:  # the compiler's errors share no base class
            text = f"{type(error).__name__}: {error}"
            first = next((line.strip() for line in text.splitlines() if line.strip()), "")
            hint = (
                " It needs a C++ compiler (g++); install one, or set the environment variable CXX."
                if any(word in text for word in _NO_COMPILER)
                else ""
            )
            raise UserError(f"torch.compile cannot compile this network: {first}{hint}") from error

    def layers(self) -> dict[str, float] | None:
        return None  # its kernels span modules
