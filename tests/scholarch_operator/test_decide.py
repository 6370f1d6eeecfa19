"""The event table of platform.md, a row at a time."""

from __future__ import annotations

from typing import Any

import pytest
from scholarch_operator.decide import decide
from scholarch_operator.names import ROLE_LABEL, WORKER
from scholarch_operator.observed import Pod
from training_runs import a_job, a_pod, a_run, after, progress, seen, then

CRASHED: dict[str, Any] = {"phase": "Failed", "exit_code": 1}


def test_new_run_runs_its_first_attempt() -> None:
    decision = decide(a_run(), seen())
    assert (decision.do, decision.attempt, decision.ended) == ("run", 1, None)


def test_complete() -> None:
    decision = decide(a_run(), seen(a_job(ended="Complete")))
    assert decision.do == "done"
    assert decision.complete is not None


def test_wrong_input_is_final_and_says_what_to_change() -> None:
    message = '{"reason": "recipe: no such key", "step": 0, "checkpoint": null}'
    pod = a_pod(phase="Failed", exit_code=2, message=message)
    decision = decide(a_run(), seen(a_job(ended="Failed", reason="PodFailurePolicy"), pod))
    assert decision.failed is not None
    assert decision.failed.reason == "WrongInput"
    assert decision.failed.message == "digits-1-0-abcde: recipe: no such key"


def test_crash_begins_another_attempt() -> None:
    failed = a_job(ended="Failed", reason="BackoffLimitExceeded")
    # One that was taken away before it ran has ended early, and by no fault of its own.
    pods = [
        a_pod(**CRASHED, message="boom"),
        a_pod(index=1, **CRASHED),
        a_pod(phase="Failed", exit_code=137, started=None),
    ]
    decision = decide(a_run(), seen(failed, *pods))
    assert (decision.do, decision.attempt) == ("run", 2)
    assert decision.ended is not None
    ended = decision.ended
    assert (ended.reason, ended.counts, ended.restarts, ended.counted_restarts) == ("Crashed", True, 3, 2)


@pytest.mark.parametrize(
    ("asked", "faulty"),
    [
        ({}, True),
        ({"deletionTimestamp": "2026-11-22T12:00:30Z", "deletionGracePeriodSeconds": 0}, False),
        ({"deletionTimestamp": "2026-11-22T12:03:30Z", "deletionGracePeriodSeconds": 180}, False),
        # It had crashed a second before somebody tidied up.
        ({"deletionTimestamp": "2026-11-22T12:00:31Z", "deletionGracePeriodSeconds": 0}, True),
    ],
    ids=["on its own", "by force", "not in time", "later"],
)
def test_what_somebody_takes_away_is_no_fault(asked: dict[str, Any], faulty: bool) -> None:
    times = {"startedAt": "2026-11-22T12:00:00Z", "finishedAt": "2026-11-22T12:00:30Z"}
    pod = Pod.parse(
        "digits",
        {
            "metadata": {
                "name": "digits-1-0-abcde",
                "labels": {ROLE_LABEL: WORKER},
                "ownerReferences": [{"kind": "Job", "name": "digits-1"}],
                **asked,
            },
            "status": {
                "phase": "Failed",
                "containerStatuses": [{"state": {"terminated": {"exitCode": 137, **times}}}],
            },
        },
    )
    assert pod is not None
    assert pod.faulty == faulty
    assert then(a_run(), seen(a_job(), pod)).status.counted_restarts == faulty


def test_crash_loop_ends_the_run_with_its_last_words() -> None:
    run = a_run(retries={"attempts": 2})
    progressed = progress(70, 10, "step-000000050")
    for attempt in (1, 2):
        failed = a_job(attempt, ended="Failed", reason="BackoffLimitExceeded")
        observed = seen(failed, a_pod(attempt, **CRASHED, message="boom"), progress=progressed)
        run = then(run, observed)
    failure = run.status.condition("Failed")
    assert failure is not None
    assert (failure.status, failure.reason) == ("True", "CrashLoop")
    assert "2 attempts ended at checkpoint step-000000050" in failure.message
    assert failure.message.endswith("digits-2-0-abcde: boom")
    assert run.status.completion_time == after(0)


def test_an_advance_of_the_checkpoint_forgives_crashes() -> None:
    run = a_run(retries={"attempts": 2})
    for attempt in (1, 2, 3, 4):
        failed = a_job(attempt, ended="Failed", reason="BackoffLimitExceeded")
        run = then(run, seen(failed, progress=progress(1, 10, f"step-{attempt}")))
    assert not run.status.finished
    assert run.status.attempt == 5


def test_stall_is_told_first_and_then_ends_the_attempt() -> None:
    run = a_run(stallSeconds=100)
    moved = progress(7, 50)
    assert decide(run, seen(a_job(), a_pod(), at=150, progress=moved)).stalled == ""
    told = decide(run, seen(a_job(), a_pod(), at=151, progress=moved))
    assert told.do == "run"
    assert told.stalled.endswith("at step 7")
    ended = decide(run, seen(a_job(), a_pod(), at=251, progress=moved))
    assert ended.ended is not None
    assert (ended.attempt, ended.ended.reason, ended.ended.counts) == (2, "Stalled", True)


@pytest.mark.parametrize(
    ("pod", "known"),
    [(a_pod(started=after(500)), True), (a_pod(), False)],
    ids=["workers were started again, and compile", "the store does not answer"],
)
def test_what_is_no_stall(pod: Any, known: bool) -> None:
    old = progress(7, 50) if known else None
    decision = decide(
        a_run(stallSeconds=100), seen(a_job(), pod, at=1000, progress=old, progress_known=known)
    )
    assert decision.stalled == ""
    assert decision.ended is None


