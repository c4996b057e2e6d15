"""Find what the user names as ``package.module:function``."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

from autoprune.search_spaces.errors import UserError, unknown


def import_function(spec: str, kind: str) -> Callable[..., Any]:
    """Return the function (or class) `spec` names; modules in the current folder are found too.

    Args:
        spec: ``package.module:function``.
        kind: what it should give, for messages: "model".

    Raises:
        UserError: no such module or attribute, it is not callable, or the module fails while it is imported.
    """
    module_name, _, path = spec.partition(":")
    if not (module_name and path):
        raise UserError(f"A {kind} of your own is given as package.module:function, but got {spec!r}.")
    here = os.getcwd()
    if here not in sys.path and module_name.partition(".")[0] != "autoprune":  # which needs nothing of this folder
        sys.path.insert(0, here)  # as `python -m` does; it stays, for what the module imports later
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and f"{module_name}.".startswith(f"{error.name}."):
            raise UserError(
                f"The {kind} {spec!r} needs a module {error.name!r}, but there is none in {here} or among the "
                "installed packages. Run from the folder that holds it, or install it."
            ) from error
        raise UserError(f"Importing {module_name!r} for the {kind} {spec!r} failed: {error}.") from error
    except Exception as error:
        message = f"{type(error).__name__}: {error}"
        raise UserError(f"Importing {module_name!r} for the {kind} {spec!r} failed with {message}") from error
    for name in path.split("."):
        if not hasattr(found, name):
            own = [n for n, value in vars(found).items() if getattr(value, "__module__", None) == module_name]
            raise unknown(f"function of {module_name!r}:", name, [n for n in own if not n.startswith("_")])
        found = getattr(found, name)
    if not callable(found):
        raise UserError(f"{spec!r} must be a function or class that gives the {kind}, but is a {type(found).__name__}.")
    function: Callable[..., Any] = found
    return function


def call(spec: str, kind: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call what makes the user's model or data; what it raises becomes a `UserError` that keeps type and message."""
    try:
        return function(*args, **kwargs)
    except UserError:
        raise
    except Exception as error:
        given = ", ".join([*map(repr, args), *(f"{name}={value!r}" for name, value in kwargs.items())])
        raise UserError(
            f"Making the {kind} with {spec}({given}) failed with {type(error).__name__}: {error}"
        ) from error
