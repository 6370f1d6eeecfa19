"""`python -m scholarch.training.launch`: runs the workers of one node and tells how they ended.

The torchrun command turns every worker's exit code into 1. This command runs torch's elastic agent itself,
so that a scheduler can tell wrong input (2) and a saved interruption (75) from a fault (1), see
docs/decisions/0002-launcher.md.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from torch.distributed import DistError
from torch.distributed.elastic.agent.server.api import WorkerSpec, WorkerState
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.rendezvous import RendezvousError, RendezvousParameters
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

from scholarch.errors import EXIT_DONE, EXIT_INTERRUPTED, EXIT_WRONG_INPUT
from scholarch.training.agent import EXIT_FAULT, Agent, exit_code, say

# Measured: a lost node is given up after 10 s with these, after 46 s with torch's own.
SHORT_TIMERS = {"last_call_timeout": 5, "keep_alive_interval": 1, "keep_alive_max_attempt": 3}
JOIN_SECONDS = 900


@dataclass(frozen=True, kw_only=True)
class Launch:
    """What runs on this node.

    Attributes:
        arguments: of each worker's command.
        module: the command, as in `python -m module`.
        nodes: fewest and most nodes of the run.
        processes: workers on this node.
        rendezvous: HOST:PORT of the store at which the nodes meet; empty for one node alone. A node
            that has this name hosts the store; where none has, it stands outside the workers.
        run_id: the same on all nodes of a run.
        max_restarts: how many faults the workers of this node are started again after; None: 3 with
            several nodes, where the fault may be another one's, and 0 with one.
        grace: seconds that workers have to save in after a signal.
    """

    arguments: tuple[str, ...]
    module: str = "scholarch.cli"
    nodes: tuple[int, int] = (1, 1)
    processes: int = 1
    rendezvous: str = ""
    run_id: str = "scholarch"
    max_restarts: int | None = None
    grace: float = 60.0


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
    alone = not request.rendezvous
    meeting = RendezvousParameters(
        backend="c10d",
        endpoint="localhost:0" if alone else request.rendezvous,
        run_id=request.run_id,
        min_nodes=request.nodes[0],
        max_nodes=request.nodes[1],
        local_addr="localhost" if alone else None,
        join_timeout=JOIN_SECONDS,
        **({} if alone else SHORT_TIMERS),
    )
    with tempfile.TemporaryDirectory(prefix="scholarch-launch-", ignore_cleanup_errors=True) as folder:
        try:
            return _run(request, meeting, folder)
        except (RendezvousError, DistError) as error:
            cause = str(error.__cause__ or error).partition("\n")[0]
            say(f"error: no meeting with the other nodes at {meeting.endpoint}: {cause}")
            return EXIT_FAULT


def _run(request: Launch, meeting: RendezvousParameters, folder: str) -> int:
    spec = WorkerSpec(
        role="worker",
        local_world_size=request.processes,
        entrypoint=sys.executable,
        args=("-m", request.module, *request.arguments),
        rdzv_handler=get_rendezvous_handler(meeting),
        max_restarts=_restarts(request),
        monitor_interval=0.1,
    )
    agent = Agent(spec, folder, request.grace)
    agent.handle_signals()
    try:
        result = agent.run()
    except SignalException:
        done = agent.get_worker_group().state is WorkerState.SUCCEEDED
        return EXIT_DONE if done else EXIT_INTERRUPTED
    codes = [failure.exitcode for failure in result.failures.values()]
    code = exit_code(codes, interrupted=agent.signal is not None)
    if code in (EXIT_DONE, EXIT_WRONG_INPUT):
        # This closes the run's id for good; a node that was interrupted or faulty is to come back.
        spec.rdzv_handler.shutdown()
    return code


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
    add("--run-id", default=Launch.run_id, metavar="ID", help="the same on all nodes of a run (scholarch)")
    add(
        "--max-restarts", type=int, default=Launch.max_restarts, metavar="R", help="restarts after faults (3)"
    )
    add("--grace", type=float, default=Launch.grace, metavar="SECONDS", help="to save in after a signal (60)")
    add("--module", default=Launch.module, help=argparse.SUPPRESS)
    add("arguments", nargs=argparse.REMAINDER, metavar="-- VERB ...", help="the command of each worker")
    options = parser.parse_args(argv)
    options.rendezvous = os.path.expandvars(options.rendezvous)
    options.arguments = tuple(options.arguments[options.arguments[:1] == ["--"] :])
    if options.processes < 1 or (options.max_restarts or 0) < 0 or options.grace < 0:
        parser.error("--processes is at least 1, --max-restarts and --grace are not negative")
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


if __name__ == "__main__":
    sys.exit(main())
