"""Every outcome of a decision, and how often gates are wrong about equal models."""

from __future__ import annotations

import json
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
from promotion_parts import FINGERPRINT, GATE, SUITES, a_policy, contender, data
from scholarch.config.promotion import PolicySpec
from scholarch.errors import UserError
from scholarch.registry.decision import Contender, Decision, decide, lower_bound


def said(decision: Decision) -> str:
    return "; ".join(decision.reasons)


def test_first_promotion_needs_the_bounds_alone() -> None:
    policy = a_policy({"bound": 0.8, "allowedRegression": 0.01, "confidence": 0.95})
    good, bad = decide(policy, contender("1"), None), decide(policy, contender("1", 0.79), None)
    assert (good.verdict, good.champion) == ("promote", None)
    assert "first promotion" in said(good)
    assert (bad.verdict, said(bad)) == ("refuse", "digits: knn/top1: 0.79, asked for: at least 0.8")


@pytest.mark.parametrize(
    ("gate", "candidate", "champion", "verdict", "words"),
    [
        ({"bound": 0.9}, 0.9, 0.95, "promote", "all required gates passed"),
        ({"bound": 0.1, "direction": "lower"}, 0.2, None, "refuse", "0.2, asked for: at most 0.1"),
        ({"allowedRegression": 0.01}, 0.94, 0.95, "promote", "passed"),
        (
            {"allowedRegression": 0.01},
            0.93,
            0.95,
            "refuse",
            "0.93 against 0.95, allowed to be worse by 0.01",
        ),
        ({"allowedRegression": 0.0, "direction": "lower"}, 0.3, 0.2, "refuse", "0.3 against 0.2"),
        ({"allowedRegression": 0.0, "direction": "lower"}, 0.1, 0.2, "promote", "passed"),
        (
            {"allowedRegression": 0.0, "confidence": 0.9},
            0.9,
            0.9,
            "refuse",
            "no values by sample to draw from",
        ),
        ({"bound": 0.95, "required": False}, 0.9, 0.8, "refuse", "required"),
        ({"bound": 0.5}, float("nan"), 0.8, "refuse", "the value is nan"),
        ({"bound": 0.5}, float("inf"), 0.8, "refuse", "the value is inf"),
        (
            {"allowedRegression": 0.1},
            0.9,
            float("nan"),
            "refuse",
            "cannot be compared: the champion's value is nan",
        ),
    ],
)
def test_one_gate(
    gate: dict[str, Any], candidate: float, champion: float | None, verdict: str, words: str
) -> None:
    if gate.get("required") is False:
        policy = a_policy(gate, {"bound": 0.1})
        decision = decide(policy, contender("2", candidate), contender("1", champion or 0.0))
        assert decision.verdict == "promote"
        assert "advisory, digits: knn/top1: 0.9, asked for: at least 0.95" in decision.reasons
        return
    against = None if champion is None else contender("1", champion)
    decision = decide(a_policy(gate), contender("2", candidate), against)
    assert decision.verdict == verdict
    assert words in said(decision)
    json.dumps(decision.document(), allow_nan=False)


def test_a_metric_that_is_missing_refuses() -> None:
    policy = a_policy({"metric": "linear/top1", "bound": 0.1})
    assert "has no metric linear/top1" in said(decide(policy, contender("1"), None))
    policy = a_policy({"allowedRegression": 0.1})
    without = decide(policy, contender("2"), contender("1", metrics={}))
    assert (without.verdict, said(without)) == (
        "refuse",
        "digits: knn/top1: cannot be compared: the champion's value is None",
    )


def test_what_has_to_be_evaluated_first() -> None:
    policy = a_policy({"allowedRegression": 0.0})
    cases: list[tuple[Contender, Contender | None, str, tuple[str, ...]]] = [
        (Contender("2"), contender("1"), "not evaluated yet", ("2",)),
        (Contender("2"), Contender("1"), "not evaluated yet", ("2", "1")),
        (contender("2"), contender("1", data={"digits": data("cd" * 16)}), "other data", ("1",)),
        (contender("2", data={}), contender("1"), "digits is absent", ("2",)),
        (contender("2"), contender("1", evaluations={"knn": {"neighbours": 5}}), "other options", ("1",)),
        # The champion changed: the result that is there is of the one before.
        (contender("2"), Contender("4", contender("1").results), "result is of models:/dino/1", ("4",)),
    ]
    for candidate, champion, words, versions in cases:
        decision = decide(policy, candidate, champion)
        assert decision.verdict == "evaluate"
        assert words in said(decision)
        assert decision.missing == tuple((version, "digits") for version in versions)


def test_versions_that_need_no_gate() -> None:
    policy = a_policy()
    assert decide(policy, Contender("1"), Contender("1")).verdict == "unchanged"
    withdrawn = decide(policy, contender("2", withdrawn="was rolled back"), contender("1"))
    assert (withdrawn.verdict, said(withdrawn)) == ("refuse", "version 2 was rolled back")


