"""Files that are whole or absent, never half: write to a temporary name beside the target, fsync, rename.

A process killed at any moment leaves the old file, the new file, or a stray ``.NAME.PID.tmp`` that nothing reads;
`remove_leftovers` sweeps those up.
"""

from __future__ import annotations

import json
import os
import shutil
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
        replace: remove what is at `path` first; a kill between removal and rename leaves `path` absent, so callers
            may read "absent" as "to be made again". False: OSError where a folder that is not empty is there.
    """
    temporary = _temporary(path)
    with suppress(FileNotFoundError):
        shutil.rmtree(temporary)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for entry in sorted(temporary.rglob("*")):
            _sync(entry)
        _sync(temporary)
        if replace and path.exists():
            shutil.rmtree(path)
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


def remove_leftovers(folder: Path) -> None:
    """Delete the temporary files and folders that killed processes left directly in `folder`."""
    for leftover in folder.glob(".*.tmp"):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def _sync(path: Path) -> None:
    """Push a file or the names in a folder to the disk, so that a rename survives a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
