"""What follows for a `ModelPromotion` from what is seen: pure.

Whether a version may become champion is `scholarch.registry.decision`'s matter, and who is champion the
registry's own log's. Here stands when which evaluation is started, tried again or given up, and what is said.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from scholarch.config.promotion import APPROVED, PolicySpec, PromotionSpec
from scholarch.registry.decision import Contender, Decision, decide
from scholarch.registry.promotion import Standing
from scholarch.storage.results import Result

from scholarch_operator.observed import Body
from scholarch_operator.promotion_status import (
    CONDITIONS,
    MAX_EVALUATIONS,
    MAX_REASONS,
    EvaluationStatus,
    GateStatus,
    PromotionCondition,
    PromotionStatus,
    Type,
)
from scholarch_operator.status import MESSAGE_LENGTH

Said = tuple[Literal["True", "False"], str, str]
"""Status, reason and message of a condition."""


@dataclass(frozen=True)
class Promotion:
    """A `ModelPromotion`.

    Attributes:
        approved: a version that somebody has looked at.
    """

    name: str
    namespace: str
    uid: str
    generation: int
    spec: PromotionSpec
    status: PromotionStatus
    approved: str = ""

    @classmethod
    def parse(cls, body: Body) -> Promotion:
        """A promotion from its object.

        Raises:
            UserError: if its spec is not one that this operator knows.
        """
        meta = body["metadata"]
        return cls(
            name=meta["name"],
            namespace=meta["namespace"],
            uid=meta["uid"],
            generation=meta.get("generation", 0),
            spec=PromotionSpec.read(body.get("spec", {}), "ModelPromotion"),
            status=PromotionStatus.parse(body.get("status")),
            approved=meta.get("annotations", {}).get(APPROVED, ""),
        )


@dataclass(frozen=True)
class EvaluationRun:
    """A `TrainingRun` that evaluates one version on one suite.

    Attributes:
        purpose: digest of what it was started for, as `purpose` gives it.
    """

    name: str
    purpose: str
    attempt: int
    state: Literal["Running", "Complete", "Failed"]
    message: str = ""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What is seen of a promotion's surroundings.

    Attributes:
        policy: None: there is none, or it cannot be read; `trouble` says which.
        standing: of the registry; None: it does not answer; `unreachable` says how.
        results: by version and suite.
    """

    now: datetime
    policy: PolicySpec | None = None
    trouble: str = ""
    standing: Standing | None = None
    unreachable: str = ""
    results: Mapping[str, Mapping[str, Result]] = field(default_factory=dict)
    runs: tuple[EvaluationRun, ...] = ()


@dataclass(frozen=True)
class Start:
    """An evaluation to start."""

    version: str
    suite: str
    purpose: str
    attempt: int


@dataclass(frozen=True)
class Step:
    """What to do now; the same for the same arguments.

    Attributes:
        record: a decision to record in the registry, which may make a champion.
    """

    status: PromotionStatus
    start: tuple[Start, ...] = ()
    record: Decision | None = None
    events: tuple[tuple[str, str], ...] = ()


def candidate_of(promotion: Promotion, policy: PolicySpec, standing: Standing) -> str:
    """The version in question; empty: none."""
    return promotion.spec.version or standing.aliases.get(policy.candidate_alias, "")


def purpose(policy: PolicySpec, version: str, suite: str) -> str:
    """What an evaluation is for: another image, suite or data makes another one."""
    section, how = next(one for one in policy.suites if one.name == suite), policy.evaluation
    parts = [policy.model, version, section.model_dump(mode="json"), how.image, how.code]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:10]


def next_step(promotion: Promotion, seen: Seen) -> Step:
    """The step."""
    said: dict[Type, Said] = {"Reachable": ("True", "Answers", "")}
    if promotion.spec.suspend:
        said["Evaluating"] = ("False", "Suspended", "spec.suspend is set")
        return _step(promotion, seen, said)
    if seen.policy is None:
        said["Failed"] = ("True", "NoPolicy", seen.trouble)
        return _step(promotion, seen, said)
    if seen.standing is None:
        said["Reachable"] = ("False", "NoAnswer", seen.unreachable)
        return _step(promotion, seen, said)
    standing = seen.standing
    version = candidate_of(promotion, seen.policy, standing)
    if standing.drift:
        said["Drifted"] = ("True", "AliasMoved", standing.drift)
        return _step(promotion, seen, said)
    if not version:
        words = f"no version of {seen.policy.model} has the alias {seen.policy.candidate_alias}"
        said["Promoted"] = ("False", "NoCandidate", words)
        return _step(promotion, seen, said)
    decision = decide(
        seen.policy,
        _contender(promotion, seen, version),
        _contender(promotion, seen, standing.champion) if standing.champion else None,
    )
    if decision.verdict == "evaluate":
        return _evaluate(promotion, seen, decision, said)
    reasons = "; ".join(decision.reasons)
    if decision.verdict == "unchanged":
        said["Promoted"] = ("True", "Champion", reasons)
    elif decision.verdict == "hold":
        said["Held"] = ("True", "NeedsApproval", f"annotate it with {APPROVED}={version}")
    elif decision.verdict == "refuse":
        said["Promoted"] = ("False", "Refused", reasons)
    recorded = decision if decision.verdict in ("promote", "refuse") else None
    return _step(promotion, seen, said, decision, record=recorded)


def unreadable(status: PromotionStatus, message: str, now: datetime, generation: int) -> PromotionStatus:
    """The status of a promotion whose spec this operator does not understand: nothing else about it changes."""
    said = _condition(status, "Failed", {"Failed": ("True", "InvalidSpec", message)}, now, generation)
    others = [condition for condition in status.conditions if condition.type != "Failed"]
    return status.model_copy(update={"conditions": [*others, said]})


