"""Out of memory: tell it from other errors, let go of what the failed attempt held, and try again with half the batch.

    halving = Halving()
    for batch in batches:
        outputs = halving(lambda: join([model(part) for part in halving.parts(batch)]))

For inference: samples must not know of each other, so that the outputs are the same up to rounding. A size that was
found is kept as long as its `Halving`, which is made anew for every network: what a candidate is scored with depends
on that candidate alone, not on those before it, and a search that goes on gives the same scores.
"""

from __future__ import annotations

import gc
import math
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from autoprune.data.base import Batch, Batches

T = TypeVar("T")

_WORDS = (
    "out of memory",  # CUDA, MPS, cuDNN
    "DefaultCPUAllocator",
    "not enough memory: you tried to allocate",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "std::bad_alloc",
)


class BatchesHalved(UserWarning):
    """A network was run in smaller batches than it was given, because the memory did not suffice."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory of the processor or of a graphics processor could not be had."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _WORDS)


def release(error: BaseException) -> None:
    """Free what the frames that `error` went through still hold, tensors of a failed attempt above all."""
    link: BaseException | None = error
    while link is not None:
        traceback.clear_frames(link.__traceback__)
        link = link.__context__
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


class Halving:
    """Repeats calls that run out of memory with half the batch.

    Args:
        smallest: samples that a batch must have; infinite where batches must not be cut.

    Attributes:
        limit: samples that a batch may have; infinite until that was too much.
    """

    def __init__(self, smallest: float = 1) -> None:
        self.limit = math.inf
        self._smallest = smallest
        self._given = 0  # samples of the largest batch that the running call was given
        self._whole = 0  # and before it was cut

    def __call__(self, function: Callable[[], T]) -> T:
        """Call `function`, which takes its batches from `parts`: again and with smaller ones where it needs too much.

        Raises:
            Exception: what `function` raises, out of memory as well where batches cannot be smaller.
        """
        while True:
            self._given = self._whole = 0
            try:
                found = function()
            except Exception as error:
                if not is_out_of_memory(error) or self._given <= self._smallest:
                    raise
                release(error)
            else:
                if self._given < self._whole:
                    _say_once(self._whole, self._given)
                return found
            self.limit = math.ceil(self._given / 2)

    def parts(self, batch: T) -> list[T]:
        """A batch, tensors in any form, as it is or cut along dimension 0 into batches that are small enough."""
        leaves, form = pytree.tree_flatten(batch)
        size = max((leaf.shape[0] for leaf in leaves if isinstance(leaf, Tensor) and leaf.dim()), default=0)
        self._whole = max(self._whole, size)
        if size <= self.limit:
            self._given = max(self._given, size)
            return [batch]
        limit = int(self.limit)
        self._given = max(self._given, limit)
        return [
            pytree.tree_unflatten([_rows(leaf, size, slice(start, start + limit)) for leaf in leaves], form)
            for start in range(0, size, limit)
        ]

    def all_parts(self, batches: Iterable[T]) -> Iterator[T]:
        """Batches that are small enough."""
        for batch in batches:
            yield from self.parts(batch)


class InParts:
    """Batches of a split, as they are or cut so that they are small enough; all else as the split has it."""

    def __init__(self, batches: Batches, halving: Halving) -> None:
        self._batches, self._halving = batches, halving

    @property
    def num_samples(self) -> int:
        """Samples in one pass."""
        return self._batches.num_samples

    def __len__(self) -> int:
        return len(self._batches) if math.isinf(self._halving.limit) else sum(1 for _ in self)

    def __iter__(self) -> Iterator[Batch]:
        return self._halving.all_parts(self._batches)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # while it is copied it has no `_batches` yet
            raise AttributeError(name)
        return getattr(self._batches, name)


def smallest_batch(model: nn.Module) -> float:
    """Samples that a batch must have in evaluation mode: any number, but all of them where a BatchNorm keeps no
    statistics and takes those of the batch.
    """
    norms = (m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))
    return math.inf if any(norm.running_mean is None for norm in norms) else 1


def join(outputs: Sequence[T]) -> T:
    """One output for the outputs of parts: tensors joined along dimension 0, all else as in the first part."""
    if len(outputs) == 1:
        return outputs[0]
    leaves = zip(*map(pytree.tree_leaves, outputs), strict=True)
    joined: T = pytree.tree_unflatten(
        [torch.cat(each) if isinstance(each[0], Tensor) else each[0] for each in leaves],
        pytree.tree_structure(outputs[0]),
    )
    return joined


def _rows(leaf: Any, size: int, rows: slice) -> Any:
    """Some samples of a tensor that has `size`; all else belongs to every sample."""
    return leaf[rows] if isinstance(leaf, Tensor) and leaf.dim() and leaf.shape[0] == size else leaf


@cache
def _say_once(size: int, limit: int) -> None:
    warnings.warn(
        f"Batches of {size:,} samples do not fit in memory: they are run in parts of {limit:,}. Set a smaller "
        "batch_size to save the attempts.",
        BatchesHalved,
        stacklevel=3,
    )
