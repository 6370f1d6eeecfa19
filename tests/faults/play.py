"""One schedule of faults against one job, and what came of it."""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path

from faults.job import Job
from faults.proxy import Proxy
from faults.schedule import PHASES, draw
from faults.strike import Striker, wait_for_step
from minio_server import MinioServer
from scholarch.errors import EXIT_DONE, EXIT_INTERRUPTED
from scholarch.storage.objects import joined, open_objects
from scholarch.training.checkpoint import committed
from tiny_training import TINY

STEPS = 40
EVERY = 4
OPTIONS = (
    *TINY, f"training.steps={STEPS}", f"training.checkpoint_every={EVERY}", "training.log_every=1",
    "training.precision=fp64", "training.workers=1", "training.global_batch=12", "evaluation.every=1000",
    "data.labels=none",
)  # fmt: skip
SECONDS = 420
"""A schedule that is not at its end by then counts as a hang."""
TOLERANCE = 1e-6
"""Relative, of every step's loss in fp64: what another world size may change by rounding is far below."""
RESTARTS = 8


@dataclass
class Outcome:
    """What a schedule came to.

    Attributes:
        faults: what was done, in order.
        trouble: what must not be; empty: nothing.
        seconds: of wall clock.
        jobs: how often the whole job had to be started again.
        worst: largest relative difference of a step's loss from the undisturbed run.
    """

    seed: int
    faults: list[str] = field(default_factory=list)
    trouble: str = ""
    seconds: float = 0.0
    jobs: int = 0
    worst: float = 0.0


def losses(address: str) -> dict[int, float]:
    """Loss by finished steps, from the run's log."""
    lines = open_objects(address).read("metrics.jsonl").decode().splitlines()
    return {r["step"]: r["loss/total"] for r in map(json.loads, lines) if "loss/total" in r}


def undisturbed(folder: Path) -> dict[int, float]:
    """The losses of the run that nothing happens to: one process, local files."""
    import subprocess
    import sys

    run = folder / "undisturbed"
    command = [
        sys.executable,
        "-m",
        "scholarch.cli",
        "pretrain",
        "--recipe",
        "demo/digits",
        "--run",
        str(run),
    ]
    subprocess.run([*command, *OPTIONS], check=True, capture_output=True, timeout=SECONDS)
    return losses(str(run))


def play(seed: int, folder: Path, expected: dict[int, float]) -> Outcome:
    """Runs a job under the faults of `seed` to its end, and looks at what it left."""
    outcome, began = Outcome(seed), time.monotonic()
    phases = folder / "phases"
    phases.mkdir(parents=True)
    with MinioServer(folder / "minio") as store, Proxy(store.port) as proxy:
        address = joined(store.make_bucket("faults"), "run")
        os.environ.update(store.environment)  # the harness itself asks the store directly
        environment = {
            **os.environ, **store.environment, "AWS_ENDPOINT_URL": proxy.url, "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]),
            "SCHOLARCH_FAULTS": str(phases),
        }  # fmt: skip
        environment.pop("MLFLOW_TRACKING_URI", None)
        try:
            with Job(address, ("--recipe", "demo/digits", *OPTIONS), folder / "nodes", environment) as job:
                striker = Striker(job, store, proxy, phases)
                outcome.faults = striker.said
                _strike_and_finish(seed, job, striker, began + SECONDS)
                outcome.jobs = job.restarts
            outcome.trouble = _look(address, expected, outcome)
        except (TimeoutError, AssertionError) as error:
            outcome.trouble = str(error)
        outcome.seconds = time.monotonic() - began
    return outcome


def _strike_and_finish(seed: int, job: Job, striker: Striker, until: float) -> None:
    for fault in draw(seed, STEPS):
        wait_for_step(job, fault.step // EVERY * EVERY, until - time.monotonic())
        time.sleep(fault.delay)
        if job.alive:
            striker(fault)
    while True:
        codes = job.wait(until - time.monotonic())
        striker.settle()
        for phase in PHASES:  # one that was never reached
            (striker.phases / phase).unlink(missing_ok=True)
        if EXIT_DONE in codes:
            return
        # Drained, or out of nodes, or a full disk that somebody has cleared: people start it again. A launcher that is
        # drained while Python still starts has no handler yet: -15.
        assert job.restarts < RESTARTS, f"does not come to an end: exit codes {codes}"
        assert set(codes) <= {EXIT_INTERRUPTED, -signal.SIGTERM, -signal.SIGKILL, 1, 2}, f"exit codes {codes}"
        job.begin()


def _look(address: str, expected: dict[int, float], outcome: Outcome) -> str:
    found = losses(address)
    if found.keys() != expected.keys():
        return f"steps {sorted(expected.keys() ^ found.keys())} are missing or too many in the log"
    outcome.worst = max(abs(found[step] / expected[step] - 1) for step in expected)
    if outcome.worst > TOLERANCE:
        return f"the curve differs by {outcome.worst:.1e}"
    checkpoints = committed(joined(address, "checkpoints"))
    if not checkpoints or checkpoints[-1].step != STEPS:
        return "the last step is not committed"
    damaged = [f"{c.address}: {damage}" for c in checkpoints if (damage := c.damage())]
    return "; ".join(damaged)
