"""A process that has everything imported, and forks others that do what they are told: to be killed at any moment.

Run as ``python -m tests.faults.server``, with the shim in LD_PRELOAD where there is one. Reads one JSON order a line
from stdin: ``{"call": "module:function", "args": [...], "log": path, "fault": [folder, mode, moment, log] or null}``.
Writes ``{"pid": pid}`` at once, and ``{"pid": pid, "code": exit code}`` when a process has ended, in subprocess's
words: -9 for SIGKILL. Autograd never runs here: a fork of a process in which it has would hang.
"""

from __future__ import annotations

import ctypes
import errno
import importlib
import json
import os
import select
import signal
import sys
import traceback
from typing import Any

BLAMELESS = (errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EFBIG, errno.EACCES)
"""What a command says in one line and leaves with exit code 2, as with a `UserError`."""


def main() -> None:
    import autoprune.agents
    import autoprune.cli
    import tests.faults.phases

    for name in ("optuna", "scipy.stats", "sklearn.datasets", "torch._dynamo", "autoprune.finish"):
        importlib.import_module(name)
    for name in ("onnx", "onnxscript", "onnxruntime", "torch.onnx._internal.exporter._core"):
        try:
            importlib.import_module(name)
        except ImportError:
            pass
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake)
    orders = os.fdopen(0, "rb", buffering=0)
    answers = os.dup(1)
    while True:
        ready, _, _ = select.select([orders, woken], [], [])
        if woken in ready:
            os.read(woken, 4096)
            report_ended(answers)
        if orders in ready:
            line = orders.readline()
            if not line:
                return
            pid = os.fork()
            if not pid:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                os._exit(follow(json.loads(line)))
            say(answers, {"pid": pid})


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
    except OSError as error:
        if error.errno not in BLAMELESS:
            traceback.print_exc()
            return 1
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
