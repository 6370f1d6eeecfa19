"""A run's status from what was decided and seen."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Literal

from scholarch_operator.decide import Decision, newest_checkpoint
from scholarch_operator.gang import is_queued
from scholarch_operator.names import RUN_LABEL
from scholarch_operator.observed import Observed, Pod, Run
from scholarch_operator.status import (
    CONDITIONS,
    KEPT_ATTEMPTS,
    MESSAGE_LENGTH,
    Condition,
    ProgressStatus,
    RunStatus,
)

Truth = Literal["True", "False", "Unknown"]
Said = tuple[Truth, str, str]
"""Status, reason and message of a condition."""


def next_status(run: Run, observed: Observed, decision: Decision) -> RunStatus:
    """The status to write; equal to the present one where nothing has changed."""
    before = run.status
    attempts = [*before.attempts, *([decision.ended] if decision.ended else [])]
    recorded = any(attempt.number == decision.attempt for attempt in attempts)
    pods = [] if recorded else list(observed.pods_of(decision.attempt))
    running = [pod for pod in pods if pod.running]
    restarts = sum(a.restarts for a in attempts) + sum(pod.ended_early for pod in pods)
    counted = sum(a.counted_restarts for a in attempts)
    # Not the Job's own count: in it are pods that were suspended before they ran.
    counted += sum(pod.faulty for pod in pods)
    progress = observed.progress
    over = decision.do == "done"
    return RunStatus(
        observed_generation=run.generation,
        conditions=_conditions(run, observed, decision, pods),
        attempt=decision.attempt,
        attempts=attempts[-KEPT_ATTEMPTS:],
        # Pods that are gone cannot be counted again.
        restarts=max(restarts, before.restarts),
        counted_restarts=max(counted, before.counted_restarts),
        nodes=len(running),
        world_size=progress.world_size if progress and running else 0,
        selector=f"{RUN_LABEL}={run.name}",
        progress=_progress(observed) or before.progress,
        last_checkpoint=newest_checkpoint(run, observed),
        mlflow_url=(progress.mlflow_url if progress else "") or before.mlflow_url,
        avoided_nodes=list(decision.avoided),
        waiting=decision.waiting,
        start_time=before.start_time or _first_start(observed.pods),
        completion_time=before.completion_time or (observed.now if over else None),
    )


def unreadable(status: RunStatus, message: str, now: datetime) -> RunStatus:
    """The status of a run whose spec this operator does not understand: what runs goes on, and it is said."""
    before = status.condition("Scheduled")
    same = before is not None and before.status == "False"
    said = Condition(
        type="Scheduled",
        status="False",
        reason="InvalidSpec",
        message=message[:MESSAGE_LENGTH],
        last_transition_time=before.last_transition_time if before and same else now,
    )
    others = [condition for condition in status.conditions if condition.type != "Scheduled"]
    return status.model_copy(update={"conditions": [*others, said]})


def _first_start(pods: Iterable[Pod]) -> datetime | None:
    return min((pod.started for pod in pods if pod.started), default=None)


def _progress(observed: Observed) -> ProgressStatus | None:
    seen = observed.progress
    if seen is None:
        return None
    return ProgressStatus(
        step=seen.step,
        total=seen.total,
        loss=_short(seen.loss),
        images_per_second=_short(seen.images_per_second),
        eta_seconds=round(seen.eta_seconds) if seen.eta_seconds is not None else None,
        slowest_rank=seen.slowest_rank,
        time=seen.aware_time.replace(microsecond=0),
    )


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.5g}")


def _conditions(run: Run, observed: Observed, decision: Decision, pods: list[Pod]) -> list[Condition]:
    said = _said(run, observed, decision, pods)
    found = []
    for kind in CONDITIONS:
        status, reason, message = said[kind]
        before = run.status.condition(kind)
        same = before is not None and before.status == status
        found.append(
            Condition(
                type=kind,
                status=status,
                reason=reason,
                message=message[:MESSAGE_LENGTH],
                last_transition_time=before.last_transition_time if before and same else observed.now,
                observed_generation=run.generation,
            )
        )
    return found


def _said(run: Run, observed: Observed, decision: Decision, pods: list[Pod]) -> dict[str, Said]:
    if decision.do == "done":
        return _at_the_end(run, decision)
    least, most = run.spec.nodes.min, run.spec.nodes.max
    running = sum(pod.running for pod in pods)
    placed = sum(bool(pod.node) and not pod.over and pod.gone_by is None for pod in pods)
    wanted = f"of {least} to {most} nodes" if least < most else f"of {most} nodes"
    suspended = _suspended(run, observed, decision)
    scheduled = _no("TooFewNodes", f"{placed} {wanted}")
    if placed >= least:
        scheduled = _yes("Placed", f"{placed} {wanted}")
    elif suspended[0] == "True":
        scheduled = _no(suspended[1], f"{placed} {wanted}")
    elif observed.refused:
        scheduled = _no("Refused", observed.refused)
    starting = _no("Starting", f"{running} {wanted}") if placed >= least else scheduled
    return {
        "Suspended": suspended,
        "Scheduled": scheduled,
        "Running": _yes("NodesRunning", f"{running} {wanted}") if running >= least else starting,
        "Stalled": _yes("NoProgress", decision.stalled) if decision.stalled else _no("Moving", ""),
        "Complete": _no("Unfinished", ""),
        "Failed": _no("Unfinished", ""),
    }


def _suspended(run: Run, observed: Observed, decision: Decision) -> Said:
    if decision.hold is not None:
        return _yes(decision.hold.reason, decision.hold.message)
    job = observed.job(decision.attempt)
    if job is not None and job.suspended and is_queued(run):
        return _yes("Queued", f"waits in Kueue's queue {run.spec.queue}")
    return _no("Active", "")


def _at_the_end(run: Run, decision: Decision) -> dict[str, Said]:
    over: Said = ("False", "Finished", "")
    if run.status.finished:  # keeps its words
        kept: dict[str, Said] = {c.type: (c.status, c.reason, c.message) for c in run.status.conditions}
        return {kind: kept.get(kind, over) for kind in CONDITIONS}
    found = dict.fromkeys(CONDITIONS, over)
    if decision.complete is not None:
        found["Complete"] = _yes(decision.complete.reason, decision.complete.message)
    if decision.failed is not None:
        found["Failed"] = _yes(decision.failed.reason, decision.failed.message)
    return found


def _yes(reason: str, message: str) -> Said:
    return ("True", reason, message)


def _no(reason: str, message: str) -> Said:
    return ("False", reason, message)
