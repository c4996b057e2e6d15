"""The one exception for what a user can mend, and the hint that goes with a wrong name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Something the user gave cannot be used.

    The message states the rule, the value received, where, and the next step. The command line prints it
    without a traceback and leaves with exit code 2.
    """


def unknown(kind: str, name: str, available: Iterable[str]) -> UserError:
    """Return the error for a wrong name, with the nearest right one: ``raise unknown("agent", "tpu", names)``."""
    names = sorted(available)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return UserError(f"Unknown {kind} {name!r}.{hint} Available: {', '.join(names)}.")
