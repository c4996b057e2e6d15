"""Measure how long networks take, side by side: `measure` once, a `Stopwatch` again and again.

Unit: milliseconds for one forward pass of the whole batch. What was chosen and why: docs/measuring.md.
"""

from __future__ import annotations

from autoprune.measure.device import device_fingerprint, device_info
from autoprune.measure.measured import Latency
from autoprune.measure.once import measure
from autoprune.measure.race import TooNoisy
from autoprune.measure.stopwatch import Stopwatch, batch_size

__all__ = ["Latency", "Stopwatch", "TooNoisy", "batch_size", "device_fingerprint", "device_info", "measure"]
