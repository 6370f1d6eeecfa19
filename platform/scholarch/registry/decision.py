"""Whether a candidate may become champion: pure, total, and with a reason in words for each outcome.

A gate on a regression asks what the data show, not what the two values happen to be: the difference of the
two models' samples is drawn again and again with replacement, sample by sample (paired bootstrap, Efron and
Tibshirani 1993, chapter 13), and the gate passes when the difference is not worse than what is allowed with
the confidence that the policy asks for. Equal models, or too few samples, therefore do not pass an allowed
regression of 0 by luck more often than one minus the confidence says.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from scholarch.config.promotion import Gate, PolicySpec, SuiteSection
from scholarch.storage.results import Result

DRAWS = 4000
"""Of the bootstrap: the 5th percentile of 4,000 has a standard error of 0.34 percentiles."""
_FEW, _AT_ONCE = 8, 1 << 22
_ROUNDING = 1e-12

Verdict = Literal["promote", "refuse", "hold", "evaluate", "unchanged"]
"""promote: make it champion; refuse: a required gate failed; hold: somebody has to approve it;
evaluate: results are missing or are not of these versions and data; unchanged: it is champion already."""
Outcome = Literal["passed", "failed", "unknown"]


@dataclass(frozen=True)
class Contender:
    """A version and what is known of it.

    Attributes:
        version: its number.
        results: by suite; those that there are.
        approved: somebody has looked at it and agreed.
        withdrawn: why it may not become champion again; empty: it may.
    """

    version: str
    results: Mapping[str, Result] = field(default_factory=dict)
    approved: bool = False
    withdrawn: str = ""


@dataclass(frozen=True, kw_only=True)
class GateOutcome:
    """What a gate said.

    Attributes:
        gate: suite and metric.
        required: whether a failure refuses the candidate.
        candidate, champion: the values, where there are any.
        least: the worst difference (candidate minus champion, turned so that more is better) that the data do
            not exclude at the gate's confidence; None: not asked for.
        reason: in words.
    """

    gate: str
    required: bool
    outcome: Outcome
    candidate: float | None = None
    champion: float | None = None
    least: float | None = None
    reason: str


@dataclass(frozen=True, kw_only=True)
class Decision:
    """The verdict and everything that it follows from.

    Attributes:
        policy: digest of the policy.
        candidate, champion: versions; no champion: this is the first promotion.
        missing: suites that have to be run, as (version, suite).
    """

    model: str
    policy: str
    candidate: str
    champion: str | None
    verdict: Verdict
    reasons: tuple[str, ...]
    gates: tuple[GateOutcome, ...] = ()
    missing: tuple[tuple[str, str], ...] = ()

    def document(self) -> dict[str, Any]:
        """As plain data for JSON."""
        return asdict(self)


def policy_digest(policy: PolicySpec) -> str:
    """What changes when the rule does; how evaluations are run is no part of it."""
    rule = policy.model_dump(mode="json", exclude={"evaluation"})
    return hashlib.sha256(json.dumps(rule, sort_keys=True).encode()).hexdigest()[:16]


def decide(policy: PolicySpec, candidate: Contender, champion: Contender | None) -> Decision:
    """The decision; the same for the same arguments, and one for all arguments.

    Args:
        candidate: the version in question.
        champion: the version that has the alias now; None: there is none.
    """

    def decided(
        verdict: Verdict,
        *reasons: str,
        gates: tuple[GateOutcome, ...] = (),
        missing: tuple[tuple[str, str], ...] = (),
    ) -> Decision:
        return Decision(
            model=policy.model,
            policy=policy_digest(policy),
            candidate=candidate.version,
            champion=champion.version if champion else None,
            verdict=verdict,
            reasons=reasons,
            gates=gates,
            missing=missing,
        )

    if champion is not None and champion.version == candidate.version:
        return decided("unchanged", f"version {candidate.version} is champion already")
    if candidate.withdrawn:
        return decided("refuse", f"version {candidate.version} {candidate.withdrawn}")
    missing = _missing(policy, candidate) | (_missing(policy, champion) if champion else {})
    if champion is not None and not missing:
        missing = _other_options(policy, candidate, champion)
    if missing:
        return decided("evaluate", *missing.values(), missing=tuple(missing))
    gates = tuple(_outcome(gate, candidate, champion) for gate in policy.gates)
    failed = [f"{gate.gate}: {gate.reason}" for gate in gates if gate.required and gate.outcome != "passed"]
    if failed:
        return decided("refuse", *failed, gates=gates)
    told = [f"advisory, {g.gate}: {g.reason}" for g in gates if g.outcome != "passed"]
    if policy.hold and not candidate.approved:
        return decided("hold", "all required gates passed; somebody has to approve it", *told, gates=gates)
    first = () if champion else ("there is no champion: this is the first promotion",)
    return decided("promote", "all required gates passed", *first, *told, gates=gates)


def _missing(policy: PolicySpec, contender: Contender) -> dict[tuple[str, str], str]:
    """Why which suites have to be run for a version."""
    found = {}
    for suite in policy.suites:
        why = _unfit(policy, suite, contender)
        if why:
            found[contender.version, suite.name] = f"version {contender.version}, suite {suite.name}: {why}"
    return found


def _unfit(policy: PolicySpec, suite: SuiteSection, contender: Contender) -> str:
    result = contender.results.get(suite.name)
    if result is None:
        return "not evaluated yet"
    if result.model.address != f"models:/{policy.model}/{contender.version}":
        return f"the result is of {result.model.address}"
    read = {name: data.fingerprint for name, data in result.data.items()}
    other = sorted(name for name in suite.data.keys() | read.keys() if suite.data.get(name) != read.get(name))
    if other:
        said = ", ".join(
            f"{name} is {read.get(name, 'absent')}, the policy has {suite.data.get(name, 'none')}"
            for name in other
        )
        return f"evaluated on other data: {said}"
    return ""


def _other_options(
    policy: PolicySpec, candidate: Contender, champion: Contender
) -> dict[tuple[str, str], str]:
    """Suites that have changed since the champion was evaluated."""
    found = {}
    for suite in policy.suites:
        ours, theirs = (side.results[suite.name].evaluations for side in (candidate, champion))
        if json.dumps(ours, sort_keys=True, default=str) != json.dumps(theirs, sort_keys=True, default=str):
            key = champion.version, suite.name
            found[key] = f"version {champion.version}, suite {suite.name}: evaluated with other options"
    return found


def _outcome(gate: Gate, candidate: Contender, champion: Contender | None) -> GateOutcome:
    ours = candidate.results[gate.suite]
    theirs = champion.results[gate.suite] if champion else None
    value = ours.metrics.get(gate.metric)
    against = theirs.metrics.get(gate.metric) if theirs else None
    said: tuple[Outcome, str]
    least = None
    if value is None:
        said = "failed", f"the result has no metric {gate.metric}"
    elif not math.isfinite(value):
        said = "failed", f"the value is {value}"
    else:
        said = _above_bound(gate, value)
        if said[0] == "passed" and gate.allowed_regression is not None:
            if theirs is None:
                said = "passed", said[1] or "no champion to compare with"
            elif against is None or not math.isfinite(against):
                said = "failed", f"cannot be compared: the champion's value is {against}"
            else:
                least, why = _least_difference(gate, ours, theirs)
                said = _no_regression(gate, value, against, least, why)
    finite = {
        side: number if number is not None and math.isfinite(number) else None
        for side, number in {"candidate": value, "champion": against}.items()
    }
    return GateOutcome(
        gate=gate.name, required=gate.required, outcome=said[0], least=least, reason=said[1], **finite
    )


def _above_bound(gate: Gate, value: float) -> tuple[Outcome, str]:
    if gate.bound is None:
        return "passed", ""
    good = _turned(gate, value) >= _turned(gate, gate.bound)
    word = "least" if gate.direction == "higher" else "most"
    return "passed" if good else "failed", f"{value:.4g}, asked for: at {word} {gate.bound:.4g}"


def _no_regression(
    gate: Gate, value: float, against: float, least: float | None, why: str
) -> tuple[Outcome, str]:
    allowed = gate.allowed_regression or 0.0
    if why:
        return "failed", why
    difference = _turned(gate, value) - _turned(gate, against)
    compared = f"{value:.4g} against {against:.4g}"
    if least is None:
        good = difference >= -allowed - _ROUNDING
        return "passed" if good else "failed", f"{compared}, allowed to be worse by {allowed:.4g}"
    shown = f"{compared}: the difference is at least {least:+.4g} with confidence {gate.confidence:.4g}"
    if least >= -allowed - _ROUNDING:
        return "passed", shown
    if difference < -allowed:
        return "failed", f"{shown}, allowed {-allowed:+.4g}"
    return "failed", f"{shown}: not shown to be above {-allowed:+.4g}; more samples would tell"


def _least_difference(gate: Gate, ours: Result, theirs: Result) -> tuple[float | None, str]:
    """The least difference that is not excluded, or why it cannot be told."""
    if gate.confidence is None:
        return None, ""
    first, second = (side.samples.get(gate.metric) for side in (ours, theirs))
    if first is None or second is None:
        return None, "has no values by sample to draw from: leave out confidence, or gate another metric"
    if len(first) != len(second) or len(first) == 0:
        return None, f"cannot be paired: {len(first)} samples against {len(second)}"
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        return None, "some samples have no value"
    sign = 1.0 if gate.direction == "higher" else -1.0
    return lower_bound(sign * (np.asarray(first) - np.asarray(second)), gate.confidence), ""


def lower_bound(differences: np.ndarray, confidence: float) -> float:
    """One-sided lower confidence bound of a mean, by percentile bootstrap.

    Args:
        differences: [n], finite, n at least 1.
        confidence: in [0.5, 1): the bound is the (1 - confidence) quantile.

    Returns:
        the bound; the same for the same arguments.
    """
    values, counts = np.unique(differences, return_counts=True)
    count = len(differences)
    # Not from `scholarch.draws`, which knows torch, as the operator must not. Other samples have other draws.
    digest = hashlib.blake2b(values.tobytes() + counts.tobytes(), digest_size=16).digest()
    generator = np.random.Generator(np.random.Philox(key=np.frombuffer(digest, dtype=np.uint64)))
    if len(values) <= _FEW:
        # How often each is drawn is multinomial: three numbers for answers that are right or wrong.
        means = generator.multinomial(count, counts / count, size=DRAWS) @ values / count
    else:
        ordered = np.repeat(values, counts)
        step = max(_AT_ONCE // count, 1)
        means = np.concatenate(
            [
                ordered[generator.integers(count, size=(min(step, DRAWS - start), count))].mean(axis=1)
                for start in range(0, DRAWS, step)
            ]
        )
    return float(np.quantile(means, 1 - confidence))


def _turned(gate: Gate, value: float) -> float:
    return value if gate.direction == "higher" else -value
