"""A TCP proxy in front of a store that can be slow, cut answers short, or refuse; on loopback only."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress
from typing import Literal

Mode = Literal["pass", "slow", "truncate", "refuse"]
CHUNK = 16384
SLOW_BYTES_PER_SECOND = 2_000_000
TRUNCATED_AFTER = 30_000
"""Bytes of answers that a connection carries before it is cut in mode `truncate`."""


class Proxy:
    """Forwards 127.0.0.1:port to another port, in the current `mode`; a context manager."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.mode: Mode = "pass"
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        self._open: set[socket.socket] = set()
        self._thread = threading.Thread(target=self._accept, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Proxy:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.close()
        self._cut()

    def set(self, mode: Mode) -> None:
        """Changes the mode; open connections are cut, as by a switch that fails."""
        self.mode = mode
        if mode in ("refuse", "truncate"):
            self._cut()

    def _cut(self) -> None:
        for connection in list(self._open):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            if self.mode == "refuse":
                client.close()
                continue
            try:
                upstream = socket.create_connection(("127.0.0.1", self.target), timeout=30)
            except OSError:
                client.close()
                continue
            self._open |= {client, upstream}
            for source, sink, answers in ((client, upstream, False), (upstream, client, True)):
                threading.Thread(target=self._pump, args=(source, sink, answers), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, answers: bool) -> None:
        carried = 0
        with suppress(OSError):
            while data := source.recv(CHUNK):
                if self.mode == "slow":
                    time.sleep(len(data) / SLOW_BYTES_PER_SECOND)
                if self.mode == "truncate" and answers and carried + len(data) > TRUNCATED_AFTER:
                    sink.sendall(data[: TRUNCATED_AFTER - carried])
                    break
                sink.sendall(data)
                carried += len(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            self._open.discard(end)
            end.close()
