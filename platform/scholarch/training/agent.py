"""torch's elastic agent, changed in what the end of a worker means and in what is noticed of the others."""

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

from torch.distributed.elastic.agent.server.api import (
    DEFAULT_ROLE,
    RunResult,
    WorkerGroup,
    WorkerSpec,
    WorkerState,
)
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
from torch.distributed.elastic.multiprocessing.api import SubprocessContext
from torch.distributed.elastic.rendezvous import RendezvousConnectionError
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import DynamicRendezvousHandler

from scholarch.errors import EXIT_DONE, EXIT_INTERRUPTED, EXIT_WRONG_INPUT
from scholarch.training.heartbeat import FOLDER
from scholarch.training.watch import Hung, Watch

EXIT_FAULT = 1
SIGNALS = (signal.SIGTERM, signal.SIGINT)
SHOWN_LINES = 30
EXIT_BARRIER_SECONDS = 30.0
FAULT_SECONDS = 5.0
"""What the others have to end in when one failed; they wait for it and cannot save."""


def exit_code(codes: Collection[int], *, interrupted: bool = False, saved: bool = False) -> int:
    """A node's exit code for those of its workers; a negative one is the number of a signal.

    Args:
        codes: of all workers, or of those that did not end with 0.
        interrupted: the node itself was asked to end, so that a worker which SIGTERM met before it
            could answer has lost nothing.
        saved: the workers were killed when all that they had done was in a checkpoint.
    """
    ended = set(codes)
    if EXIT_WRONG_INPUT in ended:
        return EXIT_WRONG_INPUT
    if not ended - {EXIT_DONE}:
        return EXIT_DONE
    # The agent sends SIGTERM to the workers that outlive the first one to go.
    harmless = {EXIT_DONE, EXIT_INTERRUPTED, -signal.SIGTERM} | ({-signal.SIGKILL} if saved else set())
    if (EXIT_INTERRUPTED in ended or interrupted) and ended <= harmless:
        return EXIT_INTERRUPTED
    return EXIT_FAULT


def say(text: str) -> None:
    """Writes a line to stderr; nothing for an empty text."""
    sys.stderr.write(f"{text}\n" if text else "")
    sys.stderr.flush()


