"""What the eager and the compiled runtime share: a network in the wanted precision and layout, run without traces.

The network that is handed in is never changed: where weights must be converted or moved, a copy is.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from autoprune.export_graph import as_inputs
from autoprune.runtimes.base import Runtime, Times
from autoprune.runtimes.clock import cpu_timer, cuda_timer
from autoprune.search_spaces.errors import UserError

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
PRECISIONS = {"model": None, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""``model``: the precision that the weights have."""


class TorchRuntime(Runtime):
    """Runs networks in this process with PyTorch, on the processor or on CUDA."""

    def __init__(
        self, *, threads: int = 1, device: str = "cpu", layout: str = "contiguous", precision: str = "model"
    ) -> None:
        try:
            self.torch_device = torch.device(device)
        except RuntimeError:
            raise UserError(f"Unknown device {device!r}: use cpu, cuda or cuda:<number>.") from None
        if self.torch_device.type not in ("cpu", "cuda"):
            raise UserError(f"Networks are timed on cpu or cuda, but the device is {device!r}.")
        if self.torch_device.type == "cuda" and not torch.cuda.is_available():
            raise UserError(f"This PyTorch sees no graphics processor, so {device!r} cannot be measured. Use cpu.")
        self.threads, self.layout, self.precision = threads, layout, precision
        self.clock = "cuda events" if self.on_cuda else "cpu" if threads == 1 else "wall"

    @property
    def on_cuda(self) -> bool:
        """Whether a graphics processor does the work."""
        return self.torch_device.type == "cuda"

    @property
    def version(self) -> str:
        return torch.__version__

    @property
    def settings(self) -> Mapping[str, str]:
        return {"layout": self.layout, **({"tf32": tf32()} if self.on_cuda else {})}

    @property
    def device(self) -> str | None:
        return torch.cuda.get_device_name(self.torch_device) if self.on_cuda else None

    def converted(self, model: nn.Module) -> nn.Module:
        """`model`, or where its tensors must change, a converted copy."""
        dtype, layout = PRECISIONS[self.precision], LAYOUTS[self.layout]
        tensors = [*model.parameters(), *model.buffers()]
        if all(_fits(tensor, self.torch_device, dtype, layout) for tensor in tensors):
            return model
        return copy.deepcopy(model).to(self.torch_device, dtype).to(memory_format=layout)

    def converted_inputs(self, inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """`inputs` as arguments, on the device, in the precision and layout."""
        dtype, layout = PRECISIONS[self.precision], LAYOUTS[self.layout]

        def convert(tensor: Tensor) -> Tensor:
            tensor = tensor.detach().to(self.torch_device, dtype if tensor.is_floating_point() else None)
            is_image = tensor.ndim == 4 and tensor.is_floating_point()
            return tensor.contiguous(memory_format=layout) if is_image else tensor

        args, kwargs = pytree.tree_map_only(Tensor, convert, as_inputs(inputs))
        return args, kwargs


class TorchRunnable:
    """A network, its inputs, and what is called to run it (the network itself, or a compiled form of it)."""

    def __init__(self, runtime: TorchRuntime, model: nn.Module, inputs: tuple[tuple[Any, ...], dict[str, Any]]) -> None:
        self.model, self.inputs = model, inputs
        self._modules = list(model.modules())
        self._threads = None if runtime.on_cuda else runtime.threads
        self._device = runtime.torch_device
        self._timer = cuda_timer if runtime.on_cuda else cpu_timer(runtime.threads)
        self.function: Callable[..., Any] = model

    def __call__(self) -> Times:
        with self._circumstances():
            return self._timer(self.run)

    def run(self) -> Any:
        """Run once, inside `_circumstances`, and return the outputs."""
        args, kwargs = self.inputs
        return self.function(*args, **kwargs)

    def outputs(self) -> Any:
        """Run once, untimed."""
        with self._circumstances():
            return self.run()

    def _on_device(self) -> AbstractContextManager[None]:
        return torch.cuda.device(self._device) if self._device.type == "cuda" else nullcontext()

    @contextmanager
    def _circumstances(self) -> Iterator[None]:
        """Evaluation mode, inference mode, the number of threads and the device; all put back."""
        training = [module for module in self._modules if module.training]
        before = torch.get_num_threads()
        change = self._threads not in (None, before)
        for module in training:
            module.training = False
        if change:
            torch.set_num_threads(self._threads)  # type: ignore[arg-type]
        try:
            with torch.inference_mode(), self._on_device():
                yield
        finally:
            if change:
                torch.set_num_threads(before)
            for module in training:
                module.training = True


def tf32() -> str:
    """What PyTorch may compute in TF32 (10 bits of mantissa) on CUDA where tensors are fp32: ``convolutions`` is its
    default.
    """
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    if hasattr(cudnn, "conv"):  # PyTorch 2.9; it refuses to read the older settings where the newer ones were written
        allowed = {"convolutions": cudnn.conv.fp32_precision == "tf32", "matmul": matmul.fp32_precision == "tf32"}
    else:
        allowed = {"convolutions": cudnn.allow_tf32, "matmul": matmul.allow_tf32}
    return " and ".join(name for name, yes in allowed.items() if yes) or "off"


def _fits(tensor: Tensor, device: torch.device, dtype: torch.dtype | None, layout: torch.memory_format) -> bool:
    if tensor.device.type != device.type or (device.index is not None and tensor.device.index != device.index):
        return False
    if not tensor.is_floating_point():
        return True
    return dtype in (None, tensor.dtype) and (tensor.ndim != 4 or tensor.is_contiguous(memory_format=layout))
