"""A TCP proxy on the loopback that loses connections when it is told to: a network that is not to be relied on."""

from __future__ import annotations

import socket
import struct
import threading
import time
from contextlib import suppress
from types import TracebackType

ANSWER_S = 0.05
"""The server is given so long to do what its answer is lost of: enough here nearly always."""


class Proxy:
    """Passes on what comes in at `port` to another port; a context manager.

    Attributes:
        port: where it listens.
        accepted: connections so far, those that were refused left out.
        delay: seconds before each piece is passed on.
        refusing: whether new connections are closed at once.
    """

    def __init__(self, to: int) -> None:
        self._to = to
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.accepted = 0
        self.delay = 0.0
        self.refusing = False
        self._left: int | None = None
        self._unanswered: int | None = None
        self._deaf = False
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        threading.Thread(target=self._listen, daemon=True).start()

    def drop(self) -> int:
        """Reset all connections; returns how many."""
        with self._lock:
            dropped, self._open = self._open, set()
        for end in dropped:
            _reset(end)
        return len(dropped) // 2

    def cut_after(self, num_bytes: int) -> None:
        """Reset all connections when so many more bytes have gone to the server: in the middle of a message."""
        with self._lock:
            self._left = num_bytes

    def lose_answer(self, number: int) -> None:
        """Pass on `number` more pieces to the server, then reset all connections before it can answer the last.

        The server has done what it was asked, and nobody knows.
        """
        with self._lock:
            self._unanswered = number

    def __enter__(self) -> Proxy:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.refusing = True
        _reset(self._listener)
        self.drop()

    def _listen(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self.refusing:
                _reset(client)
                continue
            try:
                server = socket.create_connection(("127.0.0.1", self._to))
            except OSError:
                _reset(client)
                continue
            self.accepted += 1
            with self._lock:
                self._open |= {client, server}
            for source, target in ((client, server), (server, client)):
                threading.Thread(target=self._pass, args=(source, target, source is client), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket, counted: bool) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if self.delay:
                    time.sleep(self.delay)
                cut = lost = False
                if counted:
                    with self._lock:
                        if self._left is not None:
                            cut = len(data) >= self._left
                            data = data[: self._left]
                            self._left = None if cut else self._left - len(data)
                    with self._lock:
                        if self._unanswered is not None:
                            self._unanswered -= 1
                            self._deaf = self._unanswered == 0
                            lost = self._deaf
                elif self._deaf:
                    continue
                target.sendall(data)
                if lost:
                    time.sleep(ANSWER_S)
                    with self._lock:
                        self._unanswered, self._deaf = None, False
                if cut or lost:
                    self.drop()
        with self._lock:
            self._open -= {source, target}
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


def _reset(end: socket.socket) -> None:
    """Close so that the other side notices at once, and so does a thread that waits for data."""
    with suppress(OSError):
        # no time to linger: the other side gets a reset, not an orderly end
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        end.shutdown(socket.SHUT_RDWR)
    with suppress(OSError):
        end.close()
