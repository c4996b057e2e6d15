"""Build the networks of the zoo fast, with weights that show a wrong cut."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from tests.search_spaces.nets import randomised
from tests.zoo.case import Case, Inputs

Call = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments."""


def build(case: Case) -> nn.Module:
    """The network with random weights, norms and statistics; in evaluation mode."""
    torch.manual_seed(0)
    with _without_initialisers():
        model = case.build()
    return randomised(model)


def call_of(inputs: Inputs) -> Call:
    """Example inputs, in any of the forms that `trace` takes, as arguments."""
    if isinstance(inputs, Tensor):
        return (inputs,), {}
    if not isinstance(inputs, tuple):
        return (), dict(inputs)
    if len(inputs) == 2 and isinstance(inputs[0], tuple) and isinstance(inputs[1], dict):
        return inputs
    return inputs, {}


def settle(model: nn.Module, call: Call) -> None:
    """Running statistics near those of a batch: values keep their size, and rounding stays small, as after training."""
    settling: list[Any] = [
        m for m in model.modules() if getattr(m, "running_mean", None) is not None and hasattr(m, "momentum")
    ]
    momenta = [m.momentum for m in settling]
    for m in settling:
        m.momentum = 0.9  # some of the random statistics stays: no variance is nearly 0
    if settling:
        with torch.no_grad():
            model.train()(*call[0], **call[1])
    for m, momentum in zip(settling, momenta, strict=True):
        m.momentum = momentum
    model.eval()


@contextmanager
def _without_initialisers() -> Iterator[None]:
    """The weights are overwritten anyway, and drawing them twice is what building a large network takes longest for."""

    def untouched(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return tensor

    with ExitStack() as stack:
        for name in dir(nn.init):
            if name.endswith("_") and not name.startswith("_"):
                stack.enter_context(mock.patch.object(nn.init, name, untouched))
        yield
