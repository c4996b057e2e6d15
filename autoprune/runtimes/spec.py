"""Read ``NAME[:key=value,...]`` as a runtime."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from autoprune.runtimes.base import Runtime
from autoprune.search_spaces.errors import UserError, unknown

RUNTIMES: tuple[str, ...] = ("eager", "compile", "onnxruntime", "openvino", "command")

_TRUE = ("false", "true")
_TORCH = {"precision": ("model", "fp32", "bf16", "fp16"), "layout": ("contiguous", "channels_last")}
_CHOICES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "eager": {**_TORCH, "graph": _TRUE},
    "compile": {**_TORCH, "mode": ("default", "reduce-overhead", "max-autotune")},
    "onnxruntime": {},
    "openvino": {"precision": ("fp32", "bf16", "fp16")},
}
"""Settings of each runtime and their values."""


def make_runtime(spec: str, *, threads: int = 1, device: str = "cpu") -> Runtime:
    """The runtime that `spec` names.

    Args:
        spec: a name with settings, ``eager:precision=bf16,layout=channels_last``; everything after ``command:`` is
            the command.
        threads: that work on one run, at least 1.
        device: ``cpu``, or for `eager` and `compile` also ``cuda``.

    Raises:
        UserError: an unknown name, setting or value, or a runtime that is not installed.
    """
    if not isinstance(threads, int) or isinstance(threads, bool) or threads < 1:
        raise UserError(f"`threads` must be a whole number of at least 1, but got {threads!r}.")
    name, colon, rest = spec.partition(":")
    if name not in RUNTIMES:
        raise unknown("runtime", name, RUNTIMES)
    if device != "cpu" and name not in ("eager", "compile"):
        raise UserError(f"The runtime {name} does not run on {device!r}: only eager and compile do. Use device cpu.")
    if name == "command":
        return _load(name)(rest, threads=threads)
    if colon and not rest:
        raise UserError(f"{spec!r} ends with a colon: write {name}, or {name}:key=value.")
    settings = _settings(name, rest) if colon else {}
    if name in ("eager", "compile"):
        settings["device"] = device
    return _load(name)(threads=threads, **settings)


def _settings(name: str, text: str) -> dict[str, str]:
    choices, found = _CHOICES[name], {}
    for part in text.split(","):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals:
            raise UserError(f"Settings of a runtime are written key=value, but {name} got {part!r}.")
        if key not in choices:
            if not choices:
                raise UserError(f"The runtime {name} has no settings, but got {part!r}.")
            raise unknown(f"setting of the runtime {name}", key, choices)
        if value not in choices[key]:
            raise unknown(f"value of {name}:{key}", value, choices[key])
        if key in found:
            raise UserError(f"The setting {key!r} of the runtime {name} is given twice.")
        found[key] = value
    return found


def _load(name: str) -> Callable[..., Runtime]:
    """The class of a runtime; its module is loaded only now."""
    if name == "eager":
        from autoprune.runtimes.eager import EagerRuntime

        return EagerRuntime
    if name == "compile":
        from autoprune.runtimes.compile import CompileRuntime

        return CompileRuntime
    if name == "onnxruntime":
        from autoprune.runtimes.onnxruntime import OnnxRuntime

        return OnnxRuntime
    if name == "openvino":
        from autoprune.runtimes.openvino import OpenVinoRuntime

        return OpenVinoRuntime
    from autoprune.runtimes.command import CommandRuntime

    return CommandRuntime
