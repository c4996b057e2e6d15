"""A process that has everything imported, and forks others that do what they are told: to be killed at any moment.

Run as ``python -m tests.faults.server``, with the shim in LD_PRELOAD where there is one. Reads one JSON order a line
from stdin: ``{"call": "module:function", "args": [...], "log": path, "fault": [folder, mode, moment, log] or null}``,
or ``{"load": [modules]}`` to import more of them. Writes ``{"pid": pid}`` at once, and ``{"pid": pid, "code": code}``
when a process has ended, in subprocess's words: -9 for SIGKILL. Autograd never runs here: a fork of a process in which
it has would hang.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import select
import signal
import sys
import traceback
from collections.abc import Iterable
from typing import Any

import optuna
import plotly.graph_objects as go

from tests.layout import sources


def main() -> None:
    load(["tests.faults.phases", *(name for name in sources() if not name.endswith("__main__"))])
    # what these import when they are used first
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    optuna.create_study(storage="sqlite://")
    go.Figure(go.Scatter()).to_html()
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake)
    orders = os.fdopen(0, "rb", buffering=0)
    answers = os.dup(1)
    while True:
        ready, _, _ = select.select([0, woken], [], [])
        if woken in ready:
            os.read(woken, 4096)
            report_ended(answers)
        if 0 in ready:
            line = orders.readline()
            if not line:
                return
            order = json.loads(line)
            if "load" in order:
                load(order["load"])
                continue
            pid = os.fork()
            if not pid:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                os._exit(follow(order))
            say(answers, {"pid": pid})


def load(names: Iterable[str]) -> None:
    """Import what there is of these."""
    for name in names:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


def say(descriptor: int, value: Any) -> None:
    os.write(descriptor, json.dumps(value).encode() + b"\n")


def report_ended(answers: int) -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            return
        say(answers, {"pid": pid, "code": os.waitstatus_to_exitcode(status)})


def follow(order: dict[str, Any]) -> int:
    """Do what is ordered, in the forked process; returns its exit code."""
    from autoprune.search_spaces.errors import UserError

    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    module, _, name = order["call"].partition(":")
    function = getattr(importlib.import_module(module), name)
    if order["fault"] is not None:
        folder, mode, moment, seen = order["fault"]
        descriptor = os.open(seen, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        ctypes.CDLL(None).faults_arm(os.fsencode(folder), mode, ctypes.c_long(moment), descriptor)
    try:
        function(*order["args"])
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    except UserError as error:
        print("error:", error, file=sys.stderr)
        return 2
    except OSError as error:  # which the command line says in one line too
        print("error:", error, file=sys.stderr)
        return 2
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


if __name__ == "__main__":
    main()
