"""From a run and what is observed to what is to be done about it: the operator's whole behaviour, and pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta

from scholarch_operator import names
from scholarch_operator.conditions import next_status
from scholarch_operator.decide import Decision, decide
from scholarch_operator.gang import is_queued, partial_admission, pod_groups
from scholarch_operator.job import asked, job
from scholarch_operator.objects import Manifest, lasting
from scholarch_operator.observed import Job, Observed, Run
from scholarch_operator.settings import Settings
from scholarch_operator.status import RunStatus

KEPT_JOBS = 3
"""Ended attempts whose Jobs stay, for their logs."""
LOST_AFTER = timedelta(seconds=60)
"""After a pod should have been gone, its node counts as lost and is not waited for."""


@dataclass(frozen=True)
class Plan:
    """What to do, in this order. Doing it twice does nothing more.

    Attributes:
        status: to write, when it differs from the present one. A new attempt is written down first and alone.
        apply: server-side.
        create: Jobs; one that exists already is left as it is, for its template cannot change.
        patch: Jobs by name, and a merge patch.
        delete: names of Jobs, with their pods.
        delete_run: the run is over for longer than it was to be kept.
        events: reason and message of what is worth telling.
    """

    status: RunStatus
    apply: tuple[Manifest, ...] = ()
    create: tuple[Manifest, ...] = ()
    patch: tuple[tuple[str, Manifest], ...] = ()
    delete: tuple[str, ...] = ()
    delete_run: bool = False
    events: tuple[tuple[str, str], ...] = field(default=())


def plan(run: Run, observed: Observed, settings: Settings) -> Plan:
    """What to do about a run."""
    if run.deleting:
        return Plan(run.status)  # its objects follow by their owner references
    decision = decide(run, observed)
    status = next_status(run, observed, decision)
    events = _events(run, status, decision)
    if decision.attempt != run.status.attempt:
        return Plan(status, events=events)
    current = observed.job(decision.attempt)
    # The objects are of the status that is written, as avoided nodes are, and not of one to come.
    meeting = decision.do == "run" or any(not pod.over for pod in observed.pods)
    apply = (*lasting(run, settings, meeting=meeting), *pod_groups(run))
    return Plan(
        status,
        apply=apply,
        create=(job(run, decision.attempt, settings),) if _may_start(observed, decision) else (),
        patch=_patches(run, decision, current),
        delete=_superfluous(observed, decision),
        delete_run=_outlived(run, observed),
        events=events,
    )


def _may_start(observed: Observed, decision: Decision) -> bool:
    """Whether the attempt's Job is missing and nothing of an earlier one is still at work."""
    if decision.do != "run" or observed.job(decision.attempt) is not None:
        return False
    if any(not job.ended for job in observed.jobs):
        return False
    return all(
        pod.over or (pod.gone_by is not None and observed.now > pod.gone_by + LOST_AFTER)
        for pod in observed.pods
    )


def _patches(run: Run, decision: Decision, current: Job | None) -> tuple[tuple[str, Manifest], ...]:
    if current is None or current.ended or current.deleting:
        return ()
    spec: Manifest = {}
    annotations: Manifest = {}
    nodes = run.spec.nodes
    if decision.do == "run" and current.nodes != asked(nodes):
        annotations = {names.NODES_ANNOTATION: asked(nodes)}
        spec = {"parallelism": nodes.max, "completions": nodes.max}
        if is_queued(run):
            # Kueue refuses another size while the Job runs; it admits the suspended one anew.
            annotations |= partial_admission(run)
            spec["suspend"] = True
    if not is_queued(run) and current.suspended != (decision.do == "hold"):
        spec["suspend"] = decision.do == "hold"
    if not spec or decision.do == "done":
        return ()
    metadata = {"metadata": {"annotations": annotations}} if annotations else {}
    return ((current.name, {**metadata, "spec": spec}),)


def _superfluous(observed: Observed, decision: Decision) -> tuple[str, ...]:
    live = [job for job in observed.jobs if not job.deleting]
    ended = [job.name for job in live if job.ended]
    # What is decided against goes on for nothing: an earlier attempt, or one of a run that is over.
    useless = [job.name for job in live if not job.ended and _is_useless(job, decision)]
    return (*useless, *ended[:-KEPT_JOBS])


def _is_useless(job: Job, decision: Decision) -> bool:
    return job.attempt < decision.attempt or decision.do == "done"


def _outlived(run: Run, observed: Observed) -> bool:
    end, kept = run.status.completion_time, run.spec.ttl_seconds
    if not run.status.finished or end is None or kept is None:
        return False
    return observed.now > end + timedelta(seconds=kept)


def _events(run: Run, status: RunStatus, decision: Decision) -> tuple[tuple[str, str], ...]:
    found = []
    if decision.ended is not None:
        found.append((decision.ended.reason, f"attempt {decision.ended.number}: {decision.ended.message}"))
    for condition in status.conditions:
        before = run.status.condition(condition.type)
        changed = before is None or before.status != condition.status
        if changed and condition.status == "True":
            found.append((f"{condition.type}{condition.reason}", condition.message))
    return tuple(found)
