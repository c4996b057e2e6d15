"""Workers of a search as processes on this machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import torch

from autoprune.storage.address import VARIABLE
from autoprune.study import Study

LOGS = "logs"
"""Folder in that of the run: what workers reported."""

THREADS = "OMP_NUM_THREADS"

_ASKED = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
_WELL = {0, *(128 + number for number in _ASKED), *(-number for number in _ASKED)}
"""Exit codes of workers that came to the end, or left because they were asked to."""


class Process:
    """One worker.

    Args:
        log: what it writes, added to what workers before it wrote.
    """

    def __init__(self, command: Sequence[str], environment: dict[str, str], log: Path) -> None:
        self._log = log
        with log.open("ab") as file:
            self._start = file.tell()
            self._process = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT
            )

    def ended(self) -> str | None:
        """None while it works; then what went wrong, empty if nothing did."""
        code = self._process.poll()
        if code is None or code in _WELL:
            return None if code is None else ""
        if code < 0:
            number = -code
            name = signal.Signals(number).name if number in signal.valid_signals() else f"signal {number}"
            return f"was killed ({name}). What it has not stored is done by the others. See {self._log}"
        last = self._last_line().rstrip(".")
        return f"ended with exit code {code}{f': {last}' if last else ''}. See {self._log}"

    def _last_line(self) -> str:
        with suppress(OSError), self._log.open("rb") as file:
            file.seek(self._start)
            lines = file.read().decode(errors="replace").strip().splitlines()
            return lines[-1] if lines else ""
        return ""

    def stop(self) -> None:
        """Ask it to leave: it finishes its trial, or gives it back."""
        self._process.terminate()

    def kill(self) -> None:
        """End it now."""
        self._process.kill()
        self._process.wait()


@contextmanager
def processes(study: Study, workers: int) -> Iterator[list[Process]]:
    """Start `workers` - 1 processes, this one being a worker too; they share the cores that torch uses here.

    Where the user has set ``OMP_NUM_THREADS``, it holds for each of them, and here.
    """
    before = torch.get_num_threads()
    threads = before if THREADS in os.environ else max(1, before // workers)  # or all would compute on all cores
    environment = {**os.environ, THREADS: os.environ.get(THREADS, str(threads)), VARIABLE: study.address.secret}
    # trusted, since this process is, even where that could not be remembered
    command = [sys.executable, "-m", "autoprune", "worker", str(study.path), "--trust"]
    logs = study.path / LOGS
    logs.mkdir(exist_ok=True)
    torch.set_num_threads(threads)
    with ExitStack() as stack:
        stack.callback(torch.set_num_threads, before)
        started: list[Process] = []
        try:
            for index in range(1, workers):
                started.append(Process(command, environment, logs / f"worker-{index}.log"))
        except BaseException:
            for process in started:
                process.kill()
            raise
        yield started
