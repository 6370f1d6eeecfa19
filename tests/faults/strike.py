"""How each fault is done to a job."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from faults.job import Job, Node
from faults.proxy import Proxy
from faults.schedule import Fault, Kind
from minio_server import MinioServer


@dataclass
class Striker:
    """Strikes a job and its store.

    Attributes:
        phases: folder in which a file asks a worker to kill itself in a phase of saving.
        said: what was done, in order.
    """

    job: Job
    store: MinioServer
    proxy: Proxy
    phases: Path
    said: list[str] = field(default_factory=list)

    def __call__(self, fault: Fault) -> None:
        actions: dict[Kind, Callable[[Fault], object]] = {
            "kill a worker": lambda _: self._signal(-1, signal.SIGKILL),
            "stop a worker": lambda _: self._signal(-1, signal.SIGSTOP),
            "lose node 0": self._lose_first,
            "lose a node": lambda _: self._lose(self.job.alive[-1:]),
            "drain": lambda _: self._terminate(self.job.alive[:1]),
            "store down": self._store_down,
            "store slow": lambda f: self._for(f.seconds, "slow"),
            "answers cut": lambda f: self._for(f.seconds, "truncate"),
            "disk full": lambda _: self._fill_disk(),
            "kill in a save": lambda f: (self.phases / f.phase).touch(),
            "a node joins": lambda _: self.job.add() if len(self.job.alive) < 3 else None,
            "a node leaves": lambda _: self._terminate(self.job.alive[-1:]),
        }
        self.said.append(str(fault))
        actions[fault.kind](fault)

    def _signal(self, rank: int, number: signal.Signals) -> None:
        """To the worker of a rank; -1: the last one that is there."""
        workers = [worker for node in self.job.alive for worker in node.workers()]
        with suppress(psutil.Error, IndexError):
            workers[rank].send_signal(number)

    def _lose_first(self, _: Fault) -> None:
        found = self.job.worker_of(0)
        self._lose([found[0]] if found else self.job.alive[:1])

    def _lose(self, nodes: list[Node]) -> None:
        for node in nodes:
            node.lose()
        self.job.add()

    def _terminate(self, nodes: list[Node]) -> None:
        for node in nodes:
            node.process.terminate()

    def _store_down(self, fault: Fault) -> None:
        self.store.stop()
        self._later(fault.seconds, self.store.start)

    def _for(self, seconds: float, mode: str) -> None:
        self.proxy.set(mode)  # type: ignore[arg-type]
        self._later(seconds, lambda: self.proxy.set("pass"))

    def _fill_disk(self) -> None:
        """No file of rank 0 may grow any more: what a full disk does, without filling one."""
        found = self.job.worker_of(0)
        if found:
            with suppress(psutil.Error):
                found[1].rlimit(psutil.RLIMIT_FSIZE, (4096, psutil.RLIM_INFINITY))

    def _later(self, seconds: float, act: Callable[[], None]) -> None:
        timer = threading.Timer(seconds, act)
        timer.daemon = True
        timer.start()
        self._timers.append(timer)

    _timers: list[threading.Timer] = field(default_factory=list)

    def settle(self) -> None:
        """Waits until what was to end by itself has ended."""
        for timer in self._timers:
            timer.join()


def wait_for_step(job: Job, step: int, seconds: float) -> None:
    """Returns when the job has committed `step` steps, or has ended.

    Raises:
        TimeoutError: if neither happens in time.
    """
    limit = time.monotonic() + seconds
    while job.alive and job.step() < step:
        if time.monotonic() > limit:
            raise TimeoutError(f"no commit of step {step} within {seconds:.0f} s")
        time.sleep(0.2)
