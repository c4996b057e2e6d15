"""Python attributes that repeat a tensor's size, and what they become after a cut.

Layers keep sizes beside their parameters (``out_channels``, ``normalized_shape``). They are found by attribute name,
not by module class, so a user's own layer that follows the convention is handled as torch's are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import nn

_OUT = ("out_channels", "out_features", "num_features", "num_channels", "num_groups")
_IN = ("in_channels", "in_features", "embedding_dim")


def changed_attributes(
    module: nn.Module, old: Mapping[str, Sequence[int]], new: Mapping[str, Sequence[int]]
) -> Iterator[tuple[str, Any]]:
    """Attributes of one module (not its children) that repeat a size that changed.

    Args:
        old: shapes of the module's own parameters and buffers before the cut, by their short names.
        new: the shapes after it.

    Yields:
        Attribute name and new value.
    """
    before = old.get("weight") or old.get("running_mean")
    after = new.get("weight") or new.get("running_mean")
    if before is None or after is None or tuple(before) == tuple(after):
        return
    attributes = vars(module)
    sizes: list[tuple[tuple[str, ...], int, int]] = []
    if len(before) == 1:
        sizes.append((_OUT, before[0], after[0]))
    else:
        groups, transposed = attributes.get("groups", 1), bool(attributes.get("transposed", False))
        channels = before[0] if transposed else before[1] * groups
        new_groups = groups
        if groups > 1 and groups == channels:  # depthwise: one input channel a group, so groups go with channels
            new_groups = after[0] if transposed else after[0] * groups // before[0]
            sizes.append((("groups",), groups, new_groups))
        into, out = (0, 1) if transposed else (1, 0)
        scale = {into: (1, 1), out: (groups, new_groups)} if transposed else {into: (groups, new_groups), out: (1, 1)}
        for names, dim in ((_IN, into), (_OUT, out)):
            sizes.append((names, before[dim] * scale[dim][0], after[dim] * scale[dim][1]))
    for same_size, size, new_size in sizes:
        for name in same_size:
            if attributes.get(name) == size != new_size:
                yield name, new_size
    shape = attributes.get("normalized_shape")
    if isinstance(shape, tuple) and shape == tuple(before):
        yield "normalized_shape", tuple(after)
