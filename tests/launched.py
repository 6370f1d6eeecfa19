"""Nodes of a run, a clean process each: our launcher with a stand-in for the workers, or torch's own command."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from processes import start_process
from scholarch.training.launch import SHORT_TIMERS, Launch, launch
from torch.distributed import run

SECONDS = 120


def _write_to(output: Path) -> None:
    file = os.open(output, os.O_CREAT | os.O_WRONLY)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.stdout, sys.stderr = sys.__stdout__, os.fdopen(2, "w")


def launch_node(output: Path, request: Launch, timers: dict[str, int]) -> None:
    """The launcher, with its own timers of the rendezvous."""
    _write_to(output)
    SHORT_TIMERS.update(timers)
    os._exit(launch(request))


def torchrun_node(output: Path, words: list[str]) -> None:
    """The torchrun command."""
    _write_to(output)
    run.main(words)


class Started:
    """A launcher in a process of its own, with `SHORT_TIMERS` as they are here."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.output = folder / f"output-{time.monotonic_ns()}"
        request = Launch(**{"arguments": (str(folder),), "module": "stand_in", **options})
        self.process = start_process(launch_node, self.output, request, dict(SHORT_TIMERS))

    def end(self) -> tuple[int | None, str]:
        """Its exit code and what it wrote."""
        self.process.join(SECONDS)
        if self.process.is_alive():
            self.process.kill()
            pytest.fail(f"the launcher hangs; so far it wrote:\n{self.output.read_text()}")
        return self.process.exitcode, self.output.read_text()

    def signal(self, number: signal.Signals) -> None:
        """Sends it a signal."""
        assert self.process.pid is not None
        os.kill(self.process.pid, number)
