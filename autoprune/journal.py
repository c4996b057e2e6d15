"""SQLite's journal beside a database from elsewhere: it must not name files.

A journal that a killed process left behind is played back by whoever opens the database next, for reading too. It may
name a "super-journal", of a transaction over several databases; SQLite then deletes the file of that name, wherever it
is. autoprune writes to one database at a time, so its own journals never do.

Source: https://www.sqlite.org/tempfiles.html, sec. 2.4, and `readSuperJournal` in SQLite's pager.c for the layout.
"""

from __future__ import annotations

import os
from pathlib import Path

from autoprune.search_spaces.errors import UserError

_MAGIC = bytes.fromhex("d9d505f920a163d7")
"""The last bytes of a journal that names a super-journal; all others end with the checksum of a page or with zeros."""


def check_journal(database: Path) -> None:
    """Refuse a database whose journal names another file; to be called before SQLite opens it.

    Raises:
        UserError: saying which file to remove.
    """
    journal = database.with_name(f"{database.name}-journal")
    try:
        with journal.open("rb") as file:
            file.seek(-min(len(_MAGIC), journal.stat().st_size), os.SEEK_END)
            end = file.read()
    except FileNotFoundError:
        return
    if end == _MAGIC:
        raise UserError(
            f"{journal} names another file, which opening the study would delete. autoprune did not write it: remove "
            "it, and trust nothing from where it came."
        )
