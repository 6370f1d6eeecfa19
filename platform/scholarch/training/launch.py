"""`python -m scholarch.training.launch`: runs the workers of one node and tells how they ended.

The torchrun command turns every worker's exit code into 1. This command runs torch's elastic agent itself,
so that a scheduler can tell wrong input (2) and a saved interruption (75) from a fault (1), see
docs/decisions/0002-launcher.md.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import NoReturn

from torch.distributed import DistError
from torch.distributed.elastic.agent.server.api import WorkerSpec, WorkerState
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.rendezvous import (
    RendezvousConnectionError,
    RendezvousError,
    RendezvousParameters,
)
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

from scholarch.errors import EXIT_DONE, EXIT_INTERRUPTED, EXIT_WRONG_INPUT, RunFailed, UserError
from scholarch.storage.code import bring
from scholarch.training.agent import EXIT_FAULT, SIGNALS, Agent, exit_code, say
from scholarch.training.distributed import COLLECTIVE_TIMEOUT, COLLECTIVE_TIMEOUT_SECONDS
from scholarch.training.memory import memory
from scholarch.training.watch import SETTLING_FACTOR

# With torch's own a lost node is given up after 46 s (measured). Five seconds of silence are more than
# a busy machine needs, and more than clocks may differ by, which torch compares.
SHORT_TIMERS = {
    "last_call_timeout": 5,
    "keep_alive_interval": 1,
    "keep_alive_max_attempt": 5,
    "read_timeout": 15,
}
STORE_PAUSE_SECONDS = 1.0
REASON_LENGTH = 2000
"""Kubernetes keeps 4,096 bytes of a termination message."""


@dataclass(frozen=True, kw_only=True)
class Launch:
    """What runs on this node.

    Attributes:
        arguments: of each worker's command.
        module: the command, as in `python -m module`.
        nodes: fewest and most nodes of the run.
        processes: workers on this node.
        rendezvous: HOST:PORT of the store at which the nodes meet; empty for one node alone. Where the
            number of nodes is fixed, a node that has this name hosts the store; else it stands outside
            (scholarch.training.store), so that any node may be lost.
        address: under which the other nodes reach this one; empty: its host name.
        run_id: the same on all nodes of a run.
        max_restarts: how many faults in a row, without a new checkpoint between them, the workers of this
            node are started again after; None: 3 with several nodes, where the fault may be another
            one's, and 0 with one.
        grace: seconds that workers have to save in after a signal.
        stall: seconds without a finished step after which a worker hangs; 0: never.
        collective_timeout: seconds after which an exchange between workers is given up.
        join: seconds to wait for the store and for enough nodes.
        termination_message: file for a JSON object {reason, step, checkpoint, rank} at the end.
        code: archive of packages that the workers import in place of the installed ones.
    """

    arguments: tuple[str, ...]
    module: str = "scholarch.cli"
    nodes: tuple[int, int] = (1, 1)
    processes: int = 1
    rendezvous: str = ""
    address: str = ""
    run_id: str = "scholarch"
    max_restarts: int | None = None
    grace: float = 60.0
    stall: float = 240.0
    collective_timeout: float = COLLECTIVE_TIMEOUT_SECONDS
    join: float = 900.0
    termination_message: Path | None = None
    code: str = ""


@dataclass
class Ending:
    """How the workers of this node ended, for the termination message.

    Attributes:
        reason: in words.
        step: finished steps; None: no worker trained here.
        checkpoint: step of the newest checkpoint; None: there is none, or this node knows of none.
        rank: the worker that the reason is about; None: all.
    """

    reason: str = ""
    step: int | None = None
    checkpoint: int | None = None
    rank: int | None = None

    def of(self, agent: Agent, code: int) -> None:
        """Takes over what an agent saw."""
        watch = agent.watch
        watch.read()
        self.step = watch.step if watch.beats else self.step
        self.checkpoint = watch.committed if watch.committed >= 0 else self.checkpoint
        self.reason, self.rank = {EXIT_DONE: "done", EXIT_INTERRUPTED: "interrupted"}.get(code, ""), None
        if not self.reason:
            self.reason, self.rank = agent.cause or f"exit code {code}", max(agent.cause_rank, 0)


def launch(request: Launch) -> int:
    """Runs the workers of this node to their end; returns the exit code that tells how they ended."""
    # A store shared between rounds kills every agent when a node joins again (measured).
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    # Names the run folder where none is given: the same when workers are started again.
    os.environ.setdefault("SCHOLARCH_STARTED", time.strftime("%Y%m%d-%H%M%S"))
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, _cores() // request.processes)))
    if "LOGLEVEL" not in os.environ:  # torch's warnings repeat what the agent says
        logging.getLogger("torch.distributed.elastic").propagate = False
        logging.getLogger("torch.distributed.elastic").addHandler(logging.NullHandler())
    os.environ[COLLECTIVE_TIMEOUT] = f"{request.collective_timeout:g}"
    ending = Ending()
    try:
        _bring_code(request.code)
        # Without restarts nobody is there to read what was kept.
        with memory() if _restarts(request) else nullcontext():
            code = _attempts(request, ending)
    except SignalException:
        code, ending.reason = EXIT_INTERRUPTED, "interrupted"
    except (UserError, RunFailed) as error:
        code, ending.reason = error.exit_code, str(error)
        say(f"error: {ending.reason}")
    if request.termination_message is not None:
        _leave_message(request.termination_message, ending)
    return code


def _bring_code(address: str) -> None:
    """Puts the packages of an archive before those that are installed, for the workers; not for this process."""
    if address:
        folder = bring(address, Path(tempfile.gettempdir()) / f"scholarch-code-{os.getuid()}")
        others = os.environ.get("PYTHONPATH", "")
        os.environ["PYTHONPATH"] = f"{folder}{os.pathsep}{others}" if others else str(folder)


def _attempts(request: Launch, ending: Ending) -> int:
    """Meets the other nodes and runs the workers; again when the store is lost meanwhile."""
    meeting = _meeting(request)
    until = time.monotonic() + (request.join if request.rendezvous else 0.0)
    while True:
        for number in SIGNALS:
            signal.signal(number, _end_early)
        agent = None
        try:
            with tempfile.TemporaryDirectory(
                prefix="scholarch-launch-", ignore_cleanup_errors=True
            ) as folder:
                agent = _agent(request, meeting, Path(folder))
                return _run(agent, ending)
        except RendezvousConnectionError as error:
            if agent is not None and agent.started:
                say(f"the store at {meeting.endpoint} does not answer; the workers are ended and wait for it")
                os.environ["SCHOLARCH_RESTART"] = "1"
                until = time.monotonic() + request.join
            if time.monotonic() >= until:
                return _no_meeting(meeting, error, ending)
            time.sleep(STORE_PAUSE_SECONDS)
        except (RendezvousError, DistError) as error:
            return _no_meeting(meeting, error, ending)


def _meeting(request: Launch) -> RendezvousParameters:
    alone = not request.rendezvous
    fixed = request.nodes[0] == request.nodes[1]
    return RendezvousParameters(
        backend="c10d",
        endpoint="localhost:0" if alone else request.rendezvous,
        run_id=request.run_id,
        min_nodes=request.nodes[0],
        max_nodes=request.nodes[1],
        local_addr="localhost" if alone else request.address or None,
        join_timeout=int(request.join),
        **({} if alone else SHORT_TIMERS),
        # Where nodes leave, none may take the store along, also when it is on this very machine.
        **({} if fixed else {"is_host": False}),
    )


def _agent(request: Launch, meeting: RendezvousParameters, folder: Path) -> Agent:
    spec = WorkerSpec(
        role="worker",
        local_world_size=request.processes,
        entrypoint=sys.executable,
        args=("-m", request.module, *request.arguments),
        rdzv_handler=get_rendezvous_handler(meeting),
        max_restarts=_restarts(request),
        monitor_interval=0.1,
    )
    elastic = request.nodes[0] < request.nodes[1]
    return Agent(spec, folder, request.grace, request.stall, elastic=elastic)


def _run(agent: Agent, ending: Ending) -> int:
    agent.handle_signals()
    code = EXIT_INTERRUPTED
    try:
        result = agent.run()
        codes = [failure.exitcode for failure in result.failures.values()]
        code = exit_code(codes, interrupted=agent.signal is not None, saved=agent.saved)
    except SignalException:
        code = EXIT_DONE if agent.get_worker_group().state is WorkerState.SUCCEEDED else EXIT_INTERRUPTED
    finally:
        ending.of(agent, code)
    if code in (EXIT_DONE, EXIT_WRONG_INPUT):
        # This closes the run's id for good; a node that was interrupted or faulty is to come back.
        agent.get_worker_group().spec.rdzv_handler.shutdown()
    return code


def _no_meeting(meeting: RendezvousParameters, error: Exception, ending: Ending) -> int:
    cause = str(error.__cause__ or error).partition("\n")[0]
    ending.reason = f"no meeting with the other nodes at {meeting.endpoint}: {cause}"
    say(f"error: {ending.reason}")
    return EXIT_FAULT


def _end_early(number: int, _frame: FrameType | None) -> NoReturn:
    raise SignalException("before any worker was started", signal.Signals(number))


def _leave_message(path: Path, ending: Ending) -> None:
    content = {**asdict(ending), "reason": ending.reason[:REASON_LENGTH]}
    try:
        # Not by a rename: Kubernetes mounts this very file.
        path.write_text(json.dumps(content))
    except OSError as error:
        say(f"warning: no termination message: {error}")


def _restarts(request: Launch) -> int:
    if request.max_restarts is None:
        return 3 if request.nodes[1] > 1 else 0
    return request.max_restarts


def _cores() -> int:
    """Cores that this process may use: the scheduler's mask, or fewer by a container's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cores = min(cores, max(1, int(quota) // int(period)))
    return cores


def _nodes(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"([1-9]\d*)(?::(\d+))?", text)
    nodes = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
    if nodes[0] > nodes[1]:
        raise argparse.ArgumentTypeError(f"{text!r}: write N, or MIN:MAX with 1 <= MIN <= MAX")
    return nodes


def _parse(argv: Sequence[str] | None) -> Launch:
    parser = argparse.ArgumentParser(
        prog="python -m scholarch.training.launch",
        description="Runs `scholarch VERB ...` on the workers of this node. "
        "Exit codes: 0 done, 2 wrong input, 75 interrupted and resumable, 1 a fault.",
    )
    add = parser.add_argument
    add("--nodes", type=_nodes, default="1", metavar="MIN[:MAX]", help="nodes of the run (1)")
    add("--processes", type=int, default=1, metavar="K", help="workers on this node (1)")
    add(
        "--rendezvous",
        default="",
        metavar="HOST:PORT",
        help="where nodes meet; $NAME is an environment variable",
    )
    add("--address", default="", metavar="HOST", help="of this node, for the others (its host name)")
    add("--run-id", default=Launch.run_id, metavar="ID", help="the same on all nodes of a run (scholarch)")
    add(
        "--max-restarts", type=int, default=Launch.max_restarts, metavar="R", help="restarts after faults (3)"
    )
    add("--grace", type=float, default=Launch.grace, metavar="SECONDS", help="to save in after a signal (60)")
    add(
        "--stall",
        type=float,
        default=Launch.stall,
        metavar="SECONDS",
        help=f"without a step, after which a worker hangs; {SETTLING_FACTOR} times as long before the first "
        f"and after the last one; 0: never ({Launch.stall:g})",
    )
    add(
        "--collective-timeout",
        type=float,
        default=Launch.collective_timeout,
        metavar="SECONDS",
        help=f"after which an exchange between workers is given up ({Launch.collective_timeout:g})",
    )
    add(
        "--join",
        type=float,
        default=Launch.join,
        metavar="SECONDS",
        help=f"to wait for the store and for enough nodes ({Launch.join:g})",
    )
    add(
        "--termination-message",
        type=Path,
        metavar="FILE",
        help="where a JSON object {reason, step, checkpoint, rank} is left at the end",
    )
    add(
        "--code",
        default="",
        metavar="ARCHIVE",
        help="packages in place of the installed ones: s3://.../SHA256.tar.gz, which is verified",
    )
    add("--module", default=Launch.module, help=argparse.SUPPRESS)
    add("arguments", nargs=argparse.REMAINDER, metavar="-- VERB ...", help="the command of each worker")
    options = parser.parse_args(argv)
    options.rendezvous = os.path.expandvars(options.rendezvous)
    options.address = os.path.expandvars(options.address)
    options.arguments = tuple(options.arguments[options.arguments[:1] == ["--"] :])
    if options.processes < 1 or min(options.max_restarts or 0, options.grace, options.stall) < 0:
        parser.error("--processes is at least 1, --max-restarts, --grace and --stall are not negative")
    if min(options.collective_timeout, options.join) < 1:
        parser.error("--collective-timeout and --join are at least 1")
    if options.nodes[1] > 1 and not options.rendezvous:
        parser.error("more than one node: say with --rendezvous HOST:PORT where they meet")
    if options.rendezvous and not re.fullmatch(r"[^$\s]+:\d+", options.rendezvous):
        parser.error(f"argument --rendezvous: {options.rendezvous!r} is not HOST:PORT")
    if not options.arguments:
        parser.error("nothing to run: give the command after --, as in `-- pretrain --recipe demo/digits`")
    return Launch(**vars(options))


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    return launch(_parse(argv))


def leave(code: int) -> NoReturn:
    """Ends this process at once.

    The rendezvous beats its heart in a daemon thread. One that is inside C++ while Python ends takes the process
    along: SIGABRT, "terminate called without an active exception", and the exit code is lost.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    leave(main())
