"""Predict what a subnet costs on a device from measured whole subnets."""

from __future__ import annotations

from autoprune.latency.choose import informative, mixed
from autoprune.latency.model import Error, LatencyModel
from autoprune.latency.samples import Sample

__all__ = ["Error", "LatencyModel", "Sample", "informative", "mixed"]
