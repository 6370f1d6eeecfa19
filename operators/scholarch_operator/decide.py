"""What a run should be doing now: pure, from its spec, its status and what is observed.

An attempt is one Job. Its number lives in the status and is written there before anything is done about it,
so that an operator killed at any moment goes on with the same attempt. Attempts follow one another where
a Job cannot go on: it crashed, it hangs, its pod template has to change, or Kueue would start it again.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Literal

from scholarch.errors import EXIT_WRONG_INPUT

from scholarch_operator.gang import is_queued
from scholarch_operator.job import launch_nodes
from scholarch_operator.observed import Job, Observed, Pod, Run
from scholarch_operator.status import MESSAGE_LENGTH, Attempt, Waiting

FIRST_BACKOFF, LONGEST_BACKOFF = timedelta(minutes=1), timedelta(hours=1)
POISONED_BY = 2
"""Faults on one node after which a run keeps away from it."""
MAX_AVOIDED = 16
SETTLING_FACTOR = 5
"""As the launcher's watchdog: compilation before the first step and the report after the last take longer."""


@dataclass(frozen=True)
class End:
    """How a run, or an attempt, came to its end.

    Attributes:
        reason: CamelCase, for a condition.
    """

    reason: str
    message: str = ""


@dataclass(frozen=True)
class Decision:
    """What follows from what is seen.

    Attributes:
        do: run the current attempt; hold: no pods for now; done: nothing more, ever.
        attempt: the current one.
        ended: the attempt that is over by this decision.
        hold: why it is on hold.
        complete, failed: how the run ended; neither while it goes on.
        stalled: why it counts as stalled; empty while it does not.
        waiting: what to remember about too few nodes.
        avoided: nodes to keep away from.
    """

    do: Literal["run", "hold", "done"]
    attempt: int
    ended: Attempt | None = None
    hold: End | None = None
    complete: End | None = None
    failed: End | None = None
    stalled: str = ""
    waiting: Waiting = field(default_factory=Waiting)
    avoided: tuple[str, ...] = ()


def decide(run: Run, observed: Observed) -> Decision:
    """The decision; the same for the same arguments."""
    attempt = max([run.status.attempt, *(job.attempt for job in observed.jobs)])
    job = observed.job(attempt)
    now = Decision("run", attempt, waiting=run.status.waiting, avoided=tuple(run.status.avoided_nodes))
    if run.status.finished:
        return replace(now, do="done")
    if job is not None and job.ended == "Complete":
        return replace(now, do="done", complete=End("Succeeded", "all steps are done and saved"))
    if run.spec.cancel:
        return replace(now, do="done", failed=End("Cancelled", "spec.cancel is set"))
    if job is not None and job.ended == "Failed":
        return _after_failure(now, run, observed, job)
    live = job is not None and not job.deleting
    held = _held(run, observed)
    if held is not None:
        return _hold(now, run, observed, held, live=live)
    if job is None or job.deleting:
        return replace(now, waiting=Waiting(times=run.status.waiting.times))
    if not job.suspended:
        changed = _look_at_nodes(now, run, observed)
        if changed is not None:
            return changed
    if launch_nodes_changed(job, run):
        message = f"nodes {job.nodes} -> {run.spec.nodes.min}:{run.spec.nodes.max}"
        return _next(now, run, observed, End("Resized", message), counts=False)
    return _watch(now, run, observed, job)


def launch_nodes_changed(job: Job, run: Run) -> bool:
    """Whether a change of the nodes needs another pod template, for the launcher is told of the least number."""
    if not job.nodes:
        return False
    least, most = (int(number) for number in job.nodes.split(":"))
    before = run.spec.nodes.model_copy(update={"min": least, "max": most})
    return launch_nodes(before) != launch_nodes(run.spec.nodes)


def _after_failure(now: Decision, run: Run, observed: Observed, job: Job) -> Decision:
    pods = observed.pods_of(job.attempt)
    wrong = [pod for pod in pods if pod.exit_code == EXIT_WRONG_INPUT]
    if wrong or job.reason == "PodFailurePolicy":
        return replace(now, do="done", failed=End("WrongInput", _last_words(wrong) or job.message))
    message = _last_words([pod for pod in pods if pod.faulty]) or job.message
    now = replace(now, avoided=_avoided(run, observed))
    return _next(now, run, observed, End("Crashed", message), counts=True)


def _held(run: Run, observed: Observed) -> End | None:
    if run.spec.suspend:
        return End("Requested", "spec.suspend is set")
    if observed.missing_api:
        fix = "set gang.backend to none or kueue in another run"
        return End("GangUnavailable", f"the cluster does not serve {observed.missing_api}; {fix}")
    retry_at = run.status.waiting.retry_at
    if retry_at is not None and observed.now < retry_at:
        return End("TooFewNodes", f"fewer than {run.spec.nodes.min} nodes; tried again at {_clock(retry_at)}")
    return None


def _hold(now: Decision, run: Run, observed: Observed, why: End, *, live: bool) -> Decision:
    now = replace(now, do="hold", hold=why)
    # Kueue would start a Job again that somebody else suspends: there, the attempt ends.
    return _next(now, run, observed, why, counts=False) if live and is_queued(run) else now


