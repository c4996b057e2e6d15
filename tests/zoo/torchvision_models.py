"""Networks of torchvision: everything that `list_models` names, but the quantized ones."""

from __future__ import annotations

import functools

import torch
import torchvision
from torch import Tensor

from tests.zoo.case import Case


def _image(size: int) -> Tensor:
    return torch.randn(2, 3, size, size)


CASES: list[Case] = [
    Case(
        library="torchvision",
        name=name,
        build=functools.partial(torchvision.models.get_model, name, weights=None),
        inputs=functools.partial(_image, 64),
    )
    for name in torchvision.models.list_models(module=torchvision.models)
]
