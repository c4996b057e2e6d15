"""Predict what a subnet costs on a device from measured whole subnets, and from a table of its ops."""

from __future__ import annotations

from autoprune.latency.choose import informative, mixed
from autoprune.latency.model import Error, LatencyModel
from autoprune.latency.samples import Sample
from autoprune.latency.table import LatencyTable, describe

__all__ = ["Error", "LatencyModel", "LatencyTable", "Sample", "describe", "informative", "mixed"]
