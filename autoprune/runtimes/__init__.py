"""Runtimes behind one interface: what runs a network, and how long that takes."""

from __future__ import annotations

from autoprune.runtimes.base import Runnable, Runtime, Session, Times

__all__ = ["Runnable", "Runtime", "Session", "Times"]
