"""torch's elastic agent, changed in what the end of a worker means."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from types import FrameType

from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
from torch.distributed.elastic.multiprocessing.api import SubprocessContext

from scholarch.errors import EXIT_DONE, EXIT_INTERRUPTED, EXIT_WRONG_INPUT

EXIT_FAULT = 1
SIGNALS = (signal.SIGTERM, signal.SIGINT)
SHOWN_LINES = 30


def exit_code(codes: Collection[int], *, interrupted: bool = False) -> int:
    """A node's exit code for those of its workers; a negative one is the number of a signal.

    Args:
        codes: of all workers, or of those that did not end with 0.
        interrupted: the node itself was asked to end, so that a worker which SIGTERM met before it
            could answer has lost nothing.
    """
    ended = set(codes)
    if EXIT_WRONG_INPUT in ended:
        return EXIT_WRONG_INPUT
    if not ended - {EXIT_DONE}:
        return EXIT_DONE
    # The agent sends SIGTERM to the workers that outlive the first one to go.
    if (EXIT_INTERRUPTED in ended or interrupted) and ended <= {EXIT_DONE, EXIT_INTERRUPTED, -signal.SIGTERM}:
        return EXIT_INTERRUPTED
    return EXIT_FAULT


def say(text: str) -> None:
    """Writes a line to stderr; nothing for an empty text."""
    sys.stderr.write(f"{text}\n" if text else "")
    sys.stderr.flush()


class Agent(LocalElasticAgent):
    """Starts this node's workers again after a fault only, and lets them save before they end.

    Wrong input (2) and an interruption that was saved (75) are final. After a signal, or when a worker
    ends with 75, the others have `grace` seconds to do the same. The first worker's stderr is this
    process's; what another one wrote is shown when its end needs it, so that nothing is said K times.

    Args:
        spec: the workers; torch's own restart counter starts at its `max_restarts`.
        folder: an empty folder for the workers' stderr.
        grace: seconds.
    """

    def __init__(self, spec: WorkerSpec, folder: str, grace: float) -> None:
        hidden = dict.fromkeys(range(1, spec.local_world_size), Std.ERR)
        super().__init__(spec, DefaultLogsSpecs(log_dir=folder, redirects=hidden))
        self.signal: signal.Signals | None = None
        self._grace, self._deadline = grace, 0.0
        self._started = self._joining = False

    def handle_signals(self) -> None:
        """Lets `on_signal` answer SIGTERM and SIGINT."""
        for number in SIGNALS:
            signal.signal(number, self.on_signal)

    def on_signal(self, number: int, _frame: FrameType | None) -> None:
        """Remembers the first signal for the next look at the workers; later ones change nothing.

        Raises:
            SignalException: where there are no workers to look at.
        """
        self.signal = self.signal or signal.Signals(number)
        if self._joining or self._worker_group.state is WorkerState.SUCCEEDED:
            raise SignalException(f"{self.signal.name} while no worker runs", self.signal)

    def _rendezvous(self, worker_group: WorkerGroup) -> None:
        self._joining = True
        try:
            if self.signal:
                raise SignalException(f"{self.signal.name} before a restart", self.signal)
            super()._rendezvous(worker_group)
        finally:
            self._joining = False

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, int]:
        if self._started:
            os.environ["SCHOLARCH_RESTART"] = "1"
        self._started = True
        pids: dict[int, int] = super()._start_workers(worker_group)
        self.handle_signals()  # torch has just put its own handlers there
        return pids

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        codes = {process.poll() for process in self._processes()}
        if self.signal or codes & {EXIT_INTERRUPTED, EXIT_WRONG_INPUT}:
            self._remaining_restarts = 0
            ends_well = codes <= {None, EXIT_DONE, EXIT_INTERRUPTED, EXIT_WRONG_INPUT}
            if None in codes and ends_well and self._has_time(wrong_input=EXIT_WRONG_INPUT in codes):
                return RunResult(state=WorkerState.HEALTHY)
        result: RunResult = super()._monitor_workers(worker_group)
        if result.is_failed():
            self._report({rank: failure.exitcode for rank, failure in result.failures.items()})
        return result

    def _has_time(self, *, wrong_input: bool) -> bool:
        """Whether the workers that still run may go on; says to them once that they are to end."""
        now = time.monotonic()
        if not self._deadline:
            # A mistake is every worker's, found at the same place: a moment is enough.
            self._deadline = now + (1.0 if wrong_input else self._grace)
            if not wrong_input:
                self._send(signal.SIGTERM)
        if now >= self._deadline and not wrong_input:
            say(f"error: a worker did not end within {self._grace:g} s of the signal; killed")
            self._send(signal.SIGKILL)
        return now < self._deadline

    def _processes(self) -> list[subprocess.Popen[bytes]]:
        assert isinstance(self._pcontext, SubprocessContext)
        return [handler.proc for handler in self._pcontext.subprocess_handlers.values()]

    def _send(self, number: signal.Signals) -> None:
        for process in self._processes():
            if process.poll() is None:
                with suppress(ProcessLookupError):
                    # SIGTERM to the worker alone: its data loaders must live until it has saved.
                    (os.kill if number is signal.SIGTERM else os.killpg)(process.pid, number)

    def _report(self, failures: dict[int, int]) -> None:
        code = exit_code(failures.values(), interrupted=self.signal is not None)
        if code == EXIT_INTERRUPTED:
            return
        first = self._worker_group.workers[0].global_rank
        if code == EXIT_WRONG_INPUT:
            failures = {min(rank for rank, ended in failures.items() if ended == code): code}
        for rank, ended in sorted(failures.items()):
            if ended == -signal.SIGTERM:
                continue
            if code == EXIT_FAULT:
                how = f"signal {signal.Signals(-ended).name}" if ended < 0 else f"exit code {ended}"
                say(f"worker {rank} ended with {how}")
            if rank != first:
                say(self._last_lines(rank - first))
        if self._remaining_restarts:
            say(f"starting the workers again, {self._remaining_restarts} restarts left")

    def _last_lines(self, local_rank: int) -> str:
        assert self._pcontext is not None
        text = Path(self._pcontext.stderrs[local_rank]).read_text(errors="replace")
        return "\n".join(text.splitlines()[-SHOWN_LINES:])