def test_the_report_after_the_last_step_is_no_stall() -> None:
    run, done = a_run(stallSeconds=100), progress(1000, 50)
    assert decide(run, seen(a_job(), a_pod(), at=550, progress=done)).stalled == ""
    assert decide(run, seen(a_job(), a_pod(), at=551, progress=done)).stalled


def test_too_few_nodes_for_too_long_frees_those_that_are_held() -> None:
    run = a_run(nodes={"min": 2, "max": 3}, gang={"timeoutSeconds": 60})
    short = (a_job(nodes="2:3"), a_pod(index=0))
    run = then(run, seen(*short, at=0))
    assert decide(run, seen(*short, at=60)).do == "run"
    held = seen(*short, at=61)
    assert decide(run, held).do == "hold"
    run = then(run, held)
    assert run.status.waiting.retry_at == after(121)
    suspended = a_job(nodes="2:3", suspended=True)
    assert decide(run, seen(suspended, at=120)).do == "hold"
    assert decide(run, seen(suspended, at=121)).do == "run"
    # The second time it waits for twice as long, and enough nodes make it forget.
    run = then(run, seen(suspended, at=121))
    run = then(run, seen(*short, at=122))
    run = then(run, seen(*short, at=183))
    assert run.status.waiting.retry_at == after(183 + 120)
    enough = seen(a_job(nodes="2:3"), a_pod(index=0), a_pod(index=1), at=400)
    assert then(run, enough).status.waiting.times == 0


def test_suspend_and_resume() -> None:
    run = a_run(suspend=True)
    assert decide(run, seen(a_job(), a_pod())).do == "hold"
    assert decide(a_run(), seen(a_job(suspended=True))).do == "run"


def test_kueue_would_start_a_suspended_job_again_so_the_attempt_ends() -> None:
    queued = {"gang": {"backend": "kueue"}, "queue": "team"}
    decision = decide(a_run(suspend=True, **queued), seen(a_job(), a_pod()))
    assert (decision.do, decision.attempt) == ("hold", 2)
    assert decision.ended is not None
    assert not decision.ended.counts
    waiting = decide(a_run({"attempt": 2}, suspend=True, **queued), seen(a_job(deleting=True), a_pod()))
    assert (waiting.do, waiting.attempt, waiting.ended) == ("hold", 2, None)


def test_a_node_that_is_bad_twice_is_avoided() -> None:
    run = a_run(nodes={"min": 1, "max": 2})
    bad = [a_pod(index=1, **CRASHED, name=f"digits-1-1-{suffix}") for suffix in "ab"]
    observed = seen(a_job(nodes="1:2"), a_pod(index=0), *bad)
    decision = decide(run, observed)
    assert decision.avoided == ("node-1",)
    assert decision.ended is not None
    assert (decision.attempt, decision.ended.reason, decision.ended.counts) == (2, "NodeAvoided", False)
    run = then(run, observed)
    assert decide(run, seen(a_job(2, "1:2"), a_pod(2), *bad)).ended is None, "it is known by now"


@pytest.mark.parametrize(
    "pods",
    [
        [a_pod(index=1, **CRASHED)],
        [a_pod(index=1, phase="Failed", exit_code=75, name=name) for name in "ab"],
        [a_pod(index=1, phase="Failed", exit_code=137, disrupted=True, name=name) for name in "ab"],
        [a_pod(index=index, **CRASHED, name=f"{index}{n}") for n in "ab" for index in (0, 1)],
    ],
    ids=["a single fault", "saved interruptions", "preemptions", "every node is bad"],
)
def test_nodes_that_are_not_to_blame(pods: list[Any]) -> None:
    observed = seen(a_job(nodes="1:2"), *([a_pod(index=0)] if pods[0].index else []), *pods)
    assert decide(a_run(nodes={"min": 1, "max": 2}), observed).avoided == ()


@pytest.mark.parametrize(
    ("before", "nodes", "attempt"),
    [
        ("1:2", {"min": 1, "max": 4}, 1),
        ("1:4", {"min": 1, "max": 2}, 1),
        ("1:2", {"min": 2, "max": 2}, 2),
        ("2:4", {"min": 1, "max": 4}, 2),
        ("2:2", {"min": 3, "max": 3}, 2),
    ],
)
def test_resize_needs_an_attempt_only_where_the_launcher_was_told_otherwise(
    before: str, nodes: dict[str, int], attempt: int
) -> None:
    pods = [a_pod(index=index) for index in range(4)]
    assert decide(a_run(nodes=nodes), seen(a_job(nodes=before), *pods)).attempt == attempt


def test_cancel() -> None:
    decision = decide(a_run(cancel=True), seen(a_job(), a_pod()))
    assert decision.do == "done"
    assert decision.failed is not None
    assert decision.failed.reason == "Cancelled"
    assert decide(a_run(cancel=True), seen(a_job(ended="Complete"))).complete is not None, (
        "it was done before"
    )


def test_a_gang_that_the_cluster_does_not_know() -> None:
    run = a_run(gang={"backend": "volcano"})
    decision = decide(run, seen(missing_api="scheduling.volcano.sh/v1beta1"))
    assert decision.hold is not None
    assert "scheduling.volcano.sh/v1beta1" in decision.hold.message
    assert decide(run, seen()).do == "run", "it is tried again"
