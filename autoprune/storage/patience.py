"""Go on where a server does not answer for a while: it was restarted, or the network dropped a connection."""

from __future__ import annotations

import itertools
import time
import warnings
from collections.abc import Callable
from typing import TypeVar

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, PendingRollbackError

from autoprune import stopping
from autoprune.redaction import without_password

T = TypeVar("T")

PATIENCE_S = 300.0
"""A server that does not answer for so long ends the search; what is stored stays."""

TELL_S = 0.5
"""What is over sooner is not worth a word."""

LONGEST_PAUSE_S = 10.0

SLICE_S = 0.2
"""How long Ctrl-C waits."""


class StorageWarning(UserWarning):
    """The server that holds a study does not answer."""


def patiently(engine: Engine, call: Callable[[], T]) -> T:
    """Return what `call` returns; call it again where the connection to a server broke.

    Args:
        engine: of the database; of SQLite, whose connections do not break, errors are raised at once.
        call: may be run several times: one that broke may have been carried out all the same.

    Raises:
        stopping.Stopped: that is wanted, and the server does not answer.
    """
    if engine.dialect.name == "sqlite":
        return call()
    start, told = time.monotonic(), False
    for attempt in itertools.count():
        try:
            return call()
        except Exception as error:
            waited = time.monotonic() - start
            if not is_broken(error) or waited > PATIENCE_S:
                raise
            if waited > TELL_S and not told:
                told = True
                _warn(engine, error)
        _wait(min(0.2 * 2**attempt, LONGEST_PAUSE_S))
    raise AssertionError("unreachable")


def _wait(seconds: float) -> None:
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        stopping.check()  # what runs could not be stored
        time.sleep(min(SLICE_S, left))


def _warn(engine: Engine, error: BaseException) -> None:
    place = without_password(engine.url.render_as_string(hide_password=False))
    text = f"The storage {place} does not answer ({said(error)}). Trying again for up to {PATIENCE_S / 60:g} minutes."
    warnings.warn_explicit(StorageWarning(text), None, __file__, 0)  # each time, which `warn` would not


def said(error: BaseException) -> str:
    """What the driver says, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(getattr(error, "orig", error)).split()).rstrip(".?")


def is_broken(error: BaseException) -> bool:
    """Whether `error` says that the server could not be reached, not that it refused."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, DBAPIError) and cause.connection_invalidated:
            return True
        # Optuna goes on in a transaction whose connection broke, which SQLAlchemy calls pending
        if isinstance(cause, OperationalError | InterfaceError | PendingRollbackError):
            return True
        cause = cause.__cause__
    return False
