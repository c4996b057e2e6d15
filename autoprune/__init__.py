"""Structured pruning of PyTorch models under a budget: search, fine-tune, export.

    import autoprune as ap
    result = ap.search(model, data="digits", budget=["macs=0.5x", "latency=8ms"], run="runs/first")

Names load when used, so that ``autoprune --help`` does not wait for torch.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from autoprune.api import Result as Result
    from autoprune.api import resume as resume
    from autoprune.api import search as search
    from autoprune.data import Data as Data
    from autoprune.data import data_from_loaders as data_from_loaders
    from autoprune.data import load_data as load_data
    from autoprune.diagnosis import Finding as Finding
    from autoprune.diagnosis import doctor as doctor
    from autoprune.export import load as load
    from autoprune.finetune import FineTune as FineTune
    from autoprune.front import FrontPoint as FrontPoint
    from autoprune.kl_table import KLTable as KLTable
    from autoprune.latency_tool.profile import LatencyProfile as LatencyProfile
    from autoprune.latency_tool.tool import profile_latency as profile_latency
    from autoprune.points import export_point as export_point
    from autoprune.points import fine_tune as fine_tune
    from autoprune.profiling import profile as profile
    from autoprune.proxies import proxy as proxy
    from autoprune.proxy_report import ProxyReport as ProxyReport
    from autoprune.search_spaces import trace as trace
    from autoprune.search_spaces.budget import Budget as Budget
    from autoprune.search_spaces.errors import UserError as UserError
    from autoprune.workers.work import work as work
    from autoprune.worst import WorstOf as WorstOf

_HOMES = {
    "Budget": "autoprune.search_spaces.budget",
    "Data": "autoprune.data",
    "FineTune": "autoprune.finetune",
    "FrontPoint": "autoprune.front",
    "ProxyReport": "autoprune.proxy_report",
    "KLTable": "autoprune.kl_table",
    "LatencyProfile": "autoprune.latency_tool.profile",
    "Result": "autoprune.api",
    "UserError": "autoprune.search_spaces.errors",
    "WorstOf": "autoprune.worst",
    "Finding": "autoprune.diagnosis",
    "doctor": "autoprune.diagnosis",
    "data_from_loaders": "autoprune.data",
    "export_point": "autoprune.points",
    "fine_tune": "autoprune.points",
    "load": "autoprune.export",
    "load_data": "autoprune.data",
    "proxy": "autoprune.proxies",
    "profile": "autoprune.profiling",
    "profile_latency": "autoprune.latency_tool.tool",
    "resume": "autoprune.api",
    "search": "autoprune.api",
    "trace": "autoprune.search_spaces",
    "work": "autoprune.workers.work",
}

__all__ = [*sorted(_HOMES), "__version__"]


def _register_environment() -> None:
    """Make ``autoprune/Pruning-v0`` known to Gymnasium, which does not look for environments on its own."""
    importlib.import_module("autoprune.agents")


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'autoprune' has no attribute {name!r}")
    _register_environment()
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__


if "gymnasium" in sys.modules:  # else with the first name that is used: Gymnasium need not be loaded for --help
    _register_environment()
