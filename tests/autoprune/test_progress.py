from __future__ import annotations

import io

import pytest
from rich.console import Console

from autoprune.progress import NO_PROGRESS, RichProgress


def reporter(*, terminal: bool) -> tuple[RichProgress, io.StringIO]:
    stream = io.StringIO()
    return RichProgress(Console(file=stream, force_terminal=terminal, width=100)), stream


def test_plain_lines_say_what_how_far_and_how_long(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("autoprune.progress.time.monotonic", lambda: now[0])
    progress, stream = reporter(terminal=False)
    with progress.task("Searching", total=20, unit="trials", done=10) as task:
        now[0] += 1
        task.advance()  # too soon after the first line: no line
        now[0] += 9
        task.advance(4, note="best 98.2 %")
        progress.say("Trial 3 failed: [oh]")
        now[0] += 1
        task.advance(5)
    assert stream.getvalue().splitlines() == [
        "Searching: 10/20 trials",
        "Searching: 15/20 trials, 0:10 left, best 98.2 %",
        "Trial 3 failed: [oh]",
        "Searching: 20/20 trials, best 98.2 %",
    ]


def test_bars_nest_and_survive_an_exception() -> None:
    progress, stream = reporter(terminal=True)

    def interrupted() -> None:
        with progress.task("Outer", total=2, unit="trials") as task:
            with progress.task("Inner", total=1) as inner:
                inner.advance()
            task.advance(note="[half]")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with progress.task("Again", total=1):
        pass
    shown = stream.getvalue()
    assert all(word in shown for word in ("Outer", "[half]", "1/2 trials", "Again"))


def test_silence(capsys: pytest.CaptureFixture[str]) -> None:
    with NO_PROGRESS.task("x", total=1) as task:
        task.advance()
    NO_PROGRESS.say("x")
    assert capsys.readouterr() == ("", "")
