"""Copy a module tree as `copy.deepcopy` does, several times faster.

Most of what deepcopy costs is the dozen hook dictionaries of every module, empty as a rule, each rebuilt through the
pickle protocol. Here modules and plain containers are copied at once, values that cannot change are shared, and all
else goes to `copy.deepcopy` with the same memo: so references between modules, tied tensors, bound methods and cached
values stay right, and a class that says itself how it is copied is asked. One thing deepcopy refuses: tensors with a
graph, as a hook makes of parameters (``torch.nn.utils.weight_norm``); they are kept without it.
"""

from __future__ import annotations

import copy
import copyreg
import types
from collections import OrderedDict
from typing import Any

import torch
from torch import nn

_UNCHANGING = frozenset((
    type(None), bool, int, float, complex, str, bytes, type, range, types.FunctionType, types.BuiltinFunctionType,
    torch.dtype, torch.device, torch.Size, torch.layout, torch.memory_format,
))  # fmt: skip

_HOOKS = frozenset(name for name, value in vars(nn.Module()).items() if isinstance(value, dict))
"""Dictionaries that every module has, most of them empty."""

_ABSENT = object()


class Skeleton:
    """Copies values; `memo` maps the id of a value to its copy, as in `copy.deepcopy`, and may be filled before."""

    def __init__(self, memo: dict[int, Any]) -> None:
        self.memo = memo
        self._plain: dict[type, bool] = {}

    def copy(self, value: Any) -> Any:
        """The copy of a value, always the same for the same one."""
        kind = type(value)
        if kind in _UNCHANGING:
            return value
        memo, key = self.memo, id(value)
        if key in memo:
            return memo[key]
        made: Any
        if kind is dict or (kind is OrderedDict and not value.__dict__):
            made = memo[key] = kind()
            for name, item in value.items():
                known = memo.get(id(item), _ABSENT)  # tensors are known: no call for each of them
                made[name if type(name) is str else self.copy(name)] = self.copy(item) if known is _ABSENT else known
        elif kind is list:
            made = memo[key] = []
            made.extend(map(self.copy, value))
        elif kind is tuple and _UNCHANGING.issuperset(map(type, value)):
            made = value
        elif kind is set and _UNCHANGING.issuperset(map(type, value)):
            made = memo[key] = set(value)
        elif isinstance(value, nn.Module) and self._is_plain(value):
            made = memo[key] = object.__new__(kind)
            state = vars(made)
            state.update(vars(value))
            for name, item in state.items():
                kind = type(item)
                if kind in _UNCHANGING:
                    continue
                if name in _HOOKS and not item:  # nobody else holds it: not worth an entry in the memo
                    state[name] = kind()
                    continue
                known = memo.get(id(item), _ABSENT)
                state[name] = self.copy(item) if known is _ABSENT else known
        elif isinstance(value, torch.Tensor) and not value.is_leaf:
            made = memo[key] = value.detach()
        else:
            made = copy.deepcopy(value, memo)
        return made

    def _is_plain(self, module: nn.Module) -> bool:
        """Is the copy of this module a new object with a copy of every attribute, and nothing else?"""
        kind = type(module)
        if kind not in self._plain:
            self._plain[kind] = _has_plain_class(kind)
        # one module may say itself how it is copied, too; a compiled call is not copied at all
        own = vars(module)
        special = "__deepcopy__" in own or "__reduce_ex__" in own or "_compiled_call_impl" in own
        return self._plain[kind] and not special


def _has_plain_class(kind: type[nn.Module]) -> bool:
    unchanged = all(
        getattr(kind, name, None) is getattr(base, name, None)
        for base, names in (
            (nn.Module, ("__getattr__", "__getstate__")),
            (object, ("__new__", "__getattribute__", "__reduce_ex__", "__reduce__")),
            (None, ("__deepcopy__", "__getnewargs__", "__getnewargs_ex__")),
        )
        for name in names
    )
    # those of torch's own layers only add attributes that the files of older versions lack
    unchanged &= kind.__setstate__.__module__.startswith("torch.nn.modules.")
    return unchanged and kind not in copyreg.dispatch_table
