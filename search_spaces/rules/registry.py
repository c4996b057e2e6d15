"""The table of rules: ATen name without overload -> rule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from autoprune.search_spaces.tracer import Tracer

Rule: TypeAlias = Callable[[Tracer, tuple[Any, ...], dict[str, Any], Any], None]
"""Called as `rule(tracer, args, kwargs, out)` after the op has run."""

RULES: dict[str, Rule] = {}


ALWAYS: set[Rule] = set()
"""Rules applied even where nothing prunable comes in: those that count MACs, and those that make labels."""


def rule(*names: str, always: bool = False) -> Callable[[Rule], Rule]:
    """Register a rule for the ATen ops `names`; their in-place forms (``add_``) are found by themselves."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        if always:
            ALWAYS.add(function)
        return function

    return register


def argument(args: tuple[Any, ...], kwargs: dict[str, Any], position: int, name: str, default: Any = None) -> Any:
    """An argument that may come by position or by name."""
    return args[position] if len(args) > position else kwargs.get(name, default)
