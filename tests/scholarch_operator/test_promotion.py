"""What the operator does about a promotion, step by step, from what it sees."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from promotion_parts import a_policy, a_result, data
from scholarch.config.training_run import TrainingRunSpec
from scholarch.registry.history import Act, replay
from scholarch.registry.promotion import Standing
from scholarch_operator.evaluation_run import evaluation_run, read_evaluation
from scholarch_operator.job import verb_arguments
from scholarch_operator.promotion import EvaluationRun, Promotion, Seen, Step, next_step, purpose, unreadable
from scholarch_operator.promotion_status import PromotionStatus
from training_runs import START, after

POLICY = a_policy({"bound": 0.5, "allowedRegression": 0.02}, evaluation={"image": "registry/scholarch:1"})


def a_promotion(annotations: dict[str, str] | None = None, **spec: Any) -> Promotion:
    metadata = {"name": "dino", "namespace": "vision", "uid": "7f", "annotations": annotations or {}}
    return Promotion.parse({"metadata": metadata, "spec": {"policy": "dino", **spec}})


def standing(*acts: Act, **aliases: str) -> Standing:
    return Standing(aliases, replay(acts), "champion")


def promoted(number: int, before: str, after: str, **more: Any) -> Act:
    kind = more.pop("kind", "promotion")
    return Act(number=number, kind=kind, before=before, after=after, by="", time=0.0, done=True, **more)


def seen(where: Standing | None = None, *runs: EvaluationRun, **more: Any) -> Seen:
    found = {"now": START, "policy": POLICY, "standing": where, "runs": runs} | more
    return Seen(**found)


def a_run(version: str, attempt: int = 1, state: Any = "Running", message: str = "") -> EvaluationRun:
    wanted = purpose(POLICY, version, "digits")
    return EvaluationRun(f"dino-{wanted}-{attempt}", wanted, attempt, state, message)


def results(**values: float) -> dict[str, Any]:
    return {name[1:]: {"digits": a_result(name[1:], value)} for name, value in values.items()}


def conditions(step: Step) -> dict[str, str]:
    return {c.type: c.reason for c in step.status.conditions if c.status == "True"}


def test_candidate_and_champion_are_evaluated_side_by_side() -> None:
    where = standing(candidate="2", champion="1")
    step = next_step(a_promotion(), seen(where))
    assert [(start.version, start.attempt) for start in step.start] == [("2", 1), ("1", 1)]
    assert conditions(step) == {"Evaluating": "Running", "Reachable": "Answers"}
    assert (step.status.verdict, step.status.candidate, step.status.champion) == ("evaluate", "2", "1")
    waiting = next_step(a_promotion(), seen(where, a_run("1"), a_run("2")))
    assert (waiting.start, waiting.record) == ((), None)
    assert [(e.version, e.state) for e in waiting.status.evaluations] == [("2", "Running"), ("1", "Running")]
    # The champion has a result of the policy's data already.
    assert [s.version for s in next_step(a_promotion(), seen(where, results=results(v1=0.9))).start] == ["2"]
    other = results(v1=0.9) | {"1": {"digits": a_result("1", 0.9, data={"digits": data("cd" * 16)})}}
    assert [s.version for s in next_step(a_promotion(), seen(where, results=other)).start] == ["2", "1"]


def test_evaluation_is_a_training_run() -> None:
    policy = POLICY.model_copy(
        update={"suites": [POLICY.suites[0].model_copy(update={"overrides": ["a.b=1"]})]}
    )
    start = next_step(a_promotion(), seen(standing(candidate="2"), policy=policy)).start[0]
    manifest = evaluation_run(a_promotion(), policy, start)
    spec = TrainingRunSpec.parse(manifest["spec"])
    assert verb_arguments(spec) == [
        "evaluate", "models:/dino/2", "--suite", "digits", "--to", "/tmp/evaluation", "--json", "a.b=1",
    ]  # fmt: skip
    assert manifest["metadata"]["ownerReferences"][0]["kind"] == "ModelPromotion"
    read = read_evaluation(manifest)
    assert read == EvaluationRun(manifest["metadata"]["name"], start.purpose, 1, "Running")
    failed = {"type": "Failed", "status": "True", "reason": "CrashLoop", "message": "no memory"}
    manifest["status"] = {"conditions": [{**failed, "lastTransitionTime": "2026-11-22T12:00:00Z"}]}
    read = read_evaluation(manifest)
    assert read is not None
    assert (read.state, read.message) == ("Failed", "CrashLoop: no memory")


def test_a_failed_evaluation_is_tried_again_then_told_and_never_promotes() -> None:
    where = standing(candidate="2")
    tried = next_step(a_promotion(), seen(where, a_run("2", 1, "Failed"), a_run("2", 2, "Failed")))
    assert [start.attempt for start in tried.start] == [3]
    assert ("EvaluationRetried", "version 2 on digits") in tried.events
    runs = [a_run("2", number, "Failed", "CrashLoop: no memory") for number in (1, 2, 3)]
    over = next_step(a_promotion(), seen(where, *runs))
    assert (over.start, over.record) == ((), None)
    assert conditions(over)["Failed"] == "EvaluationFailed"
    assert "attempt 3: CrashLoop: no memory" in over.status.conditions[4].message
    # One that is complete and gave no result of the policy's data would not give one the next time.
    unfit = next_step(a_promotion(), seen(where, a_run("2", 1, "Complete")))
    assert unfit.start == ()
    assert (
        "is complete, and yet: version 2, suite digits: not evaluated yet"
        in unfit.status.conditions[4].message
    )


@pytest.mark.parametrize(("value", "verdict"), [(0.9, "promote"), (0.8, "refuse")])
def test_a_decision_is_recorded(value: float, verdict: str) -> None:
    where = standing(candidate="2", champion="1")
    step = next_step(a_promotion(), seen(where, results=results(v1=0.9, v2=value)))
    assert step.record is not None
    assert step.record.verdict == step.status.verdict == verdict
    assert step.status.gates[0].candidate == str(value)
    assert ("Decided", f"version 2: {verdict}: {step.status.reasons[0]}") in step.events
    again = next_step(
        replace(a_promotion(), status=step.status),
        seen(where, results=results(v1=0.9, v2=value), now=after(60)),
    )
    assert again.events == ()
    assert again.status == step.status


def test_when_it_is_champion_its_gates_stay_to_be_read() -> None:
    first = next_step(
        a_promotion(), seen(standing(candidate="2", champion="1"), results=results(v1=0.9, v2=0.9))
    )
    where = standing(promoted(1, "1", "2"), candidate="2", champion="2", previous="1")
    step = next_step(replace(a_promotion(), status=first.status), seen(where, results=results(v2=0.9)))
    assert step.record is None
    assert conditions(step) == {"Promoted": "Champion", "Reachable": "Answers"}
    assert (step.status.verdict, step.status.previous) == ("unchanged", "1")
    assert step.status.gates == first.status.gates


def test_a_hold_waits_for_the_annotation_of_this_version() -> None:
    policy = POLICY.model_copy(update={"hold": True})
    given: dict[str, Any] = {"policy": policy, "results": results(v2=0.9)}
    held = next_step(a_promotion({"scholarch.dev/approved": "1"}), seen(standing(candidate="2"), **given))
    assert held.record is None
    assert conditions(held)["Held"] == "NeedsApproval"
    approved = a_promotion({"scholarch.dev/approved": "2"})
    assert next_step(approved, seen(standing(candidate="2"), **given)).record is not None


def test_what_is_waited_for() -> None:
    away = next_step(a_promotion(), seen(None, unreachable="MLflow does not answer"))
    assert "Reachable" not in conditions(away)
    assert (
        next_step(a_promotion(), seen(policy=None, trouble="none")).status.conditions[4].reason == "NoPolicy"
    )
    assert conditions(next_step(a_promotion(suspend=True), seen())) == {"Reachable": "Answers"}
    assert next_step(a_promotion(), seen(standing(champion="1"))).status.conditions[1].reason == "NoCandidate"
    moved = standing(promoted(1, "1", "2"), candidate="3", champion="1")
    drifted = next_step(a_promotion(), seen(moved, results=results(v1=0.9, v2=0.9, v3=0.9)))
    assert (drifted.start, drifted.record) == ((), None)
    assert conditions(drifted)["Drifted"] == "AliasMoved"
    assert [reason for reason, _ in drifted.events] == ["DriftedAliasMoved"]


def test_what_was_rolled_back_does_not_come_back() -> None:
    acts = [promoted(1, "1", "2"), promoted(2, "2", "1", kind="rollback")]
    where = standing(*acts, candidate="2", champion="1")
    step = next_step(a_promotion(), seen(where, results=results(v1=0.9, v2=0.9)))
    assert (step.status.verdict, step.status.reasons) == ("refuse", ["version 2 was rolled back by act 2"])


def test_what_the_operator_does_not_understand_is_said_once() -> None:
    status = next_step(a_promotion(), seen(standing(candidate="2"))).status
    said = unreadable(status, "spec.x: unknown", after(0), 3)
    failed = said.condition("Failed")
    assert failed is not None
    assert (failed.status, failed.reason, failed.message) == ("True", "InvalidSpec", "spec.x: unknown")
    assert (said.verdict, said.candidate) == (status.verdict, "2"), "the rest stays"
    assert unreadable(said, "spec.x: unknown", after(9), 3) == said


def test_status_of_a_newer_operator() -> None:
    """What it says beside what is known here is passed over."""
    newer = {
        "type": "Mirrored",
        "status": "True",
        "reason": "Done",
        "lastTransitionTime": "2026-11-22T12:00:00Z",
    }
    read = PromotionStatus.parse({"conditions": [newer, {**newer, "type": "Held"}], "mirrors": 2})
    assert [condition.type for condition in read.conditions] == ["Held"]
