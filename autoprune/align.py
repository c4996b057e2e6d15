"""Which multiples the levels of a search take: what was asked for, or the channel step of the runtime.

Kernels work on blocks of channels; a width that is no whole number of blocks can cost more than the next one that is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from autoprune import stopping
from autoprune.config import SearchConfig
from autoprune.measure.device_profile import DeviceProfile
from autoprune.progress import Progress
from autoprune.runtimes import Runtime
from autoprune.search_spaces import Budget, SearchSpace
from autoprune.search_spaces.errors import UserError
from autoprune.search_spaces.quantities import is_measured
from autoprune.steps import find_steps, kinds_of

DEFAULT = 8
"""Where nothing measured limits the search, and so nothing is measured: what most runtimes are fast at."""

WIDE = 64
"""Units of the widest group from which on the step of a runtime is worth measuring."""

SLOW = ("compile", "command")
"""Runtimes whose steps are not measured."""


def read_align(text: str) -> int | str:
    """``auto``, or a power of two, as typed."""
    if text != "auto" and not text.isdecimal():
        raise UserError(f"`align` must be a power of two or 'auto', but got {text!r}. Choose 1, 8, 16 or auto.")
    return text if text == "auto" else int(text)


def needs_steps(config: SearchConfig) -> bool:
    """Whether the step of the runtime decides: ``auto``, and a budget on something that is measured on it."""
    return config.align == "auto" and any(map(is_measured, Budget.parse(config.budget).costs))


def resolve_align(config: SearchConfig, steps: Mapping[str, int] | None = None) -> int:
    """What levels are multiples of: as configured, else the largest of the measured steps, else `DEFAULT`.

    Groups span kinds of ops (the output of a convolution is the width of a depthwise one), so one step serves all.

    Args:
        steps: of `find_steps`, by kind of op; of several runtimes the largest of each kind, or one after the other.
    """
    if isinstance(config.align, int):
        return config.align
    return max((steps or {}).values(), default=DEFAULT)


def worthwhile_steps(
    space: SearchSpace, runtimes: Iterable[Runtime], profile: DeviceProfile | None, progress: Progress
) -> dict[str, int]:
    """The largest step among the runtimes for each kind of op; {} where measuring them is not worth it.

    Narrow networks have levels of few channels whatever the step, and runtimes that take seconds to load a network
    would take an hour for hundreds of them.
    """
    steps: dict[str, int] = {}
    if max(group.num_units for group in space.groups) < WIDE:
        return steps
    for runtime in {runtime.describe(): runtime for runtime in runtimes}.values():
        if runtime.name in SLOW:
            continue
        found = _steps_of(runtime, space, profile, progress)
        progress.say(f"Channel steps of {runtime.name}: {', '.join(f'{kind} {step}' for kind, step in found.items())}.")
        steps = {kind: max(step, steps.get(kind, 1)) for kind, step in found.items()}
    return steps


def _steps_of(
    runtime: Runtime, space: SearchSpace, profile: DeviceProfile | None, progress: Progress
) -> dict[str, int]:
    """The channel step of each kind of op in a network, measured where the device profile does not hold it."""
    kinds = kinds_of(space.ops)
    steps = {} if profile is None else profile.entry(runtime).steps
    missing = [kind for kind in kinds if kind not in steps]
    for kind in missing:
        steps.update(find_steps(runtime, [kind], progress=progress))
        if profile is not None:
            profile.save()
        stopping.check()
    return {kind: steps[kind] for kind in kinds}
