"""A PostgreSQL server of the test's own on a free port of the loopback, in a temporary folder."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

USERS = ("postgres", "nobody")
"""Who runs the server where the tests run as root, as which it refuses to run."""


class NoServer(Exception):
    """There is no PostgreSQL here, or it does not start; says why."""


@dataclass(frozen=True)
class Postgres:
    """A running server.

    Attributes:
        url: of its database, with user and password: ``postgresql+psycopg://...``.
        open_url, password: the same in two parts: the URL without password.
        port: on the loopback.
        stop, start: the server, at once as if its machine went down, and again.
    """

    open_url: str
    password: str
    port: int
    stop: Callable[[], None]
    start: Callable[[], None]

    @property
    def url(self) -> str:
        parts = urlsplit(self.open_url)
        return urlunsplit(parts._replace(netloc=parts.netloc.replace("@", f":{self.password}@")))

    def behind(self, port: int) -> str:
        """The URL with another port: that of a proxy."""
        parts = urlsplit(self.url)
        return urlunsplit(parts._replace(netloc=f"{parts.netloc.rpartition(':')[0]}:{port}"))


@contextmanager
def postgres() -> Iterator[Postgres]:
    """Start a server, and stop it at the end.

    Raises:
        NoServer: that cannot be.
    """
    try:
        import psycopg  # noqa: F401
    except ImportError:
        raise NoServer("psycopg is not installed: pip install 'psycopg[binary]'") from None
    # not in a folder of pytest's: those are closed to the user that the server runs as
    with tempfile.TemporaryDirectory(prefix="autoprune-postgres-") as folder, _running(Path(folder)) as server:
        yield server


@contextmanager
def _running(folder: Path) -> Iterator[Postgres]:
    programs = {name: _find(name) for name in ("initdb", "pg_ctl")}
    user = _user()
    data, port, password = folder / "data", free_port(), secrets.token_hex(8)
    secret = folder / "password"
    secret.write_text(password + "\n")
    owner: dict[str, Any] = {}
    if user is not None:
        owner = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        for path in (folder, secret):
            os.chown(path, user.pw_uid, user.pw_gid)

    def call(program: str, *arguments: str | Path) -> None:
        # the output goes to a file: the server keeps a pipe open that a reader would wait for
        with (folder / "output").open("w+") as output:
            done = subprocess.run(
                [programs[program], "-D", data, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=folder,
                env={"PATH": os.environ["PATH"], "LC_ALL": "C"},
                **owner,
            )
            if done.returncode:
                output.seek(0)
                raise NoServer(f"{program} ends with {done.returncode}: {output.read().strip()[-500:]}")

    def start() -> None:
        call("pg_ctl", "start", "-w", "-t", "60", "-l", folder / "server.log")

    def stop() -> None:
        call("pg_ctl", "stop", "-w", "-m", "immediate")

    call("initdb", "-U", "autoprune", "--pwfile", secret, "-A", "scram-sha-256", "-E", "UTF8", "--no-sync")
    settings: dict[str, object] = {
        "listen_addresses": "127.0.0.1",
        "port": port,
        "unix_socket_directories": "",
        "fsync": "off",
        "max_connections": 50,
    }
    with (data / "postgresql.conf").open("a") as file:
        file.writelines(f"{name} = '{value}'\n" for name, value in settings.items())
    start()
    try:
        yield Postgres(f"postgresql+psycopg://autoprune@127.0.0.1:{port}/postgres", password, port, stop, start)
    finally:
        if (data / "postmaster.pid").exists():
            stop()


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _find(name: str) -> str:
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    found = next((str(path / name) for path in folders if (path / name).exists()), None) or shutil.which(name)
    if found is None:
        raise NoServer(f"there is no {name}: install a PostgreSQL server, for example apt install postgresql")
    return found


def _user() -> pwd.struct_passwd | None:
    """Who is to run it; None for whoever runs the tests."""
    if os.getuid():
        return None
    for name in USERS:
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise NoServer(f"it refuses to run as root, and there is none of the users {', '.join(USERS)}")