def _look_at_nodes(now: Decision, run: Run, observed: Observed) -> Decision | None:
    avoided = _avoided(run, observed)
    if set(avoided) - set(now.avoided):
        new = ", ".join(sorted(set(avoided) - set(now.avoided)))
        end = End("NodeAvoided", f"{POISONED_BY} faults on {new}")
        return _next(replace(now, avoided=avoided), run, observed, end, counts=False)
    return None


def _watch(now: Decision, run: Run, observed: Observed, job: Job) -> Decision:
    """A Job that goes on: has it enough nodes, and does it get ahead?"""
    if job.suspended:
        # Kueue's queue, or just resumed: the time of waiting for nodes begins when it starts.
        return replace(now, waiting=Waiting(times=run.status.waiting.times))
    running = [pod for pod in observed.pods_of(job.attempt) if pod.running]
    if len(running) < run.spec.nodes.min:
        return _short_of_nodes(now, run, observed)
    now = replace(now, waiting=Waiting())
    moved = _last_moved(running, observed)
    if moved is None:
        return now
    still, factor = moved
    limit = factor * timedelta(seconds=run.spec.stall_seconds)
    if observed.now - still <= limit:
        return now
    where = f"at step {observed.progress.step}" if observed.progress else "before the first step"
    message = f"nothing has moved since {_clock(still)}, {where}"
    if observed.now - still > 2 * limit:  # the watchdog in the pods has had its turn
        return _next(now, run, observed, End("Stalled", message), counts=True)
    return replace(now, stalled=message)


def _short_of_nodes(now: Decision, run: Run, observed: Observed) -> Decision:
    before = run.status.waiting
    since = before.since or observed.now
    if observed.now - since <= timedelta(seconds=run.spec.gang.timeout_seconds):
        return replace(now, waiting=Waiting(since=since, times=before.times))
    backoff = min(FIRST_BACKOFF * 2 ** min(before.times, 6), LONGEST_BACKOFF)
    waiting = Waiting(retry_at=observed.now + backoff, times=before.times + 1)
    why = End("TooFewNodes", f"fewer than {run.spec.nodes.min} nodes since {_clock(since)}")
    return _hold(replace(now, waiting=waiting), run, observed, why, live=True)


def _last_moved(running: list[Pod], observed: Observed) -> tuple[datetime, int] | None:
    """When the run last moved, and how many times its limit holds now; None where nobody can know."""
    started = max((pod.started for pod in running if pod.started is not None), default=None)
    if not observed.progress_known or started is None:
        return None
    progress = observed.progress
    if progress is None or progress.aware_time <= started:
        return started, SETTLING_FACTOR
    last = 0 < progress.total <= progress.step
    return progress.aware_time, SETTLING_FACTOR if last else 1


def _next(now: Decision, run: Run, observed: Observed, end: End, *, counts: bool) -> Decision:
    """The attempt is over: another one follows, unless the last ones all ended at the same checkpoint."""
    checkpoint = newest_checkpoint(run, observed)
    pods = observed.pods_of(now.attempt)
    ended = Attempt(
        number=now.attempt,
        reason=end.reason,
        message=end.message[:MESSAGE_LENGTH],
        counts=counts,
        checkpoint=checkpoint,
        ended=observed.now,
        restarts=sum(pod.ended_early for pod in pods),
        counted_restarts=sum(pod.faulty for pod in pods),
    )
    after = replace(now, attempt=now.attempt + 1, ended=ended)
    if not counts:
        return after
    same = 1
    for attempt in reversed([attempt for attempt in run.status.attempts if attempt.counts]):
        if attempt.checkpoint != checkpoint:
            break
        same += 1
    if same < run.spec.retries.attempts:
        return after
    where = f"at checkpoint {checkpoint}" if checkpoint else "before the first checkpoint"
    words = f"; the last one said: {end.message}" if end.message else ""
    failed = End("CrashLoop", f"{same} attempts ended {where} ({end.reason}){words}")
    return replace(now, do="done", ended=ended, failed=failed)


def newest_checkpoint(run: Run, observed: Observed) -> str:
    """As far as the operator knows."""
    if observed.progress is not None and observed.progress.checkpoint is not None:
        return str(observed.progress.checkpoint)
    return run.status.last_checkpoint


def _avoided(run: Run, observed: Observed) -> tuple[str, ...]:
    """Nodes on which pods of this run ended by faults of their own more than once."""
    faults = Counter(pod.node for pod in observed.pods if pod.faulty and pod.node)
    bad = {node for node, count in faults.items() if count >= POISONED_BY}
    before = run.status.avoided_nodes
    # Where all nodes are bad it is not the nodes.
    new = sorted(bad - set(before)) if {pod.node for pod in observed.pods if pod.node} - bad else []
    return tuple([*before, *new][:MAX_AVOIDED])


def _last_words(pods: list[Pod]) -> str:
    """What the pod that ended last said, with its name."""
    said = [pod for pod in pods if pod.message]
    if not said:
        return ""
    last = max(said, key=lambda pod: (pod.ended.timestamp() if pod.ended else 0.0, pod.name))
    return f"{last.name}: {last.reason}"


def _clock(time: datetime) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%SZ")
