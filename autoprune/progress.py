"""Say what a long step does, how far it is, and how long it still takes.

    with progress.task("Searching", total=60, unit="trials") as task:
        task.advance(1, note="best 98.2 %")

Everything goes to stderr, so that stdout stays free for results: bars on a terminal, plain lines elsewhere.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, TaskID, TextColumn
from rich.progress import Progress as Bars
from rich.progress import Task as BarTask
from rich.text import Text

from autoprune.terminal import PlainConsole, printable

PLAIN_INTERVAL_S = 5.0


class Task(Protocol):
    """One running step."""

    def advance(self, steps: float = 1, *, note: str = "") -> None:
        """Count `steps` as done; `note` is a short remark shown until the next one replaces it."""


class Progress(Protocol):
    """Where long steps report to; tasks may be nested."""

    def task(self, description: str, total: float, unit: str = "", *, done: float = 0) -> AbstractContextManager[Task]:
        """Announce a step of `total` units, of which `done` were finished in an earlier session."""

    def say(self, text: str) -> None:
        """Print one line without disturbing the bars."""


class _Clock:
    """Counts steps and estimates the time left from the mean pace so far."""

    def __init__(self, total: float, done: float) -> None:
        self.total, self.done, self._first_done = total, done, done
        self._start = time.monotonic()
        self._end: float | None = None  # when the step should be finished, on the monotonic clock

    def advance(self, steps: float) -> None:
        self.done += steps
        now = time.monotonic()
        if self.done > self._first_done:
            pace = (now - self._start) / (self.done - self._first_done)
            self._end = now + pace * max(0.0, self.total - self.done)

    @property
    def left(self) -> str:
        if self._end is None:
            return ""
        seconds = round(max(0.0, self._end - time.monotonic()))
        hours, rest = divmod(seconds, 3600)
        clock = f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"
        return f"{clock} left"

    @property
    def count(self) -> str:
        return f"{self.done:g}/{self.total:g}"


class _Left(ProgressColumn):
    def render(self, task: BarTask) -> Text:
        return Text(task.fields["clock"].left, style="cyan")


class RichProgress:
    """Bars on a terminal, a plain line every few seconds elsewhere; both on stderr."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or PlainConsole(stderr=True)
        self._bars: Bars | None = None

    @contextmanager
    def task(self, description: str, total: float, unit: str = "", *, done: float = 0) -> Iterator[Task]:
        clock = _Clock(total, done)
        if not self.console.is_terminal:
            line = _Line(self, description, unit, clock)
            yield line
            line.end()
            return
        outermost = self._bars is None
        if self._bars is None:
            self._bars = Bars(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=24),
                TextColumn("{task.fields[clock].count} {task.fields[unit]}"),
                _Left(),
                TextColumn("{task.fields[note]}", style="dim", markup=False),
                console=self.console,
            )
            self._bars.start()
        bars = self._bars
        shown = printable(description)
        identifier = bars.add_task(shown, total=total, completed=int(done), clock=clock, unit=unit, note="")
        try:
            yield _Bar(bars, identifier, clock)
        finally:
            # A nested bar vanishes when its step is done; the outermost one stays as a record.
            if outermost:
                bars.stop()
                self._bars = None
            else:
                bars.remove_task(identifier)

    def say(self, text: str) -> None:
        self.console.print(printable(text), markup=False, highlight=False, soft_wrap=True)


class _Bar:
    def __init__(self, bars: Bars, identifier: TaskID, clock: _Clock) -> None:
        self._bars, self._identifier, self._clock = bars, identifier, clock

    def advance(self, steps: float = 1, *, note: str = "") -> None:
        self._clock.advance(steps)
        if note:
            self._bars.update(self._identifier, advance=steps, note=printable(note))
        else:
            self._bars.update(self._identifier, advance=steps)


class _Line:
    def __init__(self, progress: RichProgress, description: str, unit: str, clock: _Clock) -> None:
        self._progress, self._description, self._unit, self._clock = progress, description, unit, clock
        self._note, self._printed_at, self._printed = "", 0.0, ""
        self._print()

    def advance(self, steps: float = 1, *, note: str = "") -> None:
        self._clock.advance(steps)
        self._note = note or self._note
        if time.monotonic() - self._printed_at >= PLAIN_INTERVAL_S:
            self._print()

    def end(self) -> None:
        self._print()

    def _print(self) -> None:
        rest = [self._clock.left] if self._clock.done < self._clock.total else []
        parts = [f"{self._clock.count} {self._unit}".strip(), *rest, self._note]
        text = f"{self._description}: {', '.join(part for part in parts if part)}"
        if text != self._printed:
            self._progress.say(text)
        self._printed_at, self._printed = time.monotonic(), text


class _Silent:
    """Reports nowhere."""

    @contextmanager
    def task(self, description: str, total: float, unit: str = "", *, done: float = 0) -> Iterator[Task]:
        yield self

    def advance(self, steps: float = 1, *, note: str = "") -> None:
        pass

    def say(self, text: str) -> None:
        pass


NO_PROGRESS: Progress = _Silent()
