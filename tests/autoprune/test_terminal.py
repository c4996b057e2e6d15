from __future__ import annotations

import io

import pytest
from rich.table import Table

from autoprune.progress import RichProgress
from autoprune.terminal import PlainConsole, printable

EVIL = "\x1b[2J\x1b]0;owned\x07\x9b31m\r\b\x00\u202egnp.exe [bold]:smile: [/x] naïve\tµs\nnext"
SHOWN = r"\x1b[2J\x1b]0;owned\x07\x9b31m\x0d\x08\x00\u202egnp.exe [bold]:smile: [/x] naïve"


def test_control_characters_are_written_out_and_words_stay() -> None:
    assert printable(EVIL) == SHOWN.replace(r"\x0d", r"\r") + "\tµs\nnext"


@pytest.mark.parametrize("terminal", [False, True])
def test_what_is_printed_can_neither_steer_nor_style_a_terminal(terminal: bool) -> None:
    stream = io.StringIO()
    console = PlainConsole(file=stream, force_terminal=terminal, width=300, highlight=False, color_system=None)
    console.print(EVIL, soft_wrap=True)
    table = Table("name", EVIL, title=EVIL)
    table.add_row(EVIL, "x")
    console.print(table)
    RichProgress(console).say(EVIL)
    with RichProgress(console).task(EVIL, 1) as task:
        task.advance(1, note=EVIL)
    written = stream.getvalue()
    for harmful in ("\x1b[2J", "\x1b]0", "\x07", "\x9b", "\x08", "\x00", "\u202e"):
        assert harmful not in written
    assert written.count("gnp.exe [bold]:smile: [/x] naïve") >= 5
