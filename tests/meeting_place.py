"""A store at which nodes meet, in a process of its own.

The test's process must not host it: it forks nodes, and a fork while the store's threads answer a node that is
there already may inherit a lock that nobody releases.
"""

from __future__ import annotations

import multiprocessing
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

from scholarch.training.store import serve

SECONDS = 60


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return int(probe.getsockname()[1])


@contextmanager
def meeting_place() -> Iterator[int]:
    """The port of a store that answers."""
    port = free_port()
    process = multiprocessing.get_context("fork").Process(target=serve, args=(port,))
    process.start()
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
