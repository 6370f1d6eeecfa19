"""Names, labels and annotations of a run's objects: all follow from the run's name and the attempt."""

from __future__ import annotations

import re

from scholarch.config.command import RENDEZVOUS_PORT
from scholarch.config.training_run import GROUP

MANAGER = "scholarch-operator"
RUN_LABEL = f"{GROUP}/run"
ROLE_LABEL = f"{GROUP}/role"
ATTEMPT_LABEL = f"{GROUP}/attempt"
NODES_ANNOTATION = f"{GROUP}/nodes"
"""What a Job was asked to be, as MIN:MAX; its parallelism may be less where Kueue admits it partially."""
WORKER, RENDEZVOUS = "worker", "rendezvous"
INDEX_ANNOTATION = "batch.kubernetes.io/job-completion-index"
MAX_ATTEMPT = 9999


def job_name(run: str, attempt: int) -> str:
    """Of the Job of an attempt."""
    return f"{run}-{attempt}"


def attempt_of(run: str, job: str) -> int | None:
    """The attempt of a run's Job; None for another's."""
    found = re.fullmatch(re.escape(run) + r"-([1-9]\d{0,3})", job)
    return int(found[1]) if found else None


def rendezvous_name(run: str) -> str:
    """Of the pod outside the workers at which the nodes meet, and of its Service."""
    return f"{run}-{RENDEZVOUS}"


def rendezvous_address(run: str) -> str:
    """HOST:PORT, within the run's namespace."""
    return f"{rendezvous_name(run)}:{RENDEZVOUS_PORT}"


def recipes_name(run: str) -> str:
    """Of the ConfigMap of inline recipes."""
    return f"{run}-recipes"


def labels(run: str, role: str | None = None, attempt: int | None = None) -> dict[str, str]:
    """Labels of an object of a run."""
    found = {
        "app.kubernetes.io/name": "scholarch",
        "app.kubernetes.io/instance": run,
        "app.kubernetes.io/managed-by": MANAGER,
        RUN_LABEL: run,
    }
    if role is not None:
        found |= {"app.kubernetes.io/component": role, ROLE_LABEL: role}
    if attempt is not None:
        found[ATTEMPT_LABEL] = str(attempt)
    return found


def selector(run: str, role: str | None = None) -> dict[str, str]:
    """Labels by which a run's pods are found."""
    return {RUN_LABEL: run, **({ROLE_LABEL: role} if role is not None else {})}
