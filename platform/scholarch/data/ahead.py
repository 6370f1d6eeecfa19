"""Reading ahead of a known order: what will be read next is fetched by threads, within a bound of bytes."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress

import numpy as np

BOUND = 32 << 20
"""Bytes of fetched samples that wait to be read, for each process that reads."""
THREADS = 16
_FIRST = 1 << 18
"""Bytes of the first portion; each next one is twice as large, so that the first batch comes soon."""

Fetched = Mapping[int, bytes]
Fetch = Callable[[Sequence[int]], Fetched]


class ReadAhead:
    """Fetches expected samples before they are asked for; they may be taken from any thread.

    Expected samples are fetched in portions: within a portion, neighbours in the store come by one
    request. The larger the portion against the data, the fewer requests.

    Args:
        size: bytes of a sample, by its number.
        group: cuts numbers into runs, each of which one request brings.
        fetch: brings a run; called in threads.
        bound: bytes that may be fetched and not yet taken.
    """

    def __init__(
        self,
        size: Callable[[int], int],
        group: Callable[[Sequence[int]], Sequence[Sequence[int]]],
        fetch: Fetch,
        bound: int = BOUND,
        threads: int = THREADS,
    ) -> None:
        self._size, self._group, self._fetch = size, group, fetch
        self._bound, self._threads = bound, threads
        self._lock = threading.Lock()
        self._work: queue.SimpleQueue[tuple[Sequence[int], Future[Fetched]]] = queue.SimpleQueue()
        self._started = False
        self._forget()

    def _forget(self) -> None:
        self._due: deque[int] = deque()
        self._coming: dict[int, deque[Future[Fetched]]] = {}
        self._held = 0
        self._portion = _FIRST

    def expect(self, indices: np.ndarray, *, afresh: bool = False) -> None:
        """Says which samples will be taken after those that were told before (`afresh`: instead)."""
        with self._lock:
            if afresh:
                self._forget()
            self._due.extend(indices.tolist())
            self._go_on()

    def take(self, index: int) -> bytes | None:
        """A sample's bytes, once they are here; None if it was not expected. Raises what `fetch` raised."""
        with self._lock:
            futures = self._coming.get(index)
            if not futures:
                # Taken before its turn: nobody will ask for it again.
                with suppress(ValueError):
                    self._due.remove(index)
                return None
            future = futures.popleft()
            if not futures:
                del self._coming[index]
            self._held -= self._size(index)
            self._go_on()
        return future.result()[index]

    def _go_on(self) -> None:
        while self._due:
            wanted = min(self._portion, self._bound // 2)
            if self._held and self._held + wanted > self._bound:
                break
            portion, size = [], 0
            while self._due and size < wanted:
                portion.append(self._due.popleft())
                size += self._size(portion[-1])
            self._held += size
            self._portion = min(2 * self._portion, self._bound)
            for run in self._group(portion):
                future: Future[Fetched] = Future()
                for index in run:
                    self._coming.setdefault(index, deque()).append(future)
                self._work.put((run, future))
        if self._coming and not self._started:
            self._start()

    def _start(self) -> None:
        # Not an executor: its threads would have to finish what is queued before the process may end.
        self._started = True
        for _ in range(self._threads):
            threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            run, future = self._work.get()
            try:
                future.set_result(self._fetch(run))
            except BaseException as error:
                future.set_exception(error)
