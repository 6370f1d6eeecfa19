"""Nodes of an elastic run as processes of this machine: the real launcher, the real command, real signals."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import psutil
from scholarch.storage.records import RECORDS_NAME, Record, read_records

HERE = Path(__file__).parent
LAUNCH = (sys.executable, "-m", "scholarch.training.launch")


def environment(**extra: str) -> dict[str, str]:
    """One thread a worker, and this folder on the path so that `--module traced` is found."""
    path = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg", **extra}


def wait(until: Callable[[], bool], seconds: float, what: str) -> float:
    """Seconds until it is so.

    Raises:
        TimeoutError: when it is not so within `seconds`.
    """
    start = time.monotonic()
    while not until():
        if time.monotonic() - start > seconds:
            raise TimeoutError(f"{what}: not within {seconds:g} s")
        time.sleep(0.05)
    return time.monotonic() - start


class Process:
    """A process whose output goes to a file.

    Args:
        command: what to start.
        log: both of its streams.
        prefix: before the command, such as `ip netns exec NAME`.
    """

    def __init__(self, command: Sequence[str], log: Path, prefix: Sequence[str] = (), **extra: str) -> None:
        self.log = log
        with log.open("ab") as file:
            self.process = subprocess.Popen(
                [*prefix, *command],
                stdout=file,
                stderr=file,
                env=environment(**extra),
                start_new_session=True,
            )

    @property
    def text(self) -> str:
        """What it wrote so far."""
        return self.log.read_text(errors="replace")

    def end(self, seconds: float) -> int:
        """Its exit code; killed when it does not end in time."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise TimeoutError(f"{self.log} did not end within {seconds:g} s:\n{self.text[-3000:]}") from None

    def kill(self) -> None:
        """SIGKILL to it and to all that it started, as a container's end does."""
        with suppress(psutil.NoSuchProcess):
            found = psutil.Process(self.process.pid)
            for one in [found, *found.children(recursive=True)]:
                with suppress(psutil.NoSuchProcess):
                    one.kill()
        self.process.wait()

    def signal(self, number: signal.Signals) -> None:
        """A signal to it alone."""
        self.process.send_signal(number)

    def workers(self) -> list[psutil.Process]:
        """The launcher's workers, by start."""
        with suppress(psutil.NoSuchProcess):
            found = psutil.Process(self.process.pid)
            children = [child for child in found.children() if "ip" not in child.name()]
            return sorted(children, key=lambda child: child.create_time())
        return []


class Store(Process):
    """The place of the meeting."""

    def __init__(self, log: Path, prefix: Sequence[str] = (), port: int = 0) -> None:
        super().__init__((sys.executable, "-m", "scholarch.training.store", "--port", str(port)), log, prefix)
        wait(lambda: "port" in self.text, 60, "the store")
        found = re.search(r"port (\d+)", self.text)
        assert found, self.text
        self.port = int(found[1])


def node(
    log: Path, options: Sequence[str], arguments: Sequence[str], prefix: Sequence[str] = (), **extra: str
) -> Process:
    """A launcher with `options` whose workers run `arguments`."""
    return Process((*LAUNCH, *options, "--", *arguments), log, prefix, **extra)


def records(run: Path) -> list[Record]:
    """The run's records with losses."""
    return [record for record in read_records(run / RECORDS_NAME) if "loss/total" in record]


def step(run: Path) -> int:
    """The last recorded step."""
    return max((record["step"] for record in read_records(run / RECORDS_NAME)), default=-1)
