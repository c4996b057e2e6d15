"""Run the part of a network that a cut does not change only once: subnets take over what the dense network computed.

An op whose call is the one that the reference network made (the same function, the same numbers, the same tensors in
the same layout) has the same result, so that one is returned without computing. All else is computed as ever. So the
outputs are those of a plain run, bit for bit, whatever the network is made of; nothing is known of layers or depth.

What a tensor holds is told by a key of its storage: the name of a parameter or buffer, the position of an input, or
the number of the op that last wrote to it. Not taken over, but run again, is what is cheap or would be wrong: views,
ops that write to their arguments (batch norms in training mode among them), and ops that return numbers. A result that
is written to later on is handed out as a copy.

What one op is, torch decides; some fused ones compute otherwise under a dispatch mode (bfloat16 autocast inside them
is off there). `can_be_watched` asks.

    run = Shared(reference, subnets, memory=2**30)
    for batch in batches:
        outputs = run(lambda model: model(batch), batch)     # of every subnet
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from autoprune.search_spaces.surgery import named_tensors
from autoprune.search_spaces.tracer import tensors


class CannotShare(RuntimeError):
    """The networks draw random numbers, or a subnet writes to what it took over: run them one by one."""


@dataclass
class _Record:
    """One run of the reference; all by number of the op.

    Attributes:
        wanted: ops whose results are kept; None keeps none, and measures.
        written: ops to whose output another op wrote later.
        calls: what was called with what.
        results: what to hand out.
        lent: storages of results that are handed out as they are.
        seconds: that the op took.
        sizes: bytes of results.
    """

    wanted: frozenset[int] | None
    written: set[int]
    calls: dict[int, Any] = field(default_factory=dict)
    results: dict[int, Any] = field(default_factory=dict)
    lent: set[int] = field(default_factory=set)
    seconds: dict[int, float] = field(default_factory=dict)
    sizes: dict[int, int] = field(default_factory=dict)


class Shared:
    """Runs networks on batch after batch; what they have in common is computed by the reference alone.

    The first batch is run in full by all of them. It shows what can be taken over, and whether that saves more time
    than watching costs: of small networks, every op is dear to watch.

    Args:
        reference: the network that computes.
        subnets: networks of the same code.
        memory: bytes of the reference's results that may be held at once; with more, nothing is shared.
        always: share also where it takes longer.

    Attributes:
        overhead: seconds of watching a network / seconds in its ops, in the first batch.
    """

    def __init__(
        self, reference: nn.Module, subnets: Sequence[nn.Module], memory: int, *, always: bool = False
    ) -> None:
        self._reference, self._subnets, self._memory, self._always = reference, subnets, memory, always
        self._known = _same_tensors(reference, reference)
        self._subnets_known = [_same_tensors(subnet, reference) for subnet in subnets]
        self._wanted: frozenset[int] | None = None
        self._written: set[int] = set()
        self.overhead = 0.0

    @property
    def pays(self) -> bool:
        """Whether anything is taken over; true until the first batch has shown that it is not."""
        return self._wanted is None or bool(self._wanted)

    def __call__(self, call: Callable[[nn.Module], Any], inputs: Any) -> list[Any]:
        """Return ``call(subnet)`` of every subnet.

        Args:
            inputs: the tensors that `call` gives to the network.

        Raises:
            CannotShare: see there; the state of the networks may have changed.
        """
        if not self.pays:
            return [call(subnet) for subnet in self._subnets]
        learning = self._wanted is None
        given = [("input", position, tensor) for position, tensor in enumerate(tensors(inputs))]
        record = _Record(self._wanted, self._written)
        start = _clock()
        with suppress(_Enough), _Recording(record, [*self._known, *given]):
            call(self._reference)
        in_reference = _clock() - start
        outputs, same, in_subnets = [], set[int](), 0.0
        for subnet, known in zip(self._subnets, self._subnets_known, strict=True):
            replay = _Replay(record, [*known, *given])
            start = _clock()
            with replay:
                outputs.append(call(subnet))
            in_subnets += _clock() - start - replay.seconds
            same |= replay.same
        if learning:
            saved = sum(record.seconds[index] for index in same) * len(self._subnets)
            behind = sum(seconds for index, seconds in record.seconds.items() if index > max(same, default=0))
            self.overhead = in_subnets / len(self._subnets) / max(sum(record.seconds.values()), 1e-9)
            is_small = sum(record.sizes[index] for index in same) <= self._memory
            pays = is_small and (self._always or saved > in_subnets + in_reference - behind)
            self._wanted = frozenset(same) if pays else frozenset()
        return outputs


@dataclass(frozen=True)
class _Kind:
    """What the schema of an op says.

    Attributes:
        written: positions and names of the arguments that it writes to.
        trains: position and name of the argument that makes it write to statistics without saying so.
        draws: random numbers.
    """

    written: tuple[tuple[int, str], ...]
    trains: tuple[int, str] | None
    draws: bool


_kinds: dict[Any, _Kind] = {}


def _kind(func: Any) -> _Kind:
    kind = _kinds.get(func)
    if kind is None:
        arguments = list(enumerate(func._schema.arguments))
        trains = [(i, a.name) for i, a in arguments if a.name in ("training", "train")]
        kind = _kinds[func] = _Kind(
            tuple((i, a.name) for i, a in arguments if a.alias_info is not None and a.alias_info.is_write),
            trains[0] if trains else None,
            torch.Tag.nondeterministic_seeded in func.tags,
        )
    return kind


class _Watch(TorchDispatchMode):
    """Does nothing but being there."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