def _contender(promotion: Promotion, seen: Seen, version: str) -> Contender:
    assert seen.standing is not None
    act = seen.standing.history.withdrawn.get(version)
    return Contender(
        version,
        seen.results.get(version, {}),
        approved=promotion.approved == version,
        withdrawn=f"was rolled back by act {act}" if act else "",
    )


def _evaluate(promotion: Promotion, seen: Seen, decision: Decision, said: dict[Type, Said]) -> Step:
    """Each missing result has a run that goes on, or one to start, or nothing more to try."""
    assert seen.policy is not None
    start, running, given_up = [], [], []
    why = dict(zip(decision.missing, decision.reasons, strict=True))
    for version, suite in decision.missing:
        wanted = purpose(seen.policy, version, suite)
        runs = sorted((r for r in seen.runs if r.purpose == wanted), key=lambda r: r.attempt)
        last = runs[-1] if runs else None
        if last is not None and last.state == "Running":
            running.append(f"version {version} on {suite}")
        elif last is not None and last.state == "Complete":
            given_up.append(f"{last.name} is complete, and yet: {why[version, suite]}")
        elif last is not None and last.attempt > seen.policy.evaluation.retries:
            given_up.append(f"{last.name}, attempt {last.attempt}: {last.message}")
        else:
            start.append(Start(version, suite, wanted, last.attempt + 1 if last else 1))
            running.append(f"version {version} on {suite}")
    if given_up:
        said["Failed"] = ("True", "EvaluationFailed", "; ".join(given_up))
    if running:
        said["Evaluating"] = ("True", "Running", ", ".join(running))
    # One that cannot be had makes the others useless, but for those that run already.
    return _step(promotion, seen, said, decision, start=() if given_up else tuple(start))


def _step(
    promotion: Promotion,
    seen: Seen,
    said: Mapping[Type, Said],
    decision: Decision | None = None,
    start: tuple[Start, ...] = (),
    record: Decision | None = None,
) -> Step:
    status = _status(promotion, seen, said, decision)
    events = [
        (f"Evaluation{'Started' if s.attempt == 1 else 'Retried'}", f"version {s.version} on {s.suite}")
        for s in start
    ]
    for condition in status.conditions:
        before = promotion.status.condition(condition.type)
        changed = before is None or before.status != condition.status
        # That MLflow answers is worth telling only after it did not.
        told = before is not None if condition.type == "Reachable" else condition.status == "True"
        if changed and told and condition.type != "Evaluating":
            events.append((f"{condition.type}{condition.reason}", condition.message))
    if status.verdict != promotion.status.verdict and decision is not None:
        events.append(("Decided", f"version {decision.candidate}: {status.verdict}: {status.reasons[0]}"))
    return Step(status, start, record, tuple(events))


def _status(
    promotion: Promotion, seen: Seen, said: Mapping[Type, Said], decision: Decision | None
) -> PromotionStatus:
    before, standing = promotion.status, seen.standing
    changes: dict[str, Any] = {
        "observed_generation": promotion.generation,
        "conditions": [_condition(before, kind, said, seen.now, promotion.generation) for kind in CONDITIONS],
    }
    if seen.policy is not None:
        changes["model"] = seen.policy.model
    if standing is not None and seen.policy is not None:
        changes |= {
            "candidate": candidate_of(promotion, seen.policy, standing),
            "champion": standing.champion,
            "previous": standing.aliases.get(seen.policy.previous_alias, ""),
            "evaluations": _evaluations(seen, seen.policy, decision),
        }
    if decision is not None:
        changes["reasons"] = [reason[:MESSAGE_LENGTH] for reason in decision.reasons[:MAX_REASONS]]
        changes["verdict"] = decision.verdict
        same = decision.verdict == before.verdict and decision.candidate == before.candidate
        changes["decision_time"] = before.decision_time if same else seen.now
        # Once it is champion there is nothing more to compare: what made it champion stays to be read.
        if decision.verdict != "unchanged" or decision.candidate != before.candidate:
            changes["gates"] = [
                GateStatus(
                    gate=gate.gate,
                    required=gate.required,
                    outcome=gate.outcome,
                    candidate="" if gate.candidate is None else f"{gate.candidate:.6g}",
                    champion="" if gate.champion is None else f"{gate.champion:.6g}",
                    reason=gate.reason[:MESSAGE_LENGTH],
                )
                for gate in decision.gates
            ]
    return before.model_copy(update=changes)


def _evaluations(seen: Seen, policy: PolicySpec, decision: Decision | None) -> list[EvaluationStatus]:
    versions = [v for v in (decision.candidate, decision.champion) if v] if decision else []
    found = []
    for version in versions:
        for suite in policy.suites:
            wanted = purpose(policy, version, suite.name)
            runs = sorted((r for r in seen.runs if r.purpose == wanted), key=lambda r: r.attempt)
            if runs:
                found.append(
                    EvaluationStatus(
                        version=version,
                        suite=suite.name,
                        run=runs[-1].name,
                        attempt=runs[-1].attempt,
                        state=runs[-1].state,
                        message=runs[-1].message[:MESSAGE_LENGTH],
                    )
                )
    return found[:MAX_EVALUATIONS]


def _condition(
    before: PromotionStatus, kind: Type, said: Mapping[Type, Said], now: datetime, generation: int
) -> PromotionCondition:
    last = before.condition(kind)
    status, reason, message = said.get(kind, ("False", "Idle", ""))
    same = last is not None and last.status == status
    return PromotionCondition(
        type=kind,
        status=status,
        reason=reason,
        message=message[:MESSAGE_LENGTH],
        last_transition_time=last.last_transition_time if last and same else now,
        observed_generation=generation,
    )
