"""A command of the user's, for devices that are not here: it gets an ONNX file and prints milliseconds."""

from __future__ import annotations

import math
import os
import shlex
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any, ClassVar
from weakref import finalize

from torch import nn

from autoprune.runtimes.base import MeasuringFailed, Runtime, Session, Times
from autoprune.runtimes.onnx_template import OnnxTemplate, require_onnx
from autoprune.runtimes.onnxruntime import OnnxCall
from autoprune.search_spaces.errors import UserError

PLACEHOLDER = "{onnx}"
TIMEOUT_S = 600.0
SHOWN = 500
"""Characters of the end of an output that a message shows."""


class CommandRuntime(Runtime):
    """Runs ``command FILE.onnx`` for every measurement.

    Args:
        command: split as a POSIX shell splits words; no shell runs it, so ``|``, ``>`` and ``$NAME`` mean nothing.
            The path of the file takes the place of ``{onnx}``, or comes last.
        threads: told to the command as ``AUTOPRUNE_THREADS``.
        timeout_s: of one run.
    """

    name: ClassVar[str] = "command"

    def __init__(self, command: str, *, threads: int = 1, timeout_s: float = TIMEOUT_S) -> None:
        require_onnx()
        try:
            self.words = shlex.split(command)
        except ValueError as error:
            raise UserError(f"The command {command!r} cannot be read: {error}.") from None
        if not self.words:
            raise UserError("The runtime command needs a command: command:./time_it.sh --board 3")
        if shutil.which(self.words[0]) is None:
            raise UserError(
                f"The command {self.words[0]!r} was not found, or may not be executed. Give a path "
                "(./time_it.sh) or a program on PATH, and check that it is executable."
            )
        if not any(PLACEHOLDER in word for word in self.words):
            self.words.append(PLACEHOLDER)
        self.command, self.threads, self.timeout_s = command, threads, timeout_s
        self.precision, self.clock = "model", "reported"

    @property
    def version(self) -> str:
        return "1"  # of the protocol: what the command runs is its own affair

    @property
    def settings(self) -> Mapping[str, str]:
        return {"command": self.command}

    def open(self, dense: nn.Module, inputs: Any) -> Session:
        return _CommandSession(self, OnnxTemplate(dense, inputs, free=False))


class _CommandSession(Session):
    def __init__(self, runtime: CommandRuntime, template: OnnxTemplate) -> None:
        self._runtime, self._template = runtime, template
        self._folder = tempfile.TemporaryDirectory(prefix="autoprune-")
        self._files = 0

    def load(self, model: nn.Module) -> CommandRunnable:
        graph, _ = self._template.make(model, lambda graph: OnnxCall(graph, 1))
        self._files += 1
        path = Path(self._folder.name) / f"network-{self._files}.onnx"
        path.write_bytes(graph)
        runnable = CommandRunnable(self._runtime, path)
        finalize(runnable, path.unlink, missing_ok=True)
        return runnable

    def close(self) -> None:
        self._folder.cleanup()


class CommandRunnable:
    """The ONNX file of a network and the command that times it."""

    def __init__(self, runtime: CommandRuntime, path: Path) -> None:
        self._runtime, self.path = runtime, path
        self._words = [word.replace(PLACEHOLDER, str(path)) for word in runtime.words]

    def __call__(self) -> Times:
        runtime = self._runtime
        try:
            done = _run(self._words, {**os.environ, "AUTOPRUNE_THREADS": str(runtime.threads)}, runtime.timeout_s)
        except subprocess.TimeoutExpired:
            raise MeasuringFailed(f"{self._said} took longer than {runtime.timeout_s:g} s and was stopped.") from None
        except OSError as error:
            raise MeasuringFailed(f"{self._said} cannot be run: {error.strerror}.") from None
        if done.returncode:
            raise MeasuringFailed(
                f"{self._said} ended with exit code {done.returncode}. {_shown(done.stderr or done.stdout)}"
            )
        times = read_times(done.stdout)
        if not times:
            raise MeasuringFailed(
                f"{self._said} must print milliseconds, positive numbers alone on the last lines of its standard "
                f"output. {_shown(done.stdout)}"
            )
        return Times(median(times), None)

    def layers(self) -> dict[str, float] | None:
        return None

    @property
    def _said(self) -> str:
        return f"The command {shlex.join(self._words)!r}"


def _run(words: list[str], env: Mapping[str, str], timeout_s: float) -> subprocess.CompletedProcess[str]:
    """Run a command; where it takes too long or is interrupted, stop it and all that it started."""
    with subprocess.Popen(
        words,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    ) as process:
        try:
            stdout, stderr = process.communicate(timeout=timeout_s)
        except BaseException:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise
        return subprocess.CompletedProcess(words, process.returncode, stdout, stderr)


def read_times(output: str) -> list[float]:
    """The numbers on the last lines that hold positive finite numbers only; [] where the last line holds others."""
    times: list[float] = []
    for line in reversed([line for line in output.splitlines() if line.strip()]):
        try:
            numbers = [float(word) for word in line.split()]
        except ValueError:
            break
        if not all(math.isfinite(number) and number > 0 for number in numbers):
            break
        times += reversed(numbers)
    return times[::-1]


def _shown(text: str) -> str:
    text = text.strip()
    return f"It printed: {text[-SHOWN:]!r}" if text else "It printed nothing."
