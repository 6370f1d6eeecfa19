"""A store at which nodes meet, in a process of its own."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

from ports import free_port
from processes import start_process
from scholarch.training.store import serve

SECONDS = 60


@contextmanager
def meeting_place() -> Iterator[int]:
    """The port of a store that answers."""
    port = free_port()
    process = start_process(serve, port)
    try:
        limit = time.monotonic() + SECONDS
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("localhost", port)) == 0:
                    break
            assert time.monotonic() < limit, "the store does not answer"
            time.sleep(0.1)
        yield port
    finally:
        process.kill()
        process.join()
