"""The oracle of exactness: the sliced model against the dense model in which the same units are silenced.

The dense model runs under a tracer that sets every position of a cut unit to zero after every op, from the labels of
that very run. Statistics over pruned positions (layer norm, group norm, means) use the kept positions only, as they
do in the sliced model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autoprune.search_spaces import surgery
from autoprune.search_spaces.labels import Labels, field_at
from autoprune.search_spaces.rules.norm import reduced_dims
from autoprune.search_spaces.rules.registry import argument
from autoprune.search_spaces.runs import without_own_storage
from autoprune.search_spaces.tracer import ParameterLabels, Tracer, map_tensors, plain_kernels, run, tensors
from autoprune.search_spaces.types import IntArray

if TYPE_CHECKING:
    from autoprune.search_spaces.space import SearchSpace


class SilencingTracer(Tracer):
    """Zeroes the positions whose atoms are not in `keep` [atoms], in every output of every op."""

    def __init__(self, keep: NDArray[np.bool_], parameters: ParameterLabels, names: dict[int, str]) -> None:
        super().__init__(parameters.ties, parameters, names)
        self.keep = keep

    def execute(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Statistics over labelled positions are computed on the kept ones, and scattered back."""
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
                keep = self.keep[f.atoms]
                if not keep.all():
                    shape = [tensor.shape[d] if d in f.dims else 1 for d in range(tensor.dim())]
                    tensor.masked_fill_(torch.as_tensor(~keep, device=tensor.device).reshape(shape), 0)
        return out

    def indices(self, labels: Labels, dim: int) -> Tensor | None:
        """Kept indices of one dimension, None where it stays whole."""
        f = field_at(labels, dim)
        if f is None:
            return None
        axis = f.dims.index(dim)
        keep = np.moveaxis(self.keep[f.atoms], axis, 0).reshape(f.atoms.shape[axis], -1).any(1)
        return None if keep.all() else torch.as_tensor(np.flatnonzero(keep))


def _layer_norm(tracer: SilencingTracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    x, shape, weight, bias, eps = args
    dim = x.dim() - 1
    index = tracer.indices(tracer.labels(x), dim)
    if index is None or len(shape) != 1:
        return None
    parts = [t if t is None else t.index_select(0, index) for t in (weight, bias)]
    small, *rest = func(x.index_select(dim, index), [len(index)], *parts, eps)
    return (torch.zeros_like(x).index_copy(dim, index, small), *rest)


def _group_norm(tracer: SilencingTracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    x, weight, bias, batch, _, pixels, groups, eps = args
    index = tracer.indices(tracer.labels(x), 1)
    if index is None:
        return None
    parts = [t if t is None else t.index_select(0, index) for t in (weight, bias)]
    small, *rest = func(x.index_select(1, index).contiguous(), *parts, batch, len(index), pixels, groups, eps)
    return (torch.zeros_like(x).index_copy(1, index, small), *rest)


def _weight_norm(tracer: SilencingTracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    weight, labels = args[0], tracer.labels(args[0])
    for dim in range(weight.dim()):
        index = tracer.indices(labels, dim)
        if index is not None and dim != argument(args, kwargs, 2, "dim", 0):
            weight = torch.zeros_like(weight).index_copy(dim, index, weight.index_select(dim, index))
    return func(weight, *args[1:], **kwargs)


def _statistic(tracer: SilencingTracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if isinstance(argument(args, kwargs, 1, "other"), Tensor):  # max(a, b)
        return None
    x, labels = args[0], tracer.labels(args[0])
    for dim in reduced_dims(str(func), args, kwargs):
        index = tracer.indices(labels, dim)
        if index is not None:
            x = x.index_select(dim, index)
    return None if x is args[0] else func(x, *args[1:], **kwargs)


_RESTRICTED: dict[str, Callable[[SilencingTracer, Any, tuple[Any, ...], dict[str, Any]], Any]] = {
    "native_layer_norm": _layer_norm,
    "native_group_norm": _group_norm,
    "_weight_norm_interface": _weight_norm,
    **dict.fromkeys(("mean", "amax", "amin", "max", "min", "var", "std", "var_mean", "linalg_vector_norm"), _statistic),
}


def relative_error(space: SearchSpace, kept_units: Sequence[IntArray]) -> float:
    """Largest |sliced - silenced| over the outputs, each relative to its largest absolute value."""
    model = without_own_storage(space.model).eval()
    args, kwargs = space.example_inputs
    names = {id(t): name for name, t in surgery.named_tensors(model).items()}
    tracer = SilencingTracer(space.keep_atoms(kept_units), space.parameter_labels(), names)
    expected = list(tensors(run(tracer, model, *map_tensors((args, kwargs), torch.clone))))
    smaller = space.cut(kept_units, share=True).eval()
    with plain_kernels(), torch.no_grad():
        actual = list(tensors(smaller(*args, **kwargs)))
    assert [t.shape for t in actual] == [t.shape for t in expected]
    return max((_difference(a, e) for a, e in zip(actual, expected, strict=True)), default=0.0)


def _difference(actual: Tensor, expected: Tensor) -> float:
    if not expected.numel():
        return 0.0
    scale = max(float(expected.abs().max()), 1e-12)
    difference = float((actual.double() - expected.double()).abs().max()) / scale
    return difference if difference == difference else float("inf")  # NaN would get lost in the caller's max
