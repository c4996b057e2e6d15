"""What goes to a terminal: text from files and exceptions is shown as it is, and can neither steer nor style it.

A message in a study from elsewhere may hold escape sequences, which move the cursor, set the title or type into some
terminals; characters that reverse the direction of writing; or what Rich takes for markup.
"""

from __future__ import annotations

import re
from typing import Any

from rich.console import Console
from rich.text import Text

from autoprune.redaction import redact

# C0 except tab and newline, DEL, C1, and the characters that change the direction of writing
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    r"""`text` without passwords, its control characters written out: ``\x1b[2J``."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), redact(text))


class PlainConsole(Console):
    """A Rich console that prints every string literally, by `printable`; only `Text` and other renderables style."""

    def render_str(self, text: str, **options: Any) -> Text:
        """As in Rich, without markup and emoji codes."""
        return super().render_str(printable(text), **{**options, "markup": False, "emoji": False})