class Agent(LocalElasticAgent):
    """Starts this node's workers again after a fault or with other nodes, and lets them save before they end.

    Wrong input (2) is final. An interruption that was saved (75) is final where this node was asked to
    end, or where the number of nodes is fixed; else the run goes on with the nodes that are left. After
    a signal, or when a worker ends with 75, the others have `grace` seconds to do the same. The first
    worker's stderr is this process's; what another one wrote is shown when its end needs it, so that
    nothing is said K times.

    Args:
        spec: the workers; `max_restarts` counts faults between which no checkpoint was written.
        folder: an empty folder for the workers' stderr and heartbeats.
        grace: seconds.
        stall: seconds without a step after which a worker hangs; 0: never.
        elastic: whether nodes may leave and the others go on.
    """

    def __init__(self, spec: WorkerSpec, folder: Path, grace: float, stall: float, *, elastic: bool) -> None:
        hidden = dict.fromkeys(range(1, spec.local_world_size), Std.ERR)
        logs = DefaultLogsSpecs(log_dir=str(folder), redirects=hidden)
        super().__init__(spec, logs, exit_barrier_timeout=EXIT_BARRIER_SECONDS)
        self.signal: signal.Signals | None = None
        self.cause, self.cause_rank = "", -1
        self.watch = Watch(folder / "heartbeats", stall)
        self._grace, self._elastic, self._deadline = grace, elastic, 0.0
        self._started = self._joining = self._overtime = False
        self._committed = -1

    @property
    def started(self) -> bool:
        """Whether workers ran."""
        return self._started

    @property
    def saved(self) -> bool:
        """Whether workers were killed that had saved everything and did not end in time."""
        return self._overtime and self.watch.saved

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

    def _invoke_run(self, role: str = DEFAULT_ROLE) -> RunResult:
        try:
            result: RunResult = super()._invoke_run(role)
        except RendezvousConnectionError as error:
            if self._pcontext:  # Without the store this node is alone, and the others go on without it.
                self._end_alone()
            if self.signal:
                raise SignalException(f"{self.signal.name} while the store is gone", self.signal) from error
            raise
        return result

    def _end_alone(self) -> None:
        """Ends the workers; where this node was asked to end, they have time to save."""
        if self.signal:
            self._send(signal.SIGTERM)
            until = time.monotonic() + self._grace
            while self._living() and time.monotonic() < until:
                time.sleep(0.1)
        self._send(signal.SIGKILL)

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
            self._say_world(worker_group)
        self._started, self._deadline, self._overtime = True, 0.0, False
        self.cause, self.cause_rank = "", -1
        self.watch.start()
        os.environ[FOLDER] = str(self.watch.folder)
        pids: dict[int, int] = super()._start_workers(worker_group)
        self.handle_signals()  # torch has just put its own handlers there
        return pids

    def _say_world(self, worker_group: WorkerGroup) -> None:
        nodes, workers = worker_group.group_world_size or 0, worker_group.workers[0].world_size
        if self._elastic and worker_group.group_rank == 0:
            say(f"going on with {nodes} node{'s' * (nodes > 1)}, {workers} worker{'s' * (workers > 1)}")

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        codes = {process.poll() for process in self._processes()}
        hung = self.watch.look(self._living())
        if self.watch.committed > self._committed:  # faults count only in a row
            self._committed, self._remaining_restarts = self.watch.committed, worker_group.spec.max_restarts
        if hung:
            self._replace(hung)
        elif self._regroups(codes):
            return self._regroup()
        elif self.signal or codes & {EXIT_INTERRUPTED, EXIT_WRONG_INPUT}:
            self._remaining_restarts = 0
            ends_well = codes <= {None, EXIT_DONE, EXIT_INTERRUPTED, EXIT_WRONG_INPUT}
            if None in codes and ends_well and self._has_time(wrong_input=EXIT_WRONG_INPUT in codes):
                return RunResult(state=WorkerState.HEALTHY)
        result: RunResult = super()._monitor_workers(worker_group)
        if result.is_failed():
            self._report({rank: failure.exitcode for rank, failure in result.failures.items()})
        return result

    def _regroups(self, codes: set[int | None]) -> bool:
        """Whether the workers are to meet anew although none of them failed."""
        if self.signal or not codes <= {None, EXIT_INTERRUPTED}:
            return False
        return self._node_lost() or (EXIT_INTERRUPTED in codes and (self._elastic or self._newcomers()))

    def _regroup(self) -> RunResult:
        # torch counts a restart for this result, and ours is none.
        self._remaining_restarts += 1
        return RunResult(state=WorkerState.UNHEALTHY)

    def _node_lost(self) -> bool:
        """Whether a node of this world is gone, or has begun to meet anew, by what the store last said."""
        handler = self._rdzv_handler
        if not isinstance(handler, DynamicRendezvousHandler):
            return False
        present = len(handler._state_holder.state.participants)
        return present < (self._worker_group.group_world_size or 0)

    def _newcomers(self) -> bool:
        waiting: int = self._rdzv_handler.num_nodes_waiting()
        return waiting > 0

    def _replace(self, hung: list[Hung]) -> None:
        first = self._worker_group.workers[0].global_rank
        for one in hung:
            rank = first + one.local_rank
            how = {"stopped": ", it was stopped by a signal", "silent": ", it answers no signal"}
            self.cause = f"worker {rank} hangs: no step for {one.seconds:.0f} s after step {one.step}"
            self.cause += how.get(one.state, "")
            self.cause_rank = rank
            say(self.cause)
            say(one.stack)
        self._send(signal.SIGKILL)
        for process in self._processes():
            process.wait()

    def _has_time(self, *, wrong_input: bool) -> bool:
        """Whether the workers that still run may go on; says to them once that they are to end."""
        now = time.monotonic()
        if not self._deadline:
            # A mistake is every worker's, found at the same place: a moment is enough.
            self._deadline = now + (1.0 if wrong_input else self._grace)
            if not wrong_input:
                self._send(signal.SIGTERM)
        if now >= self._deadline and not wrong_input and not self._overtime:
            self._overtime = True
            late = f"a worker did not end within {self._grace:g} s of the signal; killed"
            self.watch.read()
            say(f"{late}; step {self.watch.step} is saved" if self.saved else f"error: {late}")
            self._send(signal.SIGKILL)
        return now < self._deadline

    def _stop_workers(self, worker_group: WorkerGroup) -> None:
        """Lets healthy workers save; those that wait for a lost one have nothing to wait for."""
        failed = worker_group.state is WorkerState.FAILED
        until = time.monotonic() + (FAULT_SECONDS if failed else self._grace)
        if not self._node_lost():
            self._send(signal.SIGTERM)
            while self._living() and time.monotonic() < until and not self._node_lost():
                time.sleep(0.1)
                if not failed:
                    self._newcomers()  # asks the store who is there
        self._send(signal.SIGKILL)
        super()._stop_workers(worker_group)

    def _processes(self) -> list[subprocess.Popen[bytes]]:
        assert isinstance(self._pcontext, SubprocessContext)
        return [handler.proc for handler in self._pcontext.subprocess_handlers.values()]

    def _living(self) -> dict[int, int]:
        """Process by local rank, of the workers that run."""
        return {rank: process.pid for rank, process in enumerate(self._processes()) if process.poll() is None}

    def _send(self, number: signal.Signals) -> None:
        for pid in self._living().values():
            with suppress(ProcessLookupError):
                # SIGTERM to the worker alone: its data loaders must live until it has saved.
                (os.kill if number is signal.SIGTERM else os.killpg)(pid, number)

    def _report(self, failures: dict[int, int]) -> None:
        code = exit_code(failures.values(), interrupted=self.signal is not None, saved=self.saved)
        if code == EXIT_INTERRUPTED:
            return
        first = self._worker_group.workers[0].global_rank
        if code == EXIT_WRONG_INPUT:
            failures = {min(rank for rank, ended in failures.items() if ended == code): code}
        known = self.cause_rank if -signal.SIGKILL in failures.values() else -1
        for rank, ended in sorted(failures.items()):
            if ended == -signal.SIGTERM or known >= 0:
                continue
            how = f"signal {signal.Signals(-ended).name}" if ended < 0 else f"exit code {ended}"
            self._blame(rank, f"worker {rank} ended with {how}", self.watch.reason(rank - first))
            if code == EXIT_FAULT:
                say(f"worker {rank} ended with {how}")
            if rank != first:
                say(self._last_lines(rank - first))
        if self._remaining_restarts:
            say(f"starting the workers again, {self._remaining_restarts} restarts left")

    def _blame(self, rank: int, how: str, reason: str) -> None:
        if self.cause_rank < 0:
            self.cause, self.cause_rank = (f"{how}: {reason}" if reason else how), rank

    def _last_lines(self, local_rank: int) -> str:
        assert self._pcontext is not None
        text = Path(self._pcontext.stderrs[local_rank]).read_text(errors="replace")
        return "\n".join(text.splitlines()[-SHOWN_LINES:])
