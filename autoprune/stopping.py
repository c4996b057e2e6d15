"""Stop when asked to: Ctrl-C, SIGTERM (a cluster takes the machine back) and SIGHUP (the terminal is closed).

Asked once, the step that runs is finished and stored, or abandoned if that takes longer than `GRACE_S`; asked twice,
it is abandoned at once. What is abandoned raises `Stopped`, a KeyboardInterrupt, in the main thread, and whatever was
stored before stays: to go on is to run it again. Asked a third time, the process is gone.

Only the command line listens. Whoever calls from Python keeps their own handlers, and outside of `listening` the
functions here do nothing.

Python runs handlers between two bytecodes of the main thread, wherever that is: so ours only notes what came. A thread
that waits for nothing else says so, which needs locks that the main thread may hold, and keeps the time. Signal stacks
are left alone: native libraries bring their own.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

GRACE_S = 20.0
"""Seconds that a step may go on for after it was asked to stop: clusters kill 30 s after SIGTERM, some of which the
cleaning up needs."""

ONE_REQUEST_S = 0.5
"""Signals closer than this are one request: `timeout` sends SIGTERM to the process and then to its group, so twice."""

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(KeyboardInterrupt):
    """The work was stopped on request.

    Attributes:
        signal: number of the signal that asked for it.
    """

    def __init__(self, signal: int) -> None:
        super().__init__(f"stopped by signal {signal}")
        self.signal = signal


def wanted() -> bool:
    """Whether the user or the cluster has asked to stop; always False outside of `listening`."""
    return _listener is not None and _listener.asked is not None


def check() -> None:
    """Stop here if that is wanted. Called where everything that was done is stored.

    Raises:
        Stopped: it is wanted.
    """
    if _listener is not None and _listener.asked is not None:
        _listener.stop()


def exit_code(stopped: KeyboardInterrupt) -> int:
    """128 and the number of the signal, as shells count: 130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP."""
    return 128 + (stopped.signal if isinstance(stopped, Stopped) else signal.SIGINT)


@contextmanager
def listening(grace_s: float = GRACE_S) -> Iterator[None]:
    """In the block, signals ask to stop; what was set before is put back. Signals that are ignored stay ignored.

    Does nothing outside of the main thread, where Python allows no handlers, and inside of another such block.

    Args:
        grace_s: seconds that the running step may go on for; 0 where there is nothing to store, and the first request
            stops at once.
    """
    global _listener
    if _listener is not None or threading.current_thread() is not threading.main_thread():
        yield
        return
    listener = _Listener(grace_s)
    before = {number: signal.getsignal(number) for number in SIGNALS}
    # None: set by something that is not Python, which could not be put back.
    ours = [number for number, handler in before.items() if handler not in (signal.SIG_IGN, None)]
    try:
        _listener = listener
        for number in ours:
            signal.signal(number, listener.handle)
        yield
    finally:
        listener.close()  # first: it may be about to send a signal, which must find our handler
        for number in ours:
            signal.signal(number, before[number])
        _listener = None


class _Listener:
    """Counts the requests of one command; `asked` is the first signal."""

    def __init__(self, grace_s: float) -> None:
        self.asked: int | None = None
        self._grace_s, self._process = grace_s, os.getpid()
        self._terminals = [descriptor for descriptor in (1, 2) if os.isatty(descriptor)]
        self._last = -ONE_REQUEST_S  # when the last request came, on the monotonic clock
        self._late = False  # the grace is over
        self._raised = False
        self._read, self._write = os.pipe()
        self._thread = threading.Thread(target=self._watch, name="autoprune-stopping", daemon=True)
        self._thread.start()

    def handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            _in_child(number)
            return
        if number == signal.SIGHUP:
            _silence(self._terminals)
        now = time.monotonic()
        if now - self._last < ONE_REQUEST_S and not self._late:
            return
        self._last = now
        if self.asked is None:
            self.asked = number
            if self._grace_s > 0:
                with suppress(OSError):  # closed: there is nothing left to stop
                    os.write(self._write, b"!")
                return
        if self._raised:
            _leave(number)
        self.stop()

    def stop(self) -> NoReturn:
        assert self.asked is not None
        self._raised, self._late = True, False
        raise Stopped(self.asked)

    def close(self) -> None:
        write, self._write = self._write, -1
        os.close(write)  # ends the thread
        self._thread.join()
        os.close(self._read)

    def _watch(self) -> None:
        if not os.read(self._read, 1):
            return
        _say(f"Stopping after this step, within {self._grace_s:g} s; Ctrl-C again stops at once.")
        ended = select.poll()  # `select` takes no descriptor from 1024 on
        ended.register(self._read)
        if ended.poll(1000 * self._grace_s) or self._raised:
            return
        _say(f"Not done after {self._grace_s:g} s: abandoning this step. It is done again when you go on.")
        self._late = True
        assert self.asked is not None
        ident = threading.main_thread().ident
        assert ident is not None
        signal.pthread_kill(ident, self.asked)  # a real signal, which ends a sleep as well


_listener: _Listener | None = None


def _say(text: str) -> None:
    """One line on stderr, above the bars where there are some: they redirect it. Of several processes one says it."""
    if os.environ.get("RANK", "0") != "0":  # as torchrun counts them
        return
    with suppress(OSError, ValueError):  # closed
        print(text, file=sys.stderr, flush=True)


def _in_child(number: int) -> None:
    """A forked process, which loads data for example: its parent ends it when it is done with it.

    Ctrl-C in a terminal reaches all processes; but other signals are meant for this one.
    """
    if number != signal.SIGINT:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


def _silence(descriptors: Sequence[int]) -> None:
    """Send what is still written to nowhere: a terminal that was closed answers with an error."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in descriptors:
        os.dup2(nowhere, descriptor)
    os.close(nowhere)


def _leave(number: int) -> NoReturn:
    """Leave this moment, whatever hangs; every file is whole."""
    with suppress(OSError):
        show_cursor = b"\x1b[?25h" if os.isatty(2) else b""  # the bars hide it
        os.write(2, show_cursor + b"\nStopped at once. What was stored before can be gone on with.\n")
    os._exit(128 + number)
