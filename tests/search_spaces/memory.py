"""What a run allocates, watched from outside."""

from __future__ import annotations

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class PeakMemory(TorchDispatchMode):
    """Peak of bytes held by storages that ops allocated, while a model runs on real tensors.

    A storage counts from the op that made it until the last reference to it is gone, as the allocator sees it; inputs
    and parameters do not count, nor what an op needs only while it runs.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live: dict[int, tuple[int, StorageWeakRef]] = {}
        self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if torch.is_tensor(t)}
        for t in tree_leaves(out):
            if torch.is_tensor(t) and (key := t.untyped_storage()._cdata) not in given:
                ref = StorageWeakRef(t.untyped_storage())
                self.live[key] = (t.untyped_storage().nbytes(), ref)
        self.live = {k: v for k, v in self.live.items() if not v[1].expired()}
        self.peak = max(self.peak, sum(size for size, _ in self.live.values()))
        return out
