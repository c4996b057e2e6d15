"""The oracle is `copy.deepcopy`: the same objects in the same places, and nothing shared that can change."""

from __future__ import annotations

import copy
import functools
import types
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from autoprune.search_spaces.surgery import named_tensors, replace_tensors


class _Base(nn.Module):
    mask: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 4, 3)
        self.b = nn.BatchNorm2d(4)
        self.register_buffer("mask", torch.ones(4), persistent=False)


class References(_Base):
    """Modules in a list, a cycle, one module twice, a bound method, shared containers."""

    def __init__(self) -> None:
        super().__init__()
        self.order = [self.a, self.b, [self.b]]
        self.table = {"b": self.b, 1: (self.a, 2), ("a", 3): {4, 5}}
        self.again = self.a
        self.me = [self]
        self.call = self.b.forward
        self.later = functools.partial(self.b.forward, self.a)  # type: ignore[arg-type]
        self.shared = self.order
        self.of_modules = {self.a, self.b}
        self.loop: list[Any] = []
        self.loop.append((self.loop, self.b))


class Hooked(_Base):
    """Hooks that are bound to a module, on itself and on another one."""

    def __init__(self) -> None:
        super().__init__()
        self.a.register_forward_hook(self.note)
        self.b.register_forward_pre_hook(self.note)

    def note(self, *args: Any) -> None:
        pass


class Tied(_Base):
    """One parameter in two modules, one buffer in two, one empty place."""

    def __init__(self) -> None:
        super().__init__()
        self.c = nn.Conv2d(3, 4, 3)
        self.c.weight = self.a.weight
        self.c.bias = None
        self.c.register_buffer("mask", self.mask)


class Kept(_Base):
    """Values that modules keep: a cached tensor, an ordered dict with attributes, other containers, a plain object."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = {"grid": torch.arange(3), "size": torch.Size([1, 2]), "kind": torch.float16}
        self.grid = torch.arange(3)
        self.state = self.a.state_dict()
        self.counts = defaultdict(list, {1: [self.a]})
        self.namespace = types.SimpleNamespace(layer=self.a, other=[self.b])
        self.frozen = frozenset((1, 2))
        self.text = bytearray(b"abc")
        self.empty: OrderedDict[str, int] = OrderedDict()
        self.same = self.empty
        self.device = torch.device("cpu")


class SaysItself(_Base):
    """A class that has its own way to be copied: the copy is marked."""

    marked = False

    def __deepcopy__(self, memo: dict[int, Any]) -> SaysItself:
        made = type(self)()
        memo[id(self)] = made
        made.marked = True
        made.a = copy.deepcopy(self.a, memo)
        return made


class Gives(_Base):
    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "from": "getstate"}


class Takes(_Base):
    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({**state, "to": "setstate"})  # type: ignore[no-untyped-call]


class Reduces(_Base):
    def __reduce__(self) -> tuple[Any, ...]:
        return nn.Identity, (), {}


class Wrapper(nn.Module):
    """Asks what it wraps for everything it lacks."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._modules["inner"], name)


def _of_one_instance() -> Any:
    model: Any = _Base()
    model.a.__deepcopy__ = lambda memo: nn.Identity()
    return model


def _compiled() -> Any:
    model: Any = _Base()
    model._compiled_call_impl = model.b.forward
    return model


MODELS: dict[str, Callable[[], nn.Module]] = {
    "plain": lambda: nn.Sequential(_Base(), nn.Linear(4, 2)),
    "references": References,
    "hooked": Hooked,
    "tied": Tied,
    "kept": Kept,
    "__deepcopy__": lambda: nn.Sequential(SaysItself(), Kept()),
    "__getstate__": lambda: nn.Sequential(Gives(), References()),
    "__setstate__": lambda: nn.Sequential(Takes(), References()),
    "__reduce__": lambda: nn.Sequential(Reduces(), References()),
    "wrapper": lambda: nn.Sequential(Wrapper(SaysItself())),
    "one instance": _of_one_instance,
    "compiled": _compiled,
    "parametrized": lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(3, 4)), References()),
    "spectral norm": lambda: parametrizations.spectral_norm(nn.Linear(3, 4)),
    "attention": lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2), 2, enable_nested_tensor=False),
}


def _assert_same(a: Any, b: Any, there: dict[int, int], back: dict[int, int]) -> None:
    """Same types, values and references; what refers to one thing in `a` refers to one thing in `b`."""
    assert type(a).__name__ == type(b).__name__  # a parametrized module's class is its own
    if isinstance(a, int | float | str | bytes | bytearray | type | types.FunctionType | torch.dtype | torch.device):
        assert a == b
        return
    known = id(a) in there
    assert there.setdefault(id(a), id(b)) == id(b)
    assert back.setdefault(id(b), id(a)) == id(a)
    if known or a is b:
        return
    parts: list[tuple[Any, Any]] = []
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
        return
    if isinstance(a, dict):
        assert len(a) == len(b)
        parts += [pair for items in zip(a.items(), b.items(), strict=True) for pair in zip(*items, strict=True)]
    elif isinstance(a, list | tuple):
        parts += zip(a, b, strict=True)
    elif isinstance(a, set | frozenset):
        parts += zip(sorted(a, key=repr), sorted(b, key=repr), strict=True)
    elif isinstance(a, types.MethodType):
        assert a.__func__ is b.__func__
        parts.append((a.__self__, b.__self__))
    elif isinstance(a, functools.partial):
        parts += [(a.func, b.func), (a.args, b.args)]
    if isinstance(getattr(a, "__dict__", None), dict) and not isinstance(a, types.MethodType):
        parts.append((vars(a), vars(b)))
    for x, y in parts:
        _assert_same(x, y, there, back)


@pytest.mark.parametrize("name", MODELS)
def test_the_copy_is_what_deepcopy_makes(name: str) -> None:
    model = MODELS[name]()
    new = {id(t): t.detach().clone() for t in named_tensors(model).values()}
    made, expected = replace_tensors(model, new), copy.deepcopy(model, dict(new))
    _assert_same(made, expected, {}, {})


def test_nothing_that_can_change_is_shared_with_the_original() -> None:
    model: Any = nn.Sequential(References(), Hooked(), Kept())
    made: Any = replace_tensors(model, {})
    for old, new in zip(model.modules(), made.modules(), strict=True):
        assert old is not new
        for name, value in vars(old).items():
            if isinstance(value, dict | list | set | bytearray | torch.Tensor):
                assert vars(new)[name] is not value, name
    made[0].order.append(1)
    made[2].b.register_forward_hook(lambda *args: None)
    assert len(model[0].order) == 3
    assert not model[2].b._forward_hooks
