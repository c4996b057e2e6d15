"""Go on where a server does not answer for a while: it was restarted, or the network dropped a connection."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, PendingRollbackError

T = TypeVar("T")

PATIENCE_S = 300.0
"""A server that does not answer for so long ends the search; what is stored stays."""


def patiently(engine: Engine, call: Callable[[], T]) -> T:
    """Return what `call` returns; call it again where the connection to a server broke.

    Args:
        engine: of the database; of SQLite, whose connections do not break, errors are raised at once.
        call: may be run several times: one that broke may have been carried out all the same.
    """
    if engine.dialect.name == "sqlite":
        return call()
    start, pause = time.monotonic(), 0.2
    while True:
        try:
            return call()
        except Exception as error:
            if not is_broken(error) or time.monotonic() - start > PATIENCE_S:
                raise
        time.sleep(pause)
        pause = min(2 * pause, 10.0)


def is_broken(error: BaseException) -> bool:
    """Whether `error` says that the server could not be reached, not that it refused."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, DBAPIError) and cause.connection_invalidated:
            return True
        # the last: Optuna asks again in another way in the transaction whose connection broke
        if isinstance(cause, OperationalError | InterfaceError | PendingRollbackError):
            return True
        cause = cause.__cause__
    return False
