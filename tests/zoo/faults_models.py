"""Networks that go wrong in every way, and one that does not: what the runner itself is tested with."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

from torch import Tensor, nn

from tests.search_spaces.nets import IMAGE, Plain
from tests.zoo.case import Case


def _killed() -> nn.Module:
    os.kill(os.getpid(), signal.SIGKILL)
    return Plain()


def _hangs() -> nn.Module:
    time.sleep(600)
    return Plain()


def _too_large() -> nn.Module:
    return nn.Linear(2**20, 2**12)  # 16 GiB


def _raises() -> nn.Module:
    raise ValueError("built wrongly")


class _Ignored(nn.Module):
    """What is cut does not reach the output."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.own = Plain(), nn.Linear(1, 10)

    def forward(self, x: Tensor) -> Any:
        return self.inner(x) * 0 + self.own(x.mean((1, 2, 3))[:, None])


CASES = [
    Case(library="faults", name="fine", build=Plain, inputs=lambda: IMAGE),
    Case(library="faults", name="killed", build=_killed, inputs=lambda: IMAGE),
    Case(library="faults", name="hangs", build=_hangs, inputs=lambda: IMAGE, seconds=1),
    Case(library="faults", name="too_large", build=_too_large, inputs=lambda: IMAGE, gigabytes=4),
    Case(library="faults", name="raises", build=_raises, inputs=lambda: IMAGE),
    Case(library="faults", name="ignored", build=_Ignored, inputs=lambda: IMAGE, limit="meant to fail"),
]
