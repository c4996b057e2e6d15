"""Re-estimate BatchNorm statistics after a cut: reset, then the plain average over a few batches.

A cut network sees other activations than the dense one did; with the old statistics it is often near chance. No
weight is touched.

Source: Yu & Huang 2019, "Universally Slimmable Networks", arXiv:1903.05134, "Post-Statistics of Batch Normalization".
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from autoprune.data.base import Inputs, batch_size_of, forward
from autoprune.memory import Halving
from autoprune.precision import autocast, device_of, prepare
from autoprune.running import evaluation_mode
from autoprune.search_spaces.errors import UserError

BatchNorm = nn.modules.batchnorm._BatchNorm

SMALLEST = 16
"""Samples of a batch that is halved for want of memory: statistics of smaller ones miss too much of how samples
differ."""


class NothingRecalibrated(UserWarning):
    """Recalibration was asked for, but the network has no BatchNorm layer that keeps statistics."""


def tracking_layers(model: nn.Module) -> list[BatchNorm]:
    """BatchNorm layers that keep running statistics; InstanceNorm and frozen BatchNorm are not among them."""
    return [m for m in model.modules() if isinstance(m, BatchNorm) and m.running_mean is not None]


def own_statistics(model: nn.Module) -> None:
    """Give each BatchNorm layer buffers of its own, so that recalibrating a subnet leaves the dense model alone."""
    for layer in tracking_layers(model):
        for name, buffer in layer._buffers.items():
            layer._buffers[name] = None if buffer is None else buffer.clone()


def recalibrate(model: nn.Module, inputs: Sequence[Inputs], *, precision: str = "fp32") -> int:
    """Re-estimate the statistics of every BatchNorm layer, in place.

    Only these layers are in training mode: dropout stays off. Every batch weighs the same, so a last batch that is
    smaller than the first is left out. A layer that `inputs` do not reach (an auxiliary head that runs in training
    only) keeps its statistics. Modes and momenta are put back; after an exception, the statistics as well.

    Args:
        model: the network.
        inputs: batches of training inputs, not augmented; the same ones give the same statistics, bit for bit.
        precision: "fp32" or "bf16", as the network is scored.

    Returns:
        Number of layers with new statistics; 0 means that nothing was done.

    Raises:
        UserError: there are layers, but no inputs.
    """
    if not tracking_layers(model):
        return 0
    device = device_of(model)
    halving = Halving(SMALLEST)

    def estimate() -> int:
        with estimating(model) as reached, torch.no_grad(), autocast(precision, device):
            for batch in halving.all_parts(counted(inputs)):
                forward(model, prepare(batch, device, precision))
        return len(reached)

    return halving(estimate)


def counted(inputs: Sequence[Inputs]) -> Sequence[Inputs]:
    """The batches that statistics are averaged over.

    Raises:
        UserError: there are none.
    """
    if not inputs:
        raise UserError("Recalibrating BatchNorm needs at least one batch of inputs, but got none.")
    return inputs[:-1] if len(inputs) > 1 and batch_size_of(inputs[-1]) < batch_size_of(inputs[0]) else inputs


@contextmanager
def estimating(model: nn.Module) -> Iterator[list[BatchNorm]]:
    """In the block, every forward pass of `model` counts as one batch of the new statistics.

    Yields:
        A list that holds, after the block, the layers that were reached.
    """
    layers = tracking_layers(model)
    before = [{name: b.clone() for name, b in layer._buffers.items() if b is not None} for layer in layers]
    momenta = [layer.momentum for layer in layers]
    reached: list[BatchNorm] = []
    finished = False
    try:
        with evaluation_mode(model):
            for layer in layers:
                layer.reset_running_stats()
                layer.momentum = None  # None: the plain average over all batches
                layer.training = True
            yield reached
        finished = True
    finally:
        for layer, statistics, momentum in zip(layers, before, momenta, strict=True):
            layer.momentum = momentum
            if finished and layer.num_batches_tracked:
                reached.append(layer)
            else:
                for name, buffer in statistics.items():
                    layer._buffers[name].copy_(buffer)  # type: ignore[union-attr]
