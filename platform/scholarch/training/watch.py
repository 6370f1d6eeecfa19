"""Finds the worker that hangs among those that wait for it."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from scholarch.training.heartbeat import ENDED, STEPPING, Beat, read_beat

SETTLING_FACTOR = 5
"""The first step compiles and the last one is followed by a report: they may take so many times as long."""
STACK_SECONDS = 2.0
SHOWN_FRAMES = 15
_WAITS = re.compile(
    r"torch/distributed/(distributed_c10d|_functional_collectives|fsdp/|tensor/)"
    r"|scholarch/(collectives|training/distributed)\.py"
)


@dataclass(frozen=True)
class Hung:
    """A worker that does not go on by its own fault.

    Attributes:
        local_rank: its place on this node.
        step: finished steps.
        seconds: since its last beat.
        state: "stopped" (SIGSTOP), "silent" (answers no signal) or "busy".
        stack: where it is, most recent call first; empty where it could not be had.
    """

    local_rank: int
    step: int
    seconds: float
    state: str
    stack: str


class Watch:
    """Looks at the heartbeats of one node's workers.

    Args:
        folder: where they are; emptied by `start`.
        stall: seconds without a finished step after which a worker is overdue; before the first and
            after the last step SETTLING_FACTOR times as many. 0: never.
    """

    def __init__(self, folder: Path, stall: float) -> None:
        self.folder, self.stall = folder, stall
        self.beats: dict[int, Beat] = {}
        self._seen: dict[int, float] = {}
        self._asked_at: dict[int, int] = {}

    def start(self) -> None:
        """Forgets the workers of before; call before new ones start."""
        self.folder.mkdir(exist_ok=True)
        for path in self.folder.iterdir():
            path.unlink()
        self.beats, self._seen, self._asked_at = {}, {}, {}

    @property
    def step(self) -> int:
        """Finished steps of the worker that is behind."""
        return min((beat.step for beat in self.beats.values()), default=0)

    @property
    def committed(self) -> int:
        """Step of the newest checkpoint that a worker here knows of; -1: none."""
        return max((beat.committed for beat in self.beats.values()), default=-1)

    @property
    def saved(self) -> bool:
        """Whether every step that a worker here finished is in a checkpoint."""
        return self.committed >= max((beat.step for beat in self.beats.values()), default=0) > 0

    def reason(self, local_rank: int) -> str:
        """What ended a worker, in its own words; empty when it could not say."""
        path = self.folder / f"{local_rank}.reason"
        return path.read_text(errors="replace") if path.is_file() else ""

    def look(self, pids: Mapping[int, int]) -> list[Hung]:
        """The workers that hang now. Those that are overdue because they wait for others are not among them.

        Args:
            pids: process by local rank, of the workers that run.
        """
        self.read()
        now = time.monotonic()
        overdue = [rank for rank in pids if self._overdue(rank, now)]
        if not overdue:
            return []
        self._asked_at = {rank: self.beats[rank].count for rank in overdue}
        states = {rank: _state(pids[rank]) for rank in overdue}
        stacks = self._stacks({rank: pids[rank] for rank in overdue if states[rank] != "stopped"})
        return [
            Hung(
                rank,
                self.beats[rank].step,
                now - self._seen[rank],
                states[rank] if states[rank] == "stopped" or stacks.get(rank) else "silent",
                _shown(stacks.get(rank, "")),
            )
            for rank in overdue
            if not waits(stacks.get(rank, ""))
        ]

    def read(self) -> None:
        """Takes over what the workers wrote since, also those that have ended."""
        for path in self.folder.glob("[0-9]*"):
            beat = None if path.suffix else read_beat(path)
            if beat is not None and beat != self.beats.get(int(path.name)):
                self.beats[int(path.name)], self._seen[int(path.name)] = beat, time.monotonic()

    def _overdue(self, local_rank: int, now: float) -> bool:
        beat = self.beats.get(local_rank)
        if beat is None or beat.phase == ENDED or not self.stall:
            return False
        allowed = self.stall * (1 if beat.phase == STEPPING else SETTLING_FACTOR)
        return now - self._seen[local_rank] > allowed and self._asked_at.get(local_rank) != beat.count

    def _stacks(self, pids: Mapping[int, int]) -> dict[int, str]:
        paths = {rank: self.folder / f"{rank}.stack" for rank in pids}
        for rank, pid in pids.items():
            paths[rank].write_bytes(b"")  # of an earlier request
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGUSR1)
        until = time.monotonic() + STACK_SECONDS
        while time.monotonic() < until and not all(path.stat().st_size for path in paths.values()):
            time.sleep(0.05)
        time.sleep(0.1)  # the last lines of the last one
        return {rank: path.read_text(errors="replace") for rank, path in paths.items()}


def waits(stack: str) -> bool:
    """Whether some thread of a dumped stack is inside an exchange with other workers."""
    return any(_WAITS.search("\n".join(_frames(thread)[:6])) for thread in stack.split("\n\n"))


def _frames(thread: str) -> list[str]:
    return [line for line in thread.splitlines() if line.startswith("  File ")]


def _shown(stack: str) -> str:
    """The main thread, which faulthandler writes last."""
    return "\n".join(_frames(stack.strip().split("\n\n")[-1])[:SHOWN_FRAMES])


def _state(pid: int) -> str:
    with suppress(OSError):
        # The state follows the name, which stands in brackets and may hold anything.
        letter = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return "stopped" if letter in "Tt" else "busy"
    return "busy"
