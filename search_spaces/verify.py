"""The oracle of exactness: the sliced model against the dense model in which the same units are silenced.

The dense model runs under a tracer that sets every position of a cut unit to zero after every op, from the labels of
that very run. Statistics over pruned positions (layer norm, group norm, means) use the kept positions only, as they
do in the sliced model; so do numbers that code makes from a width, the scale of attention among them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from autoprune.search_spaces import surgery
from autoprune.search_spaces.labels import field_at
from autoprune.search_spaces.numbers import numbers, with_numbers
from autoprune.search_spaces.rules.norm import BATCH_NORMS, reduced_dims, takes_statistics
from autoprune.search_spaces.rules.registry import argument
from autoprune.search_spaces.runs import Run, without_own_storage
from autoprune.search_spaces.tracer import ParameterLabels, Tracer, map_tensors, plain_kernels, run, tensors
from autoprune.search_spaces.types import IntArray

if TYPE_CHECKING:
    from autoprune.search_spaces.space import SearchSpace


class SilencingTracer(Tracer):
    """Zeroes the positions whose atoms are not in `keep` [atoms], in every output of every op.

    Args:
        of_subnet: ops that the sliced model called with numbers, and the numbers, in order.
    """

    def __init__(
        self,
        keep: NDArray[np.bool_],
        parameters: ParameterLabels,
        named: Mapping[str, Tensor],
        of_subnet: Sequence[tuple[Any, tuple[Any, ...]]] = (),
    ) -> None:
        super().__init__(parameters.ties, parameters, named)
        self.keep = keep
        self.of_subnet = iter(of_subnet)

    def execute(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Statistics over labelled positions are computed on the kept ones, and scattered back."""
        if numbers(func, args, kwargs):
            called, new = next(self.of_subnet, (None, ()))
            if called == func:
                args, kwargs = with_numbers(func, args, kwargs, new)
        restricted = _RESTRICTED.get(func.overloadpacket.__name__)
        if restricted is not None:
            result = restricted(self, func, args, kwargs)
            if result is not None:
                return result
        return func(*args, **kwargs)

    def finish(self, args: tuple[Any, ...], out: Any) -> Any:
        """Silence what was cut in new and in changed tensors; views show what was silenced where it was computed."""
        given = {id(t) for t in tensors(args)}
        storages = {t.untyped_storage()._cdata for t in tensors(args)}
        for tensor in tensors(out):
            if id(tensor) in self.names or (id(tensor) not in given and tensor.untyped_storage()._cdata in storages):
                continue  # a parameter (never written to), or a view
            for f in self.labels(tensor):
                keep = self.kept(f.atoms)
                if not keep.all():
                    shape = [tensor.shape[d] if d in f.dims else 1 for d in range(tensor.dim())]
                    tensor.masked_fill_(torch.as_tensor(~keep, device=tensor.device).reshape(shape), 0)
        return out

    def kept(self, atoms: IntArray) -> NDArray[np.bool_]:
        """Which atoms stay; those that only this run made do."""
        return (atoms >= len(self.keep)) | self.keep[np.minimum(atoms, len(self.keep) - 1)]

    def indices(self, tensor: Tensor, dim: int) -> Tensor | None:
        """Kept indices of one dimension, None where it stays whole."""
        f = field_at(self.labels(tensor), dim)
        if f is None:
            return None
        axis = f.dims.index(dim)
        keep = np.moveaxis(self.kept(f.atoms), axis, 0).reshape(f.atoms.shape[axis], -1).any(1)
        return None if keep.all() else torch.as_tensor(np.flatnonzero(keep), device=tensor.device)


