"""Run a model once and watch its ATen calls: labels flow, compute ops and storage lifetimes are recorded.

What runs can be traced, control flow and all; nothing is known of module classes. The model is normally run on the
meta device, so a trace costs no memory and no arithmetic. Which rule handles which op is in `rules`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from autoprune.search_spaces import meta
from autoprune.search_spaces.collector import collector_paused
from autoprune.search_spaces.labels import Field, Labels, Ties
from autoprune.search_spaces.numbers import numbers
from autoprune.search_spaces.types import IntArray

_ATTRIBUTE, _POSITIONS = "_autoprune_labels", "_autoprune_positions"


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """What an op saw of a tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    labels: Labels


@dataclass(frozen=True, slots=True)
class Op:
    """One ATen call; tensors in `args` and `kwargs` are replaced by their specs.

    Attributes:
        macs: multiply-adds as a sum of products of sizes, each a plain int or a field (= its kept positions). As in
            `torch.utils.flop_counter`, convolutions and matrix products are counted, nothing else.
        numbers: what the op calculates with beside its tensors.
    """

    func: torch._ops.OpOverload
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: tuple[TensorSpec, ...]
    module: str
    macs: tuple[tuple[int | Field, ...], ...]
    numbers: tuple[Any, ...]


@dataclass(slots=True)
class Trace:
    """What one run left: the ops in order, and every storage that an op allocated.

    Attributes:
        births: per storage, the moment at which it is allocated: moments count the ops that allocate anything.
        deaths: storage -> the first moment at which it is gone; those that outlive the run are not in it.
        decisions: index of an op -> the integers, bools and numbers it made of real floats (what passes a threshold,
            which values are largest): code may take its path and its sizes from them. None on meta, without values.
    """

    ops: list[Op] = field(default_factory=list)
    storages: list[TensorSpec] = field(default_factory=list)
    births: list[int] = field(default_factory=list)
    deaths: dict[int, int] = field(default_factory=dict)
    unknown_ops: dict[str, str] = field(default_factory=dict)
    decisions: dict[int, list[Any]] = field(default_factory=dict)


@dataclass(slots=True)
class ModulePaths:
    """Paths of the modules that are running, outermost first, and of the one that finished last."""

    running: list[str] = field(default_factory=lambda: [""])
    finished: str = ""


class ParameterLabels:
    """One array of fresh atoms per parameter or buffer dimension, made when the tensor is first used.

    The order of atoms is therefore the order of execution. Dimensions of size 1 carry none.
    """

    def __init__(self, ties: Ties) -> None:
        self.ties = ties
        self.by_name: dict[str, Labels] = {}

    def get(self, name: str, tensor: Tensor) -> Labels:
        """Labels of the parameter `name`, fresh at its first use."""
        if name not in self.by_name:
            self.by_name[name] = tuple(
                Field((d,), self.ties.fresh(size)) for d, size in enumerate(tensor.shape) if size > 1
            )
        return self.by_name[name]


