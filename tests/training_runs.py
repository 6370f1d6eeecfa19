"""Training runs, and what the API server would say of their objects, for tests of the operator's decisions."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from scholarch_operator.conditions import next_status
from scholarch_operator.decide import decide
from scholarch_operator.observed import Job, Observed, Pod, Progress, Run

START = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
SPEC: dict[str, Any] = {
    "image": "registry/scholarch:1",
    "stages": [{"recipe": "demo/digits"}],
    "run": "s3://runs/digits",
}


def after(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def a_run(status: dict[str, Any] | None = None, **spec: Any) -> Run:
    return Run.parse(
        {
            "metadata": {"name": "digits", "namespace": "vision", "uid": "0b5c", "generation": 3},
            "spec": {**SPEC, **spec},
            "status": status,
        }
    )


def a_pod(attempt: int = 1, index: int = 0, **changes: Any) -> Pod:
    """One that runs, on a node of its own."""
    pod = Pod(
        name=f"digits-{attempt}-{index}-abcde",
        attempt=attempt,
        index=index,
        phase="Running",
        node=f"node-{index}",
        started=START,
    )
    return replace(pod, **changes)


def a_job(attempt: int = 1, nodes: str = "1:1", **changes: Any) -> Job:
    most = int(nodes.split(":")[1])
    return replace(Job(f"digits-{attempt}", attempt, nodes=nodes, parallelism=most), **changes)


def seen(*things: Job | Pod, at: float = 0, **changes: Any) -> Observed:
    return Observed(
        now=after(at),
        jobs=tuple(thing for thing in things if isinstance(thing, Job)),
        pods=tuple(thing for thing in things if isinstance(thing, Pod)),
        **changes,
    )


def progress(step: int, at: float, checkpoint: str | None = None) -> Progress:
    return Progress(step=step, total=1000, world_size=2, checkpoint=checkpoint, time=after(at))


def then(run: Run, observed: Observed) -> Run:
    """The run with the status that follows."""
    return replace(run, status=next_status(run, observed, decide(run, observed)))
