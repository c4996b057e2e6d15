"""Which arithmetic a network is evaluated and trained in: float32, or bfloat16 autocast where it pays.

"auto" takes bfloat16 where both hold:
- the processor multiplies bfloat16 in hardware: AVX512-BF16 or AMX on a CPU, compute capability 8.0 on a GPU;
- at least half of the weights of convolutions and linear layers sit in layers with 32 or more channels on both sides
  (within a group). bfloat16 kernels work on blocks of 32 inputs; narrower networks only pay for the conversions.

Measured on one core with AVX512-BF16, CPU time against float32: evaluation 1.1 to 3.4 times as fast, training 1.0 to
2.9 times, over nine networks that the rule takes; 0.95 and 1.2 times for one of 8, 16 and 32 channels, which it leaves
alone. Command: ``OMP_NUM_THREADS=1 python benchmarks/precision.py``.

With bfloat16 go images in channels-last layout; the weights' layout is left alone, since a subnet may share storage
with the dense model. Sums, losses and scores are float32 or wider.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from autoprune.data.base import Inputs, map_tensors
from autoprune.search_spaces.errors import UserError, unknown

PRECISIONS = ("auto", "fp32", "bf16")

MIN_CHANNELS = 32
"""Channels on either side of a layer from which bfloat16 kernels are filled."""


def resolve_precision(wanted: str, model: nn.Module) -> str:
    """Return "fp32" or "bf16": `wanted`, or what "auto" takes for `model` on its device.

    Ask once per study, with the dense model, so that every candidate is scored in the same arithmetic.

    Raises:
        UserError: `wanted` is none of `PRECISIONS`, or the device has no autocast.
    """
    if wanted not in PRECISIONS:
        raise unknown("precision", wanted, PRECISIONS)
    device = device_of(model)
    if wanted == "auto":
        return "bf16" if has_fast_bf16(device) and is_wide(model) else "fp32"
    if wanted == "bf16" and not torch.amp.is_autocast_available(device.type):
        raise UserError(f"The device {device.type!r} has no bfloat16 autocast. Set precision to 'fp32' or 'auto'.")
    return wanted


def has_fast_bf16(device: torch.device) -> bool:
    """Whether `device` multiplies bfloat16 in hardware, not by conversion to float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    # torch has no public question for this; a release without these two answers no.
    questions = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(bool(getattr(torch.cpu, question, bool)()) for question in questions)


def is_wide(model: nn.Module) -> bool:
    """Whether half of the float32 weights of convolutions and linear layers sit in layers wide enough for bfloat16."""
    total = wide = 0
    for module in model.modules():
        weight = getattr(module, "weight", None)
        is_layer = isinstance(module, nn.Linear | nn.modules.conv._ConvNd)
        if not is_layer or not isinstance(weight, Tensor) or weight.dtype != torch.float32:
            continue
        total += weight.numel()
        if min(weight.shape[0] // getattr(module, "groups", 1), weight.shape[1]) >= MIN_CHANNELS:
            wide += weight.numel()
    return total > 0 and 2 * wide >= total


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """Return the context for forward passes in `precision` ("fp32" or "bf16")."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def prepare(inputs: Inputs, device: torch.device, precision: str) -> Any:
    """Return `inputs` on `device`, images [N, C, H, W] in channels-last layout where `precision` is "bf16"."""

    def move(tensor: Tensor) -> Tensor:
        if precision == "bf16" and tensor.dim() == 4 and tensor.is_floating_point():
            return tensor.to(device, memory_format=torch.channels_last)
        return tensor.to(device)

    return map_tensors(inputs, move)


def device_of(model: nn.Module) -> torch.device:
    """Return the device of the first parameter or buffer; the CPU where there is none."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")
