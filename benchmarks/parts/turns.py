"""Processes that do one unit of work at a time, by turns, so that a busy machine slows all of them alike."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

PARTS = Path(__file__).parent
MARK = "@turn "


def wait_for_turn() -> None:
    """In the worker: says that it is ready, and waits until it is asked. Ends when nobody asks any more."""
    print(MARK + "ready", flush=True)
    if not sys.stdin.readline():
        sys.exit(0)


class Clock:
    """Wall and processor seconds since it was made; the second leaves out what other processes took."""

    def __init__(self) -> None:
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def report(self) -> None:
        """In the worker: tells what one unit of work took."""
        took = {"wall": time.perf_counter() - self.wall, "cpu": time.process_time() - self.cpu}
        print(MARK + json.dumps(took), flush=True)


class Worker:
    """A worker seen from the side that asks.

    Args:
        python: interpreter of its environment.
        script: in benchmarks/parts.
        settings: given to it as JSON.
        threads: of torch and its libraries.
        wait: until it is ready; False for a process that takes no turns.
    """

    def __init__(
        self,
        python: Path | str,
        script: str,
        settings: Mapping[str, Any],
        threads: int,
        *,
        wait: bool = True,
    ) -> None:
        environment = os.environ | {
            "OMP_NUM_THREADS": str(threads),
            "MKL_NUM_THREADS": str(threads),
            "LIGHTLY_TRAIN_EVENTS_DISABLED": "1",
        }
        self.script = script
        self.process = subprocess.Popen(
            [str(python), str(PARTS / script), json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        if wait:
            self._read()

    def _read(self) -> str:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(MARK):
                return line.removeprefix(MARK).strip()
        raise RuntimeError(f"{self.script} ended with exit code {self.process.wait()}; its message is above")

    def turn(self) -> dict[str, float]:
        """One unit of work."""
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        took: dict[str, float] = json.loads(self._read())
        self._read()  # ready again
        return took

    def end(self) -> None:
        """Ends the process."""
        self.process.kill()
        self.process.wait()


def by_turns(workers: Mapping[str, Worker], warm_up: int, repeats: int) -> dict[str, dict[str, list[float]]]:
    """Wall and processor seconds of each worker in each counted round."""
    took: dict[str, dict[str, list[float]]] = {name: {"wall": [], "cpu": []} for name in workers}
    names = list(workers)
    for number in range(warm_up + repeats):
        shift = number % len(names)  # nobody is always the one after somebody
        for name in names[shift:] + names[:shift]:
            seconds = workers[name].turn()
            if number >= warm_up:
                for kind, value in seconds.items():
                    took[name][kind].append(value)
            print(f"  round {number + 1}/{warm_up + repeats} {name}: {seconds['wall']:.2f} s", flush=True)
    return took


def spread(values: Sequence[float]) -> str:
    """Median (lowest to highest)."""
    return f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """ours / theirs, round by round."""
    return [a / b for a, b in zip(ours, theirs, strict=True)]