def _layer_norm(tracer: SilencingTracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    x, shape, weight, bias, eps = args
    dim = x.dim() - 1
    index = tracer.indices(x, dim)
    if index is None or len(shape) != 1:
        return None
    parts = [t if t is None else t.index_select(0, index) for t in (weight, bias)]
    small, *rest = func(x.index_select(dim, index), [len(index)], *parts, eps)
    return (torch.zeros_like(x).index_copy(dim, index, small), *rest)


def _group_norm(tracer: SilencingTracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    x, weight, bias, batch, _, pixels, groups, eps = args
    index = tracer.indices(x, 1)
    if index is None or groups == x.shape[1]:
        return None
    parts = [t if t is None else t.index_select(0, index) for t in (weight, bias)]
    small, *rest = func(x.index_select(1, index).contiguous(), *parts, batch, len(index), pixels, groups, eps)
    return (torch.zeros_like(x).index_copy(1, index, small), *rest)


def _kept_places(tracer: SilencingTracer, x: Tensor, dims: Iterable[int]) -> tuple[Tensor, dict[int, Tensor]]:
    """The kept positions of `dims`, and their indices where some were cut."""
    places = {dim: index for dim in dims if (index := tracer.indices(x, dim)) is not None}
    for dim, index in places.items():
        x = x.index_select(dim, index)
    return x, places


def _put_back(small: Tensor, shape: Sequence[int], places: dict[int, Tensor]) -> Tensor:
    """Zeros where positions were cut; `shape` is right along the dimensions of `places`."""
    for dim, index in places.items():
        sizes = [shape[d] if d == dim else size for d, size in enumerate(small.shape)]
        small = small.new_zeros(sizes).index_copy(dim, index, small)
    return small


def _batch_norm(tracer: SilencingTracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    x = args[0]
    if not takes_statistics(str(func), args):
        return None
    small, places = _kept_places(tracer, x, [d for d in range(x.dim()) if d != 1])
    if not places:
        return None
    result, *statistics = func(small, *args[1:], **kwargs)
    return (_put_back(result, x.shape, places), *statistics)


def _convolution(tracer: SilencingTracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    x = args[0]
    small, places = _kept_places(tracer, x, range(2, x.dim()))
    return _put_back(func(small, *args[1:], **kwargs), x.shape, places) if places else None


def _weight_norm(tracer: SilencingTracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    weight = args[0]
    for dim in range(weight.dim()):
        index = tracer.indices(args[0], dim)
        if index is not None and dim != argument(args, kwargs, 2, "dim", 0):
            weight = torch.zeros_like(weight).index_copy(dim, index, weight.index_select(dim, index))
    return func(weight, *args[1:], **kwargs)


def _statistic(tracer: SilencingTracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if isinstance(argument(args, kwargs, 1, "other"), Tensor):  # max(a, b)
        return None
    x = args[0]
    for dim in reduced_dims(str(func), args, kwargs):
        index = tracer.indices(args[0], dim)
        if index is not None:
            x = x.index_select(dim, index)
    return None if x is args[0] else func(x, *args[1:], **kwargs)


_RESTRICTED: dict[str, Callable[[SilencingTracer, Any, tuple[Any, ...], dict[str, Any]], Any]] = {
    "native_layer_norm": _layer_norm,
    "native_group_norm": _group_norm,
    "_weight_norm_interface": _weight_norm,
    "convolution": _convolution,
    **dict.fromkeys(BATCH_NORMS, _batch_norm),
    **dict.fromkeys(("mean", "amax", "amin", "max", "min", "var", "std", "var_mean", "linalg_vector_norm"), _statistic),
}


class _Numbers(TorchDispatchMode):
    """Keeps the numbers that ops are called with."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: list[tuple[Any, tuple[Any, ...]]] = []

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        found = numbers(func, args, kwargs or {})
        if found:
            self.seen.append((func, found))
        return func(*args, **(kwargs or {}))


def relative_error(space: SearchSpace, kept_units: Sequence[IntArray]) -> float:
    """Largest |sliced - silenced| over the outputs, each relative to its largest absolute value.

    Attention and recurrent layers are spelled out in both, so that every op that the silencing must reach is seen.
    """
    args, kwargs = space.example_inputs
    smaller = space.cut(kept_units, share=True).eval()
    model = without_own_storage(space.model).eval()
    named = surgery.named_tensors(model)
    with sdpa_kernel(SDPBackend.MATH):
        with plain_kernels(smaller), torch.no_grad(), Run.seeded(), _Numbers() as of_subnet:
            actual = list(tensors(smaller(*map_tensors(args, torch.clone), **map_tensors(kwargs, torch.clone))))
        tracer = SilencingTracer(space.keep_atoms(kept_units), space.parameter_labels(), named, of_subnet.seen)
        with Run.seeded():
            expected = list(tensors(run(tracer, model, *map_tensors((args, kwargs), torch.clone))))
    if [t.shape for t in actual] != [t.shape for t in expected]:
        return math.inf  # sizes that depend on the data: rounding, or an error, decided otherwise
    return max((_difference(a, e) for a, e in zip(actual, expected, strict=True)), default=0.0)


def _difference(actual: Tensor, expected: Tensor) -> float:
    """Infinite where only one of them is not a number; where both are, they agree: a variance of one value, say."""
    both = actual.isnan() & expected.isnan()
    actual, expected = actual.masked_fill(both, 0), expected.masked_fill(both, 0)
    if not expected.numel():
        return 0.0
    scale = max(float(expected.abs().max()), 1e-12)
    difference = float((actual.double() - expected.double()).abs().max()) / scale
    return difference if difference == difference else float("inf")  # NaN would get lost in the caller's max
