"""Safe points at which a search may be stopped."""

from __future__ import annotations


def check() -> None:
    """Raise where the user asked to stop; called between pieces of work of which each is stored."""
