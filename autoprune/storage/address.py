"""Where a database is: a file beside the run, or a server named by a URL whose password is never written down.

Address.of_file(run / "study.db")
Address.parse("postgresql://ann:secret@db.example.org/studies")
"""

from __future__ import annotations

import os
import sqlite3
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from autoprune.redaction import without_password
from autoprune.search_spaces.errors import UserError, unknown

VARIABLE = "AUTOPRUNE_STORAGE"
"""Environment variable that holds a storage URL, password included."""

# scheme -> (SQLAlchemy's name for it, module of the driver, extra that installs it)
_SERVERS = {
    "postgresql": ("postgresql+psycopg", "psycopg", "postgresql"),
    "postgres": ("postgresql+psycopg", "psycopg", "postgresql"),
    "mysql": ("mysql+pymysql", "pymysql", "mysql"),
    "mariadb": ("mysql+pymysql", "pymysql", "mysql"),
}

_known: dict[str, Address] = {}
"""Those with a password, by what is shown of them."""

_named: set[str] = set()
"""What the user gave, as it is shown."""

SQLITE_TIMEOUT_S = 60
"""Wait this long for another process that is writing."""

CONNECT_TIMEOUT_S = 10
"""Wait this long for a server, where the URL says nothing else."""

IDLE_S = 60
"""A server takes back what a worker has locked that says nothing for so long in the middle of a transaction: one that
was stopped there, or whose machine is gone, would keep all others waiting. PostgreSQL only."""

SILENT_S = 60
"""A connection on which nothing arrives for so long, though something is waited for, is broken."""


@dataclass(frozen=True)
class Address:
    """One of: `path` of a SQLite file, `url` of a server."""

    path: Path | None = None
    url: URL | None = field(default=None, repr=False)

    @classmethod
    def of_file(cls, path: Path) -> Address:
        """The SQLite file `path`."""
        return cls(path=path)

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read a storage URL.

        One without a password gets that of a URL for the same storage which was read before, or is in `VARIABLE`.

        Raises:
            UserError: not a URL of a storage that can be used, or its driver is not installed.
        """
        try:
            without_password(text)  # from now on it is hidden, whatever becomes of the rest
            url = make_url(text)
        except (ArgumentError, ValueError):
            raise UserError(
                "A storage is given as a URL, for example postgresql://user@host/database or sqlite:///study.db, "
                f"but got {_without_userinfo(text)!r}."
            ) from None
        scheme = url.drivername.partition("+")[0]
        if scheme == "sqlite":
            if not url.database or url.database == ":memory:":
                raise UserError("A storage in memory is lost with the process. Name a file: sqlite:///study.db")
            return cls.of_file(Path(url.database).absolute())
        if scheme not in _SERVERS:
            raise unknown("kind of storage:", scheme, ["sqlite", "postgresql", "mysql"])
        name, driver, extra = _SERVERS[scheme]
        url = url.set(drivername=url.drivername if "+" in url.drivername else name)
        if "+" not in text.partition(":")[0] and find_spec(driver) is None:
            raise UserError(f"A {scheme} storage needs {driver!r}. Install it: pip install autoprune[{extra}]")
        address = cls(url=url)
        if address.shown != address.secret:
            _known[address.shown] = address
        elif (given := os.environ.get(VARIABLE)) is not None and given != text:
            cls.parse(given)
        return _known.get(address.shown, address)

    @classmethod
    def named(cls, text: str) -> Address:
        """As `parse`, for what the user gave, not a file from elsewhere: it may be connected to."""
        address = cls.parse(text)
        _named.add(address.shown)
        return address

    @property
    def is_named(self) -> bool:
        """Whether the user gave it to this process, as an argument or in `VARIABLE`."""
        given = os.environ.get(VARIABLE)
        return self.shown in _named or (given is not None and Address.parse(given).shown == self.shown)

    @property
    def shown(self) -> str:
        """The address for people and files: without password."""
        if self.path is not None:
            return f"sqlite:///{self.path}"
        return without_password(self.secret)

    @property
    def secret(self) -> str:
        """The URL with its password, for the environment of a child process and nothing else."""
        if self.url is None:
            return self.shown
        return self.url.render_as_string(hide_password=False)

    def for_optuna(self, *, writing: bool, sync: bool = True) -> tuple[str, dict[str, Any]]:
        """The URL and the engine's settings for `optuna.storages.RDBStorage`.

        Args:
            sync: what is committed to a file is on the disk when the commit returns.
        """
        if self.path is None:
            # a connection that was dropped meanwhile is noticed before it is used
            return self.secret, {"pool_pre_ping": True, "pool_recycle": 600, "connect_args": self._connecting()}
        # A creator, not a URL: a path may hold characters that a URL would read as its own.
        return "sqlite://", {"creator": partial(self.connect, writing=writing, sync=sync)}

    def _connecting(self) -> dict[str, Any]:
        """Settings of the driver, where the URL says nothing else: nothing waits for a server without end."""
        assert self.url is not None
        settings: dict[str, Any] = {"connect_timeout": CONNECT_TIMEOUT_S}
        if self.url.drivername == "postgresql+psycopg":
            settings |= {"keepalives_idle": SILENT_S // 2, "keepalives_interval": SILENT_S // 6, "keepalives_count": 3}
            settings["tcp_user_timeout"] = SILENT_S * 1000
            settings["options"] = f"-c idle_in_transaction_session_timeout={IDLE_S}s"
        if self.url.drivername == "mysql+pymysql":
            settings |= {"read_timeout": SILENT_S, "write_timeout": SILENT_S}
        return {name: value for name, value in settings.items() if name not in self.url.query}

    def connect(self, *, writing: bool, sync: bool = True) -> sqlite3.Connection:
        """Open the file."""
        assert self.path is not None
        path, how = self.path, "mode=rwc" if writing else "mode=rw"
        if not writing and not os.access(path.parent, os.W_OK):
            # without -wal beside it nothing is missing, and SQLite needs no file of its own to read
            how = "mode=ro" if path.with_name(f"{path.name}-wal").exists() else "immutable=1"
        # connections wait in a pool for whichever thread needs one next
        connection = sqlite3.connect(
            f"file:{quote(str(path))}?{how}", uri=True, timeout=SQLITE_TIMEOUT_S, check_same_thread=False
        )
        if writing:
            connection.execute("PRAGMA journal_mode = WAL")  # readers do not wait, and a commit is one write
            connection.execute(f"PRAGMA synchronous = {'FULL' if sync else 'NORMAL'}")
        return connection


def _without_userinfo(text: str) -> str:
    return f"...@{text.rpartition('@')[2]}" if "@" in text else text
