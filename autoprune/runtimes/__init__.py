"""Runtimes behind one interface: what runs a network, and how long that takes."""

from __future__ import annotations

from autoprune.runtimes.base import Runnable, Runtime, Session, Times
from autoprune.runtimes.spec import RUNTIMES, make_runtime

__all__ = ["RUNTIMES", "Runnable", "Runtime", "Session", "Times", "make_runtime"]
