"""What a command raises becomes one line on stderr and an exit code."""

from __future__ import annotations

import errno
import functools
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec

import typer
from rich.console import Console

P = ParamSpec("P")


def guarded(command: Callable[P, None]) -> Callable[P, None]:
    """Turn what a command raises into one line on stderr and an exit code; ``--debug`` keeps the traceback."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        errors = Console(stderr=True, highlight=False)
        _load_torch()
        try:
            with warnings.catch_warnings():
                warnings.showwarning = lambda message, *rest, **more: errors.print(f"warning: {message}", markup=False)
                if command.__name__ != "finetune":
                    _check_alone(f"autoprune {command.__name__}")
                command(*args, **kwargs)
        except KeyboardInterrupt:
            errors.print(_stopped(command.__name__, kwargs.get("run")), markup=False, soft_wrap=True)
            raise typer.Exit(130) from None
        except BrokenPipeError:
            raise  # `autoprune show ... | head`: Typer ends quietly
        except Exception as error:
            if kwargs.get("debug"):
                errors.print_exception()
            text, code = _explained(error)
            errors.print("[bold red]error:[/]", end=" ")
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


def _explained(error: Exception) -> tuple[str, int]:
    from autoprune.search_spaces.errors import UserError

    if isinstance(error, UserError):
        return str(error), 2
    if isinstance(error, OSError):
        where = f": {error.filename}" if error.filename else ""
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        step = (
            "What was finished before is stored: make room, then go on with `autoprune resume`."
            if full
            else "Choose a file or folder that can be used here."
        )
        return f"{error.strerror or error}{where}. {step}", 2
    return f"{type(error).__name__}: {error}. Run again with --debug to see where.", 1


def _stopped(command: str, run: Any) -> str:
    from autoprune.config import FILE

    if command == "latency":
        return "Stopped. The cuts measured so far are kept where --device-profile names a file."
    if command not in ("search", "resume"):
        return "Stopped. The same command again goes on from what is stored."
    if not isinstance(run, Path) or not (run / FILE).is_file():
        return "Stopped. Nothing was stored."
    from autoprune.study import Study

    study = Study.read(run)
    return (
        f"Stopped. {len(study.trials)} of {study.config.trials} trials are stored. Go on with: autoprune resume {run}"
    )
