"""Which multiples the levels of a search take: what was asked for, or the channel step of the runtime.

Kernels work on blocks of channels; a width that is no whole number of blocks can cost more than the next one that is.
"""

from __future__ import annotations

from collections.abc import Mapping

from autoprune.config import SearchConfig
from autoprune.search_spaces import Budget
from autoprune.search_spaces.errors import UserError
from autoprune.search_spaces.quantities import is_measured

DEFAULT = 8
"""Where nothing measured limits the search, and so nothing is measured: what most runtimes are fast at."""


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
