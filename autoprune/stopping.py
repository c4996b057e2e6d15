"""Stop when asked to, at a place where everything that was done is stored."""

from __future__ import annotations


class Stopped(KeyboardInterrupt):
    """The work was stopped on request; `signal` is the number of the signal that asked for it."""

    def __init__(self, signal: int) -> None:
        super().__init__(f"stopped by signal {signal}")
        self.signal = signal


def wanted() -> bool:
    """Whether the user or the cluster has asked to stop."""
    return False


def check() -> None:
    """Raise `Stopped` if that is wanted."""
