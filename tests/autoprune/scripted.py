"""A runtime whose networks take the times of a script: no real clock has a part in what it says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from torch import nn

from autoprune.runtimes import Runnable, Runtime, Session, Times

Script = Callable[[int], float | tuple[float, float | None]]
"""Turn -> wall-clock milliseconds, or (wall-clock, processor)."""


COLD = 3.0
"""The first run of a turn takes this many times longer than the script says."""


class Scripted(nn.Module):
    """A network whose second run of each turn takes the time of a script, and the first run longer."""

    def __init__(self, script: Script) -> None:
        super().__init__()
        self.script = script


class ScriptedRuntime(Runtime):
    """Asks every network's script how long its next run takes, and logs who ran."""

    name: ClassVar[str] = "scripted"
    precision = "fp32"
    version = "1.0"
    settings: Mapping[str, str] = {}

    def __init__(self, clock: str = "cpu", threads: int = 1) -> None:
        self.clock, self.threads = clock, threads
        self.log: list[nn.Module] = []
        self.closed = 0

    def open(self, dense: nn.Module, inputs: Any) -> Session:
        return _Session(self)


class _Session(Session):
    def __init__(self, runtime: ScriptedRuntime) -> None:
        self._runtime = runtime

    def load(self, model: nn.Module) -> Runnable:
        return _Run(model, self._runtime)

    def close(self) -> None:
        self._runtime.closed += 1


class _Run:
    def __init__(self, model: nn.Module, runtime: ScriptedRuntime) -> None:
        self._model, self._runtime, self._number = model, runtime, 0

    def __call__(self) -> Times:
        self._runtime.log.append(self._model)
        assert isinstance(self._model, Scripted)
        turn, second = (self._number, 1) if self._runtime.clock == "reported" else divmod(self._number, 2)
        self._number += 1
        answer = self._model.script(turn)
        wall, cpu = answer if isinstance(answer, tuple) else (answer, answer)
        return Times(wall, cpu) if second else Times(COLD * wall, None if cpu is None else COLD * cpu)

    def layers(self) -> dict[str, float] | None:
        return {"layer": 1.0}
