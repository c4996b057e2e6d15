"""What a command raises becomes one line on stderr and an exit code."""

from __future__ import annotations

import functools
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, ParamSpec

import typer
from rich.text import Text

from autoprune import stopping
from autoprune.terminal import PlainConsole

P = ParamSpec("P")

KEEPS = ("search", "resume", "worker", "profile", "proxy", "finetune", "latency")
"""Commands that store what they have done: they get time to finish the step that runs when they are stopped."""


def guarded(command: Callable[P, None]) -> Callable[P, None]:
    """Turn what a command raises into one line on stderr and an exit code; ``--debug`` keeps the traceback."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        errors = PlainConsole(stderr=True, highlight=False)
        _load_torch()
        try:
            with warnings.catch_warnings():
                warnings.showwarning = lambda message, *rest, **more: errors.print(f"warning: {message}", markup=False)
                if command.__name__ != "finetune":
                    _check_alone(f"autoprune {command.__name__}")
                with stopping.listening(stopping.GRACE_S if command.__name__ in KEEPS else 0):
                    command(*args, **kwargs)
        except KeyboardInterrupt as stopped:
            with suppress(OSError):  # where stderr is a file on a full disk, or a terminal that was closed
                errors.print(_stopped(command.__name__, kwargs.get("run")), markup=False, soft_wrap=True)
            raise typer.Exit(stopping.exit_code(stopped)) from None
        except typer.Exit:
            raise  # with a code that the command chose
        except BrokenPipeError:
            raise  # `autoprune show ... | head`: Typer ends quietly
        except Exception as error:
            text, code = _explained(error, _go_on(command.__name__, kwargs.get("run")))
            with suppress(OSError):
                if kwargs.get("debug"):
                    errors.print("".join(traceback.format_exception(error)), soft_wrap=True)
                errors.print(Text("error:", "bold red"), end=" ")
                errors.print(text, markup=False, soft_wrap=True)
            raise typer.Exit(code) from None

    return run


def _load_torch() -> None:
    """Import torch with Ctrl-C leaving at once: an import of it that is broken off half-way cannot end cleanly."""

    def leave(*_: Any) -> None:
        os.write(2, b"Stopped. Nothing was begun.\n")
        os._exit(130)

    if "torch" in sys.modules or threading.current_thread() is not threading.main_thread():
        return
    if "RANK" in os.environ:  # under torchrun; torch warns of what `training.together` asks for on purpose
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN:  # started in the background of a shell: Ctrl-C is not for us
        return
    signal.signal(signal.SIGINT, leave)
    try:
        import torch  # noqa: F401
    finally:
        signal.signal(signal.SIGINT, before)


def _check_alone(command: str) -> None:
    from autoprune.distributed import check_alone

    check_alone(command)


def _explained(error: Exception, go_on: str) -> tuple[str, int]:
    """What to print, and the exit code."""
    from autoprune.failures import DISK, disk_error
    from autoprune.memory import is_out_of_memory
    from autoprune.search_spaces.errors import UserError

    if isinstance(error, UserError):
        return str(error), 2
    disk = disk_error(error)
    if disk is not None:
        where = f": {disk.filename}" if disk.filename else ""
        return (
            f"{disk.strerror}{where}. What was finished before is stored: {DISK[disk.errno or 0]}, then go on with "
            f"{go_on}."
        ), 2
    if isinstance(error, OSError):
        where = f": {error.filename}" if error.filename else ""
        return f"{error.strerror or error}{where}. Choose a file or folder that can be used here.", 2
    if is_out_of_memory(error):
        return f"Out of memory: {error}. Set a smaller batch_size, or end what else uses the memory.", 2
    return f"{type(error).__name__}: {error}. Run again with --debug to see where.", 1


def _stopped(command: str, run: Any) -> str:
    if command == "latency":
        return "Stopped. The cuts measured so far are kept where --device-profile names a file."
    if command not in KEEPS:
        return "Stopped. Nothing was changed."
    if command not in ("search", "resume"):
        return "Stopped. The same command again goes on from what is stored."
    if not _is_run(run):
        return "Stopped. Nothing was stored."
    from autoprune.config import SearchConfig
    from autoprune.search_spaces.errors import UserError
    from autoprune.study import Study

    done = "What was found is stored."
    with suppress(UserError, OSError):  # not all of the folder is there yet, or the disk is full
        if SearchConfig.read(run).storage is None:  # a server might let us wait
            study = Study.read(run)
            done = f"{len(study.trials)} of {study.config.trials} trials are stored."
    return f"Stopped. {done} Go on with: autoprune resume {run}"


def _go_on(command: str, run: Any) -> str:
    """The command that goes on, as it reads in a sentence."""
    return f"`autoprune resume {run}`" if command in ("search", "resume") and _is_run(run) else "the same command again"


def _is_run(run: Any) -> bool:
    from autoprune.config import FILE

    return isinstance(run, Path) and (run / FILE).is_file()
