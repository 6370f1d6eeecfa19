"""What a worker tells the agent that started it: that it lives, where it is, and why it ended.

A few numbers in a file that both have mapped: a beat costs less than a microsecond and no system call.
"""

from __future__ import annotations

import ctypes
import faulthandler
import mmap
import os
import signal
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from scholarch.errors import RunFailed, UserError

FOLDER = "SCHOLARCH_HEARTBEATS"
"""Environment variable: where the agent looks; a file for each worker, named by its local rank."""
SETTLING, STEPPING, ENDED = 0, 1, 2
"""Phases: before the first step (compilation, data) and after the last; between; after the process group."""
_FIELDS = struct.Struct("<4q")
_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2)


@dataclass(frozen=True)
class Beat:
    """The last beat of a worker.

    Attributes:
        count: of beats so far.
        step: finished steps.
        committed: step of the newest checkpoint of this run; -1: none.
        phase: SETTLING, STEPPING or ENDED.
    """

    count: int = 0
    step: int = 0
    committed: int = -1
    phase: int = SETTLING


class Heartbeat:
    """A worker's side; without a path it does nothing.

    Args:
        path: `<folder>/<local rank>`; stacks go to `.stack`, the reason of a failure to `.reason`.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path, self._map, self._last = path, None, Beat()
        if path is None:
            return
        path.write_bytes(_FIELDS.pack(0, 0, -1, SETTLING))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), _FIELDS.size)
        # The agent asks for stacks by SIGUSR1; a worker that holds the GIL answers too.
        faulthandler.register(signal.SIGUSR1, _kept_open(path.with_suffix(".stack")), all_threads=True)
        if sys.platform == "linux":  # a worker whose agent was killed must not go on without it
            ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)

    @classmethod
    def from_environment(cls) -> Heartbeat:
        """The one that this worker's agent looks at; a silent one without an agent."""
        folder = os.environ.get(FOLDER)
        return cls(Path(folder) / os.environ.get("LOCAL_RANK", "0") if folder else None)

    def beat(self, step: int, committed: int) -> None:
        """`step` steps are finished; those up to `committed` are in a checkpoint."""
        self._write(step, committed, STEPPING)

    def alive(self) -> None:
        """Work that has no steps goes on."""
        self._write(self._last.step, self._last.committed, self._last.phase)

    def committed(self, step: int) -> None:
        """Those up to `step` are in a checkpoint."""
        self._write(self._last.step, step, self._last.phase)

    @contextmanager
    def training(self, start: int) -> Iterator[None]:
        """The time of the steps, from `start` finished and committed ones on."""
        self._write(start, start or -1, SETTLING)
        try:
            yield
        finally:
            self._write(self._last.step, self._last.committed, SETTLING)

    @contextmanager
    def living(self) -> Iterator[None]:
        """The time in which the agent is to watch; what ends it is kept for the agent to tell."""
        try:
            yield
        except BaseException as error:
            if self._path is not None:
                expected = isinstance(error, UserError | RunFailed)
                reason = str(error) if expected else f"{type(error).__name__}: {error}"
                with suppress(OSError):
                    self._path.with_suffix(".reason").write_text(reason)
            raise
        finally:
            self._write(self._last.step, self._last.committed, ENDED)

    def _write(self, step: int, committed: int, phase: int) -> None:
        self._last = Beat(self._last.count + 1, step, committed, phase)
        if self._map is not None:
            _FIELDS.pack_into(self._map, 0, self._last.count, step, committed, phase)


def read_beat(path: Path) -> Beat | None:
    """The last beat written to `path`; None before the first."""
    try:
        return Beat(*_FIELDS.unpack(path.read_bytes()))
    except (OSError, struct.error):
        return None


def _kept_open(path: Path) -> int:
    # A descriptor, which lasts as long as the process: faulthandler keeps no reference to a file.
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