def can_be_watched(run: Callable[[], Any], plain: Any) -> bool:
    """Whether `run` gives the outputs `plain`, bit for bit, also where a dispatch mode sees its ops."""
    with _Watch():  # type: ignore[no-untyped-call]
        watched = run()
    pairs = zip_longest(tensors(watched), tensors(plain))
    return all(a is not None and b is not None and torch.equal(a, b) for a, b in pairs)


class _Keyed(TorchDispatchMode):
    """Knows what every tensor holds."""

    def __init__(self, record: _Record, known: Iterable[tuple[str, Any, Tensor]]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.index = -1
        self._record = record
        self._last = max(record.wanted) if record.wanted else None  # behind it nothing is of interest
        self._keys: dict[int, Any] = {}
        self._held: list[StorageWeakRef] = []  # no storage gets the number of one that is gone; its memory is free
        for kind, name, tensor in known:
            self._mark(tensor, (kind, name))

    def _mark(self, tensor: Tensor, key: Any) -> None:
        storage = tensor.untyped_storage()
        number = storage._cdata
        if number not in self._keys:
            self._held.append(StorageWeakRef(storage))
        self._keys[number] = key

    def _noted(self, value: Any, given: set[int]) -> Any:
        """A value that is equal for what gives equal results; storages are added to `given`."""
        if isinstance(value, Tensor):
            number = value.untyped_storage()._cdata
            given.add(number)
            key = self._keys.get(number) or _Unknown()  # a storage that nobody knows is like no other
            return key, value.shape, value.stride(), value.storage_offset(), value.dtype
        if isinstance(value, tuple | list):
            return [self._noted(v, given) for v in value]
        if isinstance(value, float):
            return repr(value)  # 0.0 is not -0.0
        return value.__class__, value

    def _call(self, func: Any, args: Any, kwargs: Any) -> tuple[Any, set[int]]:
        """What is called with what, and the storages of the tensors among it."""
        given: set[int] = set()
        names = [(name, self._noted(value, given)) for name, value in kwargs.items()] if kwargs else None
        return (func, [self._noted(value, given) for value in args], names), given


class _Enough(BaseException):
    """Ends the reference's run: nothing behind is wanted. No `Exception`, which the model's code might catch."""


class _Unknown:
    """Equal to nothing else."""


class _Recording(_Keyed):
    """Notes every call, and keeps the results that are wanted."""

    def __init__(self, record: _Record, known: Iterable[tuple[str, Any, Tensor]]) -> None:
        super().__init__(record, known)
        self._makers: dict[int, int] = {}  # storage -> op that made it

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self.index += 1
        kind = _kind(func)
        if self._last is not None and self.index > self._last:
            raise _Enough
        record, index = self._record, self.index
        if kind.draws:
            raise CannotShare(f"{func} draws random numbers")
        record.calls[index], given = self._call(func, args, kwargs)
        start = _clock()
        out = func(*args, **kwargs)
        record.seconds[index] = _clock() - start
        self._note_writing(kind, args, kwargs)
        new = _new(out, given)
        for position, tensor in enumerate(new):
            self._mark(tensor, (index, position))
            self._makers[_storage(tensor)] = index
        if record.wanted is None:
            record.sizes[index] = sum(tensor.numel() * tensor.element_size() for tensor in new)
        elif index in record.wanted:
            if index in record.written:
                record.results[index] = _copied(out)
            else:
                record.results[index] = out
                record.lent |= {_storage(tensor) for tensor in new}
        return out

    def _note_writing(self, kind: _Kind, args: Any, kwargs: Any) -> None:
        for position, tensor in enumerate(_written(kind, args, kwargs)):
            self._mark(tensor, (self.index, "written", position))
            maker = self._makers.get(_storage(tensor))
            if maker is not None and maker not in self._record.written:
                self._record.written.add(maker)
                # Not what it was; from the next batch on it is copied.
                self._record.lent -= {_storage(t) for t in tensors(self._record.results.pop(maker, None))}


class _Replay(_Keyed):
    """Takes over the results of equal calls.

    Attributes:
        same: ops that could be taken over.
        seconds: spent in ops; all else is watching, and the model's own code.
    """

    def __init__(self, record: _Record, known: Iterable[tuple[str, Any, Tensor]]) -> None:
        super().__init__(record, known)
        self.same: set[int] = set()
        self.seconds = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self.index += 1
        record, index, kind = self._record, self.index, _kind(func)
        written = _written(kind, args, kwargs)
        if any(_storage(tensor) in record.lent for tensor in written):
            raise CannotShare(f"{func} writes to a tensor that the reference only reads")
        if self._last is not None and index > self._last:
            return func(*args, **kwargs)
        called, given = self._call(func, args, kwargs)
        is_same = called == record.calls.get(index)
        if is_same and index in record.results:
            out = record.results[index]
            if index in record.written:
                out = _copied(out)
            for position, tensor in enumerate(_new(out, given)):
                self._mark(tensor, (index, position))
            return out
        start = _clock()
        out = func(*args, **kwargs)
        self.seconds += _clock() - start
        for position, tensor in enumerate(written):
            self._mark(tensor, (index, "written", position) if is_same else _Unknown())
        new = _new(out, given)
        for position, tensor in enumerate(new):
            self._mark(tensor, (index, position) if is_same else _Unknown())
        if is_same and record.wanted is None and _is_plain(kind, args, kwargs, out, new):
            self.same.add(index)
        return out


def _same_tensors(model: nn.Module, reference: nn.Module) -> list[tuple[str, Any, Tensor]]:
    """Parameters and buffers of `model` that are those of the reference."""
    theirs = named_tensors(reference)
    return [("own", name, t) for name, t in named_tensors(model).items() if _is_equal(t, theirs.get(name))]


def _is_equal(tensor: Tensor, other: Tensor | None) -> bool:
    if other is None or tensor.shape != other.shape or tensor.stride() != other.stride() or tensor.dtype != other.dtype:
        return False
    return tensor.data_ptr() == other.data_ptr() or torch.equal(tensor, other)


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _clock() -> float:
    """Seconds, when all that was asked for is done."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


def _written(kind: _Kind, args: Any, kwargs: Mapping[str, Any]) -> list[Tensor]:
    """Tensors that an op writes to, by its schema."""
    found: list[Tensor] = []
    for position, name in kind.written:
        found += tensors(args[position] if position < len(args) else kwargs.get(name))
    return found


def _new(out: Any, given: set[int]) -> list[Tensor]:
    """Outputs that are no views of an argument."""
    return [tensor for tensor in tensors(out) if _storage(tensor) not in given]


def _is_plain(kind: _Kind, args: Any, kwargs: Mapping[str, Any], out: Any, new: Sequence[Tensor]) -> bool:
    """Does an op return new tensors, and do nothing else?"""
    parts = out if isinstance(out, tuple | list) else (out,)
    if kind.written or len(parts) != len(new) or not all(isinstance(part, Tensor) for part in parts):
        return False
    if kind.trains is None:
        return True
    position, name = kind.trains
    return not (args[position] if position < len(args) else kwargs.get(name))


def _copied(out: Any) -> Any:
    """The same values in the same layout."""
    if isinstance(out, Tensor):
        return torch.empty_strided(out.shape, out.stride(), dtype=out.dtype, device=out.device).copy_(out)
    return type(out)(map(_copied, out))
