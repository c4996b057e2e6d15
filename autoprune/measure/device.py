"""What this machine is: latencies are comparable only where `device_fingerprint` is the same."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from pathlib import Path
from typing import Any

import torch

CPUFREQ = Path("/sys/devices/system/cpu/cpu0/cpufreq")

NOT_IN_FINGERPRINT = ("threads", "governor")
"""Each latency states its threads itself, and a laptop changes the governor of its clock frequency whenever it is
unplugged; that the machine became slower shows in the dense network's time."""


def device_info() -> dict[str, Any]:
    """Return processor, cores, threads, governor of the clock frequency, graphics processor (both None where the
    machine has or shows none) and the torch release.
    """
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    return {
        "cpu": _cpu_name(),
        "cores": _usable_cores(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "governor": _governor(),
        "gpu": gpu,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "system": f"{platform.system()} {platform.machine()}",
    }


def device_fingerprint() -> str:
    """Return a short digest of `device_info` without `NOT_IN_FINGERPRINT`."""
    info = {name: value for name, value in device_info().items() if name not in NOT_IN_FINGERPRINT}
    return hashlib.sha256(json.dumps(info, sort_keys=True).encode()).hexdigest()[:12]


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name" and value.strip():
                return value.strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine() or "unknown processor"


def _governor() -> str | None:
    try:
        return (CPUFREQ / "scaling_governor").read_text(encoding="ascii").strip() or None
    except OSError:
        return None  # not Linux, or a virtual machine


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
