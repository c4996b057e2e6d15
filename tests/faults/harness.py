"""Interrupt a phase of a run again and again, in every way there is, and compare with the run that was left alone.

A fault comes at a moment: just before the n-th operation that changes files (see `shim.c`), or after so many seconds.
Whatever it leaves must be readable, trials must be those of the uninterrupted run as far as they go, and the same call
again must end with the same outcome.
"""

from __future__ import annotations

import json
import os
import platform
import random
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.faults import phases
from tests.faults.phases import Phase

SHIM = Path(__file__).with_name("shim.c")
KILL, TEAR, FULL, READ_ONLY = 1, 2, 3, 4
"""Modes of the shim."""

KINDS = {
    KILL: "killed before an operation",
    TEAR: "killed inside a write",
    FULL: "disk full",
    READ_ONLY: "made read-only",
    0: "killed at a random time",
}
PATIENCE = 300.0
"""Seconds after which a process is taken to hang: no test depends on how fast a machine is."""


def build_shim(folder: Path) -> Path | None:
    """Compile the shim; None where that cannot be."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or platform.system() != "Linux":
        return None
    library = folder / "shim.so"
    made = subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", library, SHIM, "-ldl"], capture_output=True)
    return library if made.returncode == 0 else None


@dataclass
class Process:
    """A fork of the server."""

    server: Server
    pid: int
    log: Path

    def wait(self, seconds: float | None = None) -> int | None:
        """Its exit code, -9 where it was killed; None where it runs on after so many seconds.

        Raises:
            AssertionError: it hangs, where no seconds are given.
        """
        code = self.server.code(self.pid, PATIENCE if seconds is None else seconds)
        if code is None and seconds is None:
            self.kill()
            raise AssertionError(f"hangs:\n{self.said()}")
        return code

    def send(self, number: signal.Signals) -> None:
        if self.pid not in self.server.codes:
            os.kill(self.pid, number)

    def kill(self) -> int:
        """Kill it, if it still runs; its exit code."""
        self.send(signal.SIGKILL)
        code = self.server.code(self.pid, PATIENCE)
        assert code is not None
        return code

    def said(self) -> str:
        """What it printed, and those before it with the same log."""
        return self.log.read_text(errors="replace")


class Server:
    """Starts processes that have everything imported already."""

    def __init__(self, shim: Path | None) -> None:
        self.shim = shim
        preload = {} if shim is None else {"LD_PRELOAD": str(shim)}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **preload, "OMP_NUM_THREADS": "1"},
            cwd=Path(__file__).parents[2],
        )
        self.codes: dict[int, int] = {}
        self._buffer = b""

    def start(self, call: str, *args: Any, log: Path, fault: Sequence[Any] | None = None) -> Process:
        """Fork a process that calls ``module:function``.

        Args:
            fault: folder, mode, moment (0 for never), and a file for the operations that it does.
        """
        self._order({"call": call, "args": args, "log": str(log), "fault": fault})
        while True:
            answer = self._answer(PATIENCE)
            assert answer is not None, "the server hangs"
            if "code" not in answer:
                self.codes.pop(answer["pid"], None)
                return Process(self, answer["pid"], log)

    def load(self, modules: Sequence[str]) -> None:
        """Have the server import modules, for all processes from now on."""
        self._order({"load": modules})

    def code(self, pid: int, seconds: float) -> int | None:
        end = time.monotonic() + seconds
        while pid not in self.codes:
            left = end - time.monotonic()
            if left <= 0 or self._answer(left) is None:
                return self.codes.get(pid)
        return self.codes[pid]

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _order(self, order: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        self._process.stdin.flush()

    def _answer(self, seconds: float) -> dict[str, int] | None:
        assert self._process.stdout is not None
        while b"\n" not in self._buffer:
            ready, _, _ = select.select([self._process.stdout], [], [], seconds)
            if not ready:
                return None
            read = os.read(self._process.stdout.fileno(), 65536)
            assert read, "the server has ended"
            self._buffer += read
        line, _, self._buffer = self._buffer.partition(b"\n")
        answer: dict[str, int] = json.loads(line)
        if "code" in answer:
            self.codes[answer["pid"]] = answer["code"]
        return answer


@dataclass(frozen=True)
class Unbroken:
    """What a phase comes to that was left alone, how long it took, and the operations that it did."""

    outcome: Any
    trials: Any
    folder: Path
    seconds: float
    operations: tuple[str, ...]


@dataclass
class Harness:
    """Interrupts phases; keeps what they start from and come to."""

    server: Server
    folder: Path
    records: list[dict[str, Any]] = field(default_factory=list)
    """One for each fault: phase, kind, and before which operation on which file."""
    _unbroken: dict[str, Unbroken] = field(default_factory=dict)
    _count: int = 0

    def fresh(self, phase: Phase) -> Path:
        """A new folder with what the phase starts from."""
        self._count += 1
        folder = self.folder / f"{phase.name.replace(' ', '-')}-{self._count}"
        if phase.start is None:
            folder.mkdir()
        else:
            shutil.copytree(self.started(phase.start), folder)
        return folder

    def started(self, name: str) -> Path:
        """A folder with a start of phases in it: to be copied, not changed."""
        made = self.folder / f"start-of-{name}"
        if not made.exists():
            half = made.with_name(made.name + "-half")
            half.mkdir()
            process = self.call("begin", name, half, folder=half)
            assert process.wait() == 0, process.said()
            half.rename(made)
        return made

    def call(self, function: str, *arguments: str | float | Path, folder: Path) -> Process:
        """Call a function of `phases` in a process of its own; what it prints goes to a log beside `folder`."""
        given = [str(argument) if isinstance(argument, Path) else argument for argument in arguments]
        return self.server.start(f"tests.faults.phases:{function}", *given, log=self._log(folder))

    def run(self, phase: Phase, folder: Path, mode: int = 0, moment: int = 0) -> Process:
        """Start a phase, or go on with it."""
        armed = None if self.server.shim is None else [str(folder), mode, moment, str(self._operations(folder))]
        call = "tests.faults.phases:go_on"
        return self.server.start(call, phase.name, str(folder), log=self._log(folder), fault=armed)

    def unbroken(self, phase: Phase) -> Unbroken:
        """The phase, left alone."""
        if phase.name not in self._unbroken:
            self.server.load(phase.imports)
            folder = self.fresh(phase)
            start = time.monotonic()
            process = self.run(phase, folder)
            assert process.wait() == 0, process.said()
            seconds = time.monotonic() - start
            seen = self._operations(folder)
            operations = tuple(seen.read_text().splitlines()) if seen.exists() else ()
            self._unbroken[phase.name] = Unbroken(
                phase.outcome(folder), phases.trials(folder), folder, seconds, operations
            )
        return self._unbroken[phase.name]

    def interrupt(self, phase: Phase, kinds: Sequence[int], seed: int) -> int:
        """Interrupt the phase once in each of the ways given; begin anew whenever it has come to its end.

        Returns:
            How often it was interrupted, each time without loss.

        Raises:
            AssertionError: something was lost.
        """
        before = len(self.records)
        try:
            self._interrupt(phase, list(kinds), self.unbroken(phase), random.Random(seed))
        except AssertionError:
            for record in self.records[before:][-1:]:
                record["lost"] = 1
            raise
        return len(self.records) - before

    def _interrupt(self, phase: Phase, left: list[int], whole: Unbroken, rng: random.Random) -> None:
        while left:
            folder = self.fresh(phase)
            while left:
                code = self._interrupted(phase, folder, left[0], whole, rng)
                if code == 0:
                    break
                left.pop(0)
                self.look(phase, folder, whole)
            process = self.run(phase, folder)
            assert process.wait() == 0, process.said()
            assert phase.outcome(folder) == whole.outcome, f"another outcome in {folder}:\n{process.said()}"
            shutil.rmtree(folder)

    def look(self, phase: Phase, folder: Path, whole: Unbroken) -> None:
        """What a fault leaves can be looked at, and holds whole trials: those of the run that was left alone."""
        found = phases.trials(folder)
        assert found == whole.trials[: len(found)], f"other trials in {folder}"

    def _interrupted(self, phase: Phase, folder: Path, kind: int, whole: Unbroken, rng: random.Random) -> int:
        """Run the phase into a fault; 0 where it came to its end before."""
        if kind == 0:
            process = self.run(phase, folder)
            # the first moments count as much as all that comes later, on any machine
            code = process.wait(rng.choice([0.2, 1.0]) * rng.uniform(0, whole.seconds))
            code = process.kill() if code is None else code
        else:
            process = self.run(phase, folder, kind, _moment(whole.operations, rng))
            code = process.wait() or 0
        if code:
            self._record(phase, folder, kind)
            wanted = 2 if kind in (FULL, READ_ONLY) else -signal.SIGKILL
            assert code == wanted, f"{KINDS[kind]}: left with {code} instead of {wanted}:\n{process.said()}"
        return code

    def _record(self, phase: Phase, folder: Path, kind: int) -> None:
        seen = self._operations(folder)
        lines = seen.read_text().splitlines() if seen.exists() else []
        at = lines[-1] if lines and kind else ""
        self.records.append({"phase": phase.name, "kind": KINDS[kind], "at": at, "lost": 0})

    @staticmethod
    def _log(folder: Path) -> Path:
        return folder.with_name(folder.name + ".log")

    @staticmethod
    def _operations(folder: Path) -> Path:
        return folder.with_name(folder.name + ".operations")


def _moment(operations: Sequence[str], rng: random.Random) -> int:
    """Number of the operation that a fault comes before.

    Either of the run that was left alone, every file as likely as any other: most operations are those that make a
    database. Or any, the early ones likelier: a process that goes on does fewer.
    """
    if rng.random() < 0.5:
        return int(len(operations) ** rng.random())
    places: dict[str, list[int]] = {}
    for number, operation in enumerate(operations, 1):
        places.setdefault(re.sub(r"\d+", "", operation), []).append(number)
    return rng.choice(rng.choice(list(places.values())))


def table(records: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Lines of a table: phases by ways to be interrupted."""
    counts = Counter((record["phase"], record["kind"]) for record in records)
    kinds = list(dict.fromkeys([*KINDS.values(), *(record["kind"] for record in records)]))
    kinds = [kind for kind in kinds if any(record["kind"] == kind for record in records)]
    yield f"| {'phase':<28} | " + " | ".join(kinds) + " | lost |"
    yield f"|{'-' * 30}|" + "|".join("-" * (len(kind) + 1) + ":" for kind in kinds) + "|-----:|"
    for phase in dict.fromkeys(record["phase"] for record in records):
        lost = sum(record["lost"] for record in records if record["phase"] == phase)
        cells = [f"{counts[phase, kind]:>{len(kind)}}" for kind in kinds]
        yield f"| {phase:<28} | " + " | ".join(cells) + f" | {lost:>4} |"
    totals = [f"{sum(n for (_, k), n in counts.items() if k == kind):>{len(kind)}}" for kind in kinds]
    yield f"| {'together':<28} | " + " | ".join(totals) + f" | {sum(r['lost'] for r in records):>4} |"
