"""Files that are whole or absent, never half: write to a temporary name beside the target, fsync, rename.

A process killed at any moment leaves the old file, the new file, or a stray ``.NAME.HOST-PID.tmp`` that nothing reads;
`remove_leftovers` sweeps those up.
"""

from __future__ import annotations

import glob
import itertools
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from autoprune.search_spaces.errors import UserError


def atomic_write(path: Path, data: bytes | str, *, mode: int = 0o666) -> None:
    """Write `data` (text as UTF-8) to `path`, replacing what is there only once everything is on the disk.

    `mode` are the permissions, less those that the umask of the process takes away.

    Raises:
        OSError: the disk is full or the folder may not be written; `path` is then as it was before.
    """
    temporary = _temporary(path)
    try:
        temporary.unlink(missing_ok=True)  # made anew, since one that lies there may be a link that leads elsewhere
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    _sync(path.parent)


@contextmanager
def atomic_folder(path: Path, *, replace: bool = True) -> Iterator[Path]:
    """Yield an empty temporary folder beside `path`; it becomes `path` when the block ends without an exception.

    Args:
        path: the folder to make; its parents are made as needed.
        replace: put it in the place of what is at `path`; a kill between two renames leaves `path` absent, so callers
            may read "absent" as "to be made again". False: OSError where a folder that is not empty is there.
    """
    temporary = _temporary(path)
    for other in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):  # of one that was killed
        if _TEMPORARY.fullmatch(other.name) and _is_left(other):
            shutil.rmtree(other, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for entry in sorted(temporary.rglob("*")):
            _sync(entry)
        _sync(temporary)
        if replace and path.exists():
            old = _temporary(path.with_name(f"{path.name}.old"))
            path.rename(old)
            temporary.rename(path)
            shutil.rmtree(old)
        else:
            temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    _sync(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically; NaN and infinity are refused (ValueError): JSON has no such words."""
    atomic_write(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        UserError: the file is missing or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"There is no file {path}.") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not a JSON file: {error}. Restore it from a copy, or delete it.") from None


def check_links(folder: Path) -> None:
    """Refuse a folder with a symbolic link in it that leads out of it, so that all that is done there stays there.

    Raises:
        UserError: naming the link.
    """
    inside = Path(os.path.realpath(folder))
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(parent, name)
            if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(inside):
                raise UserError(
                    f"{path} is a link that leads out of the folder, and autoprune stays within it. Put a copy of what "
                    "it leads to in its place, or remove it."
                )


def leftovers(folder: Path) -> list[Path]:
    """Temporary files and folders anywhere in `folder` whose process is no more.

    Of a process on another machine, which may share the disk, it is told by the age: two days.
    """
    found: list[Path] = []
    for place, folders, files in os.walk(folder):
        stray = [name for name in folders + files if _TEMPORARY.fullmatch(name)]
        folders[:] = [name for name in folders if name not in stray]
        found += [Path(place) / name for name in sorted(stray) if _is_left(Path(place) / name)]
    return found


def remove_leftovers(folder: Path) -> None:
    """Delete the `leftovers` of `folder`."""
    for leftover in leftovers(folder):
        if leftover.is_dir() and not leftover.is_symlink():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            with suppress(FileNotFoundError):
                leftover.unlink()


def set_aside(path: Path) -> Path:
    """Rename a file or folder to ``NAME.damaged``, or ``NAME.damaged-2`` ..., and return what it is called now."""
    names = (f"{path.name}.damaged" + (f"-{number}" if number > 1 else "") for number in itertools.count(1))
    target = next(path.with_name(name) for name in names if not os.path.lexists(path.with_name(name)))
    path.rename(target)
    return target


_TEMPORARY = re.compile(r"\..+\.(?:(?P<host>[\w-]+)-)?(?P<pid>\d+)\.tmp")
"""What `_temporary` makes; without the machine, what it once made."""

_OLD = 2 * 86_400
"""Seconds."""


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{_host()}-{os.getpid()}.tmp")


def _host() -> str:
    return re.sub(r"[^\w-]", "_", socket.gethostname()) or "localhost"


def _is_left(path: Path) -> bool:
    name = _TEMPORARY.fullmatch(path.name)
    assert name is not None
    if name["host"] not in (None, _host()):
        with suppress(OSError):
            return time.time() - path.lstat().st_mtime > _OLD
        return False
    process = int(name["pid"])
    if process == os.getpid():  # an earlier one of this number: this one is not writing while it sweeps
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:
        pass
    return False


def _sync(path: Path) -> None:
    """Push a file or the names in a folder to the disk, so that a rename survives a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
