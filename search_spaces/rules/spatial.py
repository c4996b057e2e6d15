"""Pooling, resampling and padding of the trailing dimensions: other dimensions pass, these stay whole."""

from __future__ import annotations

from typing import Any

from autoprune.search_spaces.rules.registry import rule
from autoprune.search_spaces.tracer import Tracer, tensors

_TRAILING = {
    1: ("max_pool1d_with_indices", "avg_pool1d", "adaptive_avg_pool1d", "upsample_nearest1d", "upsample_linear1d",
        "reflection_pad1d", "replication_pad1d"),
    2: ("max_pool2d_with_indices", "avg_pool2d", "_adaptive_avg_pool2d", "adaptive_max_pool2d", "upsample_nearest2d",
        "upsample_bilinear2d", "_upsample_bilinear2d_aa", "upsample_bicubic2d", "_upsample_bicubic2d_aa",
        "_upsample_nearest_exact2d", "reflection_pad2d", "replication_pad2d", "fractional_max_pool2d",
        "tril", "triu"),
    3: ("max_pool3d_with_indices", "avg_pool3d", "_adaptive_avg_pool3d", "adaptive_max_pool3d", "upsample_nearest3d",
        "upsample_trilinear3d", "reflection_pad3d", "replication_pad3d"),
}  # fmt: skip


def _make(trailing: int) -> None:
    @rule(*_TRAILING[trailing])
    def spatial(tracer: Tracer, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        rank = args[0].dim()
        labels = tracer.ties.pin_fields(
            tracer.labels(args[0]), "pooled or resampled over", range(rank - trailing, rank)
        )
        for tensor in tensors(out):
            tracer.assign(tensor, labels)


for _trailing in _TRAILING:
    _make(_trailing)