def test_a_hold_waits_for_approval_of_what_passed() -> None:
    policy = a_policy({"bound": 0.8}, hold=True)
    assert decide(policy, contender("2"), None).verdict == "hold"
    assert decide(policy, contender("2", approved=True), None).verdict == "promote"
    assert decide(policy, contender("2", 0.7, approved=True), None).verdict == "refuse"


def test_samples_that_cannot_be_paired() -> None:
    policy = a_policy({"allowedRegression": 0.0, "confidence": 0.9})
    decision = decide(policy, contender("2", np.ones(5)), contender("1", np.ones(4)))
    assert "cannot be paired: 5 samples against 4" in said(decision)


def test_a_refusal_says_whether_it_is_worse_or_not_known() -> None:
    policy = a_policy({"allowedRegression": 0.02, "confidence": 0.95})
    right = np.ones(100)
    few, many = right.copy(), right.copy()
    few[:1], many[:20] = 0, 0
    unsure = decide(policy, contender("2", few), contender("1", right))
    worse = decide(policy, contender("2", many), contender("1", right))
    same = decide(policy, contender("2", right), contender("1", right))
    assert "more samples would tell" in said(unsure)
    assert "more samples" not in said(worse)
    assert (unsure.verdict, worse.verdict, same.verdict) == ("refuse", "refuse", "promote")


def test_bound_of_a_mean_against_drawing_sample_by_sample() -> None:
    generator = np.random.default_rng(0)
    differences = generator.choice([-1.0, 0.0, 1.0], size=200, p=[0.1, 0.7, 0.2])
    means = [generator.choice(differences, size=200).mean() for _ in range(4000)]
    assert lower_bound(differences, 0.95) == pytest.approx(np.quantile(means, 0.05), abs=0.005)
    assert lower_bound(differences, 0.95) == lower_bound(differences[::-1], 0.95)


CONFIDENCE, SAMPLES, PAIRS = 0.9, 100, 1000
SPREAD = 0.1
"""Of the difference of two equal models, sample by sample."""


def rate(allowed: float, shift: float = 0.0) -> float:
    """How many of 1,000 pairs pass whose models truly differ by `shift`."""
    policy = a_policy({"allowedRegression": allowed, "confidence": CONFIDENCE})
    generator = np.random.default_rng(1)
    passed = 0
    for _ in range(PAIRS):
        shared = generator.uniform(0.2, 0.8, SAMPLES)
        noise = generator.normal(0, SPREAD / 2**0.5, (2, SAMPLES))
        ours, theirs = shared + noise[0] + shift, shared + noise[1]
        passed += decide(policy, contender("2", ours), contender("1", theirs)).verdict == "promote"
    return passed / PAIRS


def test_equal_models_are_promoted_and_refused_as_often_as_the_confidence_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("scholarch.registry.decision.DRAWS", 400)
    error = SPREAD / SAMPLES**0.5
    z = NormalDist().inv_cdf(CONFIDENCE)
    wrong = 1 - CONFIDENCE
    within = 4 * (wrong * (1 - wrong) / PAIRS) ** 0.5
    # Nothing may be lost: equal models are on the border, and pass by chance only.
    assert rate(0.0) == pytest.approx(wrong, abs=within)
    # What may be lost is twice what the data can tell: equal models are refused by chance only.
    assert 1 - rate(2 * z * error) == pytest.approx(wrong, abs=within)
    # Truly worse, by just what may be lost.
    assert rate(2 * z * error, shift=-2 * z * error) == pytest.approx(wrong, abs=within)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"gates": []}, "at least 1"),
        ({"gates": [GATE]}, "a gate needs bound, allowedRegression, or both"),
        ({"gates": [{**GATE, "bound": 1, "confidence": 0.9}]}, "confidence belongs to allowedRegression"),
        ({"gates": [{**GATE, "bound": 1, "confidense": 0.9}]}, "did you mean confidence"),
        ({"gates": [{**GATE, "bound": 1, "suite": "other"}]}, "suite must be among suites"),
        ({"gates": [{**GATE, "bound": 1, "required": False}]}, "at least one gate must be required"),
        ({"suites": [*SUITES, *SUITES]}, "each name once"),
        ({"suites": [{"name": "digits", "data": {}}]}, "at least 1"),
        ({"championAlias": "candidate"}, "must be three names"),
        ({"model": "a/b"}, "pattern"),
    ],
)
def test_mistakes_in_a_policy(change: dict[str, Any], words: str) -> None:
    valid = {"model": "dino", "suites": SUITES, "gates": [{**GATE, "bound": 0.5}]}
    assert PolicySpec.read(valid, "p").manifest()["suites"][0]["data"] == {"digits": FINGERPRINT}
    with pytest.raises(UserError, match=words):
        PolicySpec.read({**valid, **change}, "policy.yaml")
