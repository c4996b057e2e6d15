"""Import modules, each the first in a process of its own: what `check_wheel.py` runs in the environment it made.

    python -I tests/import_each.py NAMES BLOCKED HOME    (comma-separated names; comma-separated names; a folder)

The processes are forked after the heavy dependencies are loaded, so that an import cycle that shows in one order only
is found, in seconds. The BLOCKED packages cannot be imported; every module must lie under HOME.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import traceback
from pathlib import Path

import optuna
import torch
import torchvision

LOADED = (optuna, torch, torchvision)


def main() -> None:
    """Leave with status 1 and the names if a module cannot be imported."""
    names, blocked, home = sys.argv[1].split(","), sys.argv[2].split(","), Path(sys.argv[3])
    for name in blocked:
        if name in sys.modules:
            sys.exit(
                f"{', '.join(module.__name__ for module in LOADED)}: one of them imports {name}, no need to block it"
            )
        sys.modules[name] = None  # type: ignore[assignment]  # how Python is told that there is no such module
    failed = [name for name in names if not succeeds_alone(name, home)]
    if failed:
        sys.exit(f"cannot be imported: {', '.join(failed)}")


def succeeds_alone(name: str, home: Path) -> bool:
    """Import `name` in a forked process; print the traceback where that fails."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1] == 0
    signal.alarm(120)  # seconds; a lock that another thread held at the fork would otherwise hang this for ever
    status = 1
    try:
        file = importlib.import_module(name).__file__
        if file is None or not Path(file).is_relative_to(home):
            raise ImportError(f"{name} came from {file}, not from under {home}")
        status = 0
    except BaseException:
        print(f"--- import {name}", traceback.format_exc(), sep="\n", flush=True)
    finally:
        os._exit(status)


if __name__ == "__main__":
    main()
