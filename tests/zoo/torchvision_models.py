"""Networks of torchvision: everything that `list_models` names, but the quantized ones, at the smallest useful size."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torchvision.models import get_model, get_model_builder, list_models

from tests.zoo.case import Case, Inputs

# The first pattern that matches gives pixels and builder arguments. Others: 64 pixels, no arguments.
_CLASSIFICATION: dict[str, tuple[int, dict[str, Any]]] = {
    "inception_v3": (299, {}),  # its auxiliary head needs 17 x 17 positions
    "maxvit_t": (224, {}),  # four halvings must leave whole windows of 7 x 7
    "vit_h_14": (28, {"image_size": 28}),
    "vit_.*_16": (64, {"image_size": 64}),
    "vit_.*_32": (96, {"image_size": 96}),
    "vgg.*|regnet_y_128gf": (32, {}),
}

# videos, frames, pixels, seconds
_VIDEO: dict[str, tuple[int, int, int, float | None]] = {
    "mvit.*": (1, 16, 224, 1200),  # its position tables have fixed sizes
    "s3d": (2, 16, 224, 600),  # it pools 2 x 7 x 7 positions at the end
    "swin3d.*": (2, 4, 64, None),
    "": (2, 4, 48, None),
}

_BOXES = {"score_thresh": 0.0, "detections_per_img": 4, "topk_candidates": 8}
_PROPOSALS = {
    **{"min_size": 64, "max_size": 64, "box_score_thresh": 0.0, "box_detections_per_img": 4},
    **{f"rpn_pre_nms_top_n_{mode}": 16 for mode in ("train", "test")},
    **{f"rpn_post_nms_top_n_{mode}": 4 for mode in ("train", "test")},
}

# pixels, images, builder arguments. A random network scores everything alike, so no threshold and few boxes.
_DETECTION: dict[str, tuple[int, int, dict[str, Any]]] = {
    "ssd300.*": (300, 1, {**_BOXES, "num_classes": 5}),  # its sizes are fixed; it loops over classes
    "ssdlite.*": (320, 2, {**_BOXES, "num_classes": 5}),
    "retinanet.*|fcos.*": (64, 2, {**_BOXES, "min_size": 64, "max_size": 64}),
    "": (64, 2, _PROPOSALS),
}


def _settings(table: dict[str, Any], name: str, default: Any = None) -> Any:
    return next((value for pattern, value in table.items() if re.match(pattern, name)), default)


def _classification(name: str) -> Case:
    size, arguments = _settings(_CLASSIFICATION, name, (64, {}))
    return _case(name, arguments, partial(torch.randn, 2, 3, size, size), gigabytes=12 if "128gf" in name else None)


def _segmentation(name: str, aux: bool) -> Case:
    arguments = {"weights_backbone": None} if name.startswith("lraspp") else {"weights_backbone": None, "aux_loss": aux}
    return _case(name, arguments, partial(torch.randn, 2, 3, 64, 64), suffix=" with aux_loss" if aux else "")


def _video(name: str) -> Case:
    batch, frames, size, seconds = _settings(_VIDEO, name)
    return _case(name, {}, partial(torch.randn, batch, 3, frames, size, size), seconds=seconds)


def _flow(name: str) -> Case:
    def inputs() -> Inputs:
        return (torch.randn(2, 3, 128, 128), torch.randn(2, 3, 128, 128)), {"num_flow_updates": 2}

    return _case(name, {}, inputs)


def _detection(name: str) -> Case:
    size, batch, arguments = _settings(_DETECTION, name)

    def images() -> list[Tensor]:
        return [torch.rand(3, size, size) for _ in range(batch)]

    def target() -> dict[str, Tensor]:
        boxes = torch.tensor([[0.1, 0.1, 0.6, 0.7], [0.3, 0.2, 0.9, 0.9]]) * size
        masks = torch.zeros(2, size, size, dtype=torch.uint8)
        masks[:, size // 4 : size // 2, size // 4 : size // 2] = 1
        points = torch.cat([torch.rand(2, 17, 2) * size / 2, torch.ones(2, 17, 1)], 2)
        return {"boxes": boxes, "labels": torch.tensor([1, 1]), "masks": masks, "keypoints": points}

    return _case(
        name,
        {"weights_backbone": None, **arguments},
        lambda: (images(),),
        train_inputs=lambda: (images(), [target() for _ in range(batch)]),
        sizes_vary=True,
    )


def _case(name: str, arguments: dict[str, Any], inputs: Any, suffix: str = "", **more: Any) -> Case:
    build = partial(get_model, name, weights=None, **arguments)
    return Case(library="torchvision", name=name + suffix, build=build, inputs=inputs, **more)


def _cases(name: str) -> list[Case]:
    kind = get_model_builder(name).__module__.removeprefix("torchvision.models.").partition(".")[0]
    if kind == "segmentation":
        return [_segmentation(name, aux) for aux in ((False,) if name.startswith("lraspp") else (False, True))]
    return [{"detection": _detection, "video": _video, "optical_flow": _flow}.get(kind, _classification)(name)]


CASES: list[Case] = [case for name in list_models(exclude="quantized*") for case in _cases(name)]