class Tracer(TorchDispatchMode):
    """Applies a rule to every ATen call of the model that `named` are the tensors of.

    Args:
        ties: where rules say what must be united.
        parameters: labels of parameters and buffers by name; shared by several runs of one model.
        named: parameters and buffers by name; kept here, so that no tensor made while the model runs gets the id of one
            that its code replaced.
    """

    def __init__(self, ties: Ties, parameters: ParameterLabels, named: Mapping[str, Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.ties = ties
        self.parameters = parameters
        self.names = {id(tensor): name for name, tensor in named.items()}
        self._named = named
        self.trace = Trace()
        self.paths = ModulePaths()
        self._filled: Counter[str] = Counter()
        self._macs: list[tuple[int | Field, ...]] = []
        self._live: dict[int, tuple[int, StorageWeakRef]] = {}

    # -- what rules use -----------------------------------------------------------------------------------------

    def labels(self, tensor: Tensor) -> Labels:
        """Labels of a tensor; none for inputs and constants."""
        name = self.names.get(id(tensor))
        if name is not None:
            return self.parameters.get(name, tensor)
        found: Labels = getattr(tensor, _ATTRIBUTE, ())
        return found

    def assign(self, tensor: Tensor, labels: Labels) -> None:
        """Label an output."""
        if id(tensor) not in self.names:
            setattr(tensor, _ATTRIBUTE, labels)

    def filled(self, tensor: Tensor) -> Labels:
        """Labels of a tensor that is made here of one number: its own, and the same ones in another run."""
        path = self.paths.running[-1]
        self._filled[path] += 1
        return self.parameters.get(f"{path}: {self._filled[path]} {tuple(tensor.shape)}", tensor)

    def pin_if_used(self, tensor: Tensor, atoms: IntArray) -> None:
        """`tensor` holds positions among `atoms`: once an op or the caller gets it, all of them must stay."""
        setattr(tensor, _POSITIONS, atoms)

    def use(self, given: Iterable[Tensor]) -> None:
        """Pin what the tensors given hold positions of."""
        for tensor in given:
            atoms = getattr(tensor, _POSITIONS, None)
            if atoms is not None:
                self.ties.pin(atoms, "its positions are used as numbers")

    def count_macs(self, *factors: int | Field) -> None:
        """The running op costs the product of `factors` multiply-adds, besides what was counted for it already."""
        self._macs.append(factors)

    def reads(self, tensor: Tensor, summed: Field | None) -> None:
        """The running op sums over the positions `summed` of `tensor`, if any: its output does not carry them."""

    # -- the run --------------------------------------------------------------------------------------------------

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        from autoprune.search_spaces.rules import apply_rule  # rules import this module for its types

        kwargs = kwargs or {}
        specs = map_tensors((args, kwargs), self._spec)
        given = {t.untyped_storage()._cdata for t in tensors((args, kwargs))}
        out = self.execute(func, args, kwargs)
        self.ties.module, self.ties.op = self.paths.running[-1], str(func)
        self._macs = []
        if not apply_rule(self, func, args, kwargs, out):
            self.trace.unknown_ops.setdefault(str(func), self.paths.running[-1])
        outputs = tuple(tensors(out))
        if decides((args, kwargs), out):
            self.trace.decisions[len(self.trace.ops)] = map_tensors(_leaves(out), torch.clone)
        self._record_storages(given, outputs)
        self.trace.ops.append(
            Op(
                func,
                specs[0],
                specs[1],
                tuple(map(self._spec, outputs)),
                self.paths.running[-1],
                tuple(self._macs),
                numbers(func, args, kwargs),
            )
        )
        return self.finish(args, out)

    def execute(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the op; a subclass may run it differently."""
        return meta.call(func, args, kwargs)

    def finish(self, args: tuple[Any, ...], out: Any) -> Any:
        """Last word on the labelled outputs of an op called with `args`."""
        return out

    def _spec(self, tensor: Tensor) -> TensorSpec:
        return TensorSpec(tuple(tensor.shape), tensor.dtype, self.labels(tensor))

    def _record_storages(self, given: set[int], outputs: Sequence[Tensor]) -> None:
        trace = self.trace
        moment = trace.births[-1] + 1 if trace.births else 0
        fresh = False  # a storage that came in but is not known belongs to an input or a parameter
        for tensor in outputs:
            storage = tensor.untyped_storage()
            key = storage._cdata
            known = self._live.get(key)
            if (known is None or known[1].expired()) and tensor.numel() and key not in given:
                if not fresh:
                    gone = [(k, index) for k, (index, reference) in self._live.items() if reference.expired()]
                    for k, index in gone:
                        del self._live[k]
                        trace.deaths[index] = moment
                    fresh = True
                self._live[key] = (len(trace.storages), StorageWeakRef(storage))
                trace.storages.append(self._spec(tensor))
                trace.births.append(moment)


@contextmanager
def module_paths(model: nn.Module, paths: ModulePaths) -> Iterator[None]:
    """Keep `paths` up to date while `model` runs; after an exception it says where that happened."""
    names = {id(module): name for name, module in model.named_modules()}

    def enter(module: nn.Module, args: Any) -> None:
        paths.running.append(names.get(id(module), paths.running[-1]))

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        paths.finished = paths.running.pop()

    with ExitStack() as stack:
        stack.callback(nn.modules.module.register_module_forward_pre_hook(enter).remove)
        stack.callback(nn.modules.module.register_module_forward_hook(leave).remove)
        yield


@contextmanager
def plain_kernels(model: nn.Module | None = None) -> Iterator[None]:
    """Fused attention off, so that products over heads are seen; put back afterwards.

    Args:
        model: if some of its layers keep flat weights, as recurrent ones do to run as one op, that is off as well.
    """
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    fused = torch._C._get_mkldnn_enabled()  # `torch.backends.mkldnn.flags` sets more than this, and warns
    if model is not None and any("_flat_weights" in vars(module) for module in model.modules()):
        torch._C._set_mkldnn_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
        torch._C._set_mkldnn_enabled(fused)


def run(tracer: Tracer, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Call the model under the tracer, without gradients; returns its output."""
    # The first op would load it, and loading it keeps the frames of the model alive, with the tensors they hold.
    import torch._dynamo

    # no garbage collection, so that how long storages live does not depend on when it happens
    with plain_kernels(model), collector_paused(), torch.no_grad(), module_paths(model, tracer.paths), tracer:
        return model(*args, **kwargs)


def decides(inputs: Any, out: Any) -> bool:
    """Did an op make integers, bools or a number of real floats?"""
    given = list(tensors(inputs))
    return (
        any(t.is_floating_point() for t in given)
        and not any(t.is_meta for t in given)
        and any(is_decision(leaf) for leaf in _leaves(out))
    )


def is_decision(leaf: Any) -> bool:
    """Is one of an op's outputs not a tensor of floats?"""
    return not (isinstance(leaf, Tensor) and leaf.is_floating_point()) and leaf is not None


def _leaves(out: Any) -> list[Any]:
    return list(out) if isinstance(out, tuple | list) else [out]


def tensors(tree: Any) -> Iterator[Tensor]:
    """All tensors in nested tuples, lists, dicts, dataclasses and model-output objects."""
    found: list[Tensor] = []
    _collect(tree, found)
    return iter(found)


_LEAVES = frozenset((type(None), bool, int, float, str, torch.dtype, torch.device, torch.layout, torch.memory_format))


def _collect(tree: Any, found: list[Tensor]) -> None:
    if type(tree) in _LEAVES:
        return
    if isinstance(tree, Tensor):
        found.append(tree)
    elif isinstance(tree, tuple | list):
        for value in tree:
            _collect(value, found)
    elif isinstance(tree, Mapping):
        for value in tree.values():
            _collect(value, found)
    elif hasattr(tree, "__dataclass_fields__"):
        for name in tree.__dataclass_fields__:
            _collect(getattr(tree, name), found)


def map_tensors(tree: Any, function: Callable[[Tensor], Any]) -> Any:
    """The same nesting of tuples, lists and dicts with each tensor replaced."""
    return _map(tree, Tensor, function)


def map_specs(tree: Any, function: Callable[[TensorSpec], Any]) -> Any:
    """The same nesting with each recorded tensor replaced."""
    return _map(tree, TensorSpec, function)


def _map(tree: Any, leaf: type, function: Callable[[Any], Any]) -> Any:
    if type(tree) in _LEAVES:
        return tree
    if isinstance(tree, leaf):
        return function(tree)
    if isinstance(tree, dict):
        return {key: _map(value, leaf, function) for key, value in tree.items()}
    if type(tree) in (tuple, list):
        return type(tree)(_map(value, leaf, function) for value in tree)
    return tree
