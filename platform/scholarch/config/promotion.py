"""What a promotion asks for: one model for `scholarch promote`, the operator and the CRDs.

A policy is a rule that admins write: which suites a candidate goes through, and the gates that its metrics
must pass. A promotion is one request under it. Keys are written as in Kubernetes, in files as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, field_validator

from scholarch.config.load import parse_yaml
from scholarch.config.rules import Rule, unique
from scholarch.config.training_run import (
    GROUP,
    VERSION,
    Archive,
    Gang,
    Name,
    Override,
    Part,
    Placement,
    Resources,
    Secrets,
    Tracking,
    Variable,
    Volume,
)
from scholarch.errors import UserError

FOLDER = Path(str(resources.files("scholarch.config"))) / "policies"
POLICY, POLICIES = "PromotionPolicy", "promotionpolicies"
APPROVED = f"{GROUP}/approved"
PROMOTION, PROMOTIONS = "ModelPromotion", "modelpromotions"

ModelName = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^/:'\"\s]+$")]
Alias = Annotated[str, Field(max_length=64, pattern=r"^[A-Za-z_][A-Za-z0-9_-]*$")]
SuiteName = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9][A-Za-z0-9_./-]*$")]
Checksum = Annotated[str, Field(max_length=64, pattern=r"^[0-9a-f]{16,64}$")]
"""Of data, as results of evaluations have it."""


class SuiteSection(Part):
    """A suite that a candidate goes through, and the data that it was agreed on."""

    name: SuiteName = Field(description="as of `scholarch evaluate --suite`")
    overrides: list[Override] = Field(
        default_factory=list, max_length=16, description="such as data.imagenet.address=s3://BUCKET/PREFIX"
    )
    data: dict[str, Checksum] = Field(
        min_length=1,
        max_length=16,
        description="fingerprint of each of the suite's data sets, as results of the suite have it",
    )


class Gate(Part):
    """A condition on one metric."""

    suite: SuiteName
    metric: Annotated[str, Field(min_length=1, max_length=128)]
    direction: Literal["higher", "lower"] = Field("higher", description="which values are better")
    bound: float | None = Field(
        None, allow_inf_nan=False, description="the value must be at least as good as this"
    )
    allowed_regression: float | None = Field(
        None, ge=0, allow_inf_nan=False, description="how much worse than the champion's the value may be"
    )
    confidence: float | None = Field(
        None,
        ge=0.5,
        lt=1,
        description="with which the data must show that it is not worse than allowed, by paired bootstrap "
        "over samples; absent: the values themselves are compared",
    )
    required: bool = Field(True, description="false: the gate is told, and refuses nothing")

    rules = (
        Rule(
            "has(self.bound) || has(self.allowedRegression)",
            "a gate needs bound, allowedRegression, or both",
            lambda g: g.bound is not None or g.allowed_regression is not None,
        ),
        Rule(
            "!has(self.confidence) || has(self.allowedRegression)",
            "confidence belongs to allowedRegression",
            lambda g: g.confidence is None or g.allowed_regression is not None,
        ),
    )

    @property
    def name(self) -> str:
        """For tables and messages."""
        return f"{self.suite}: {self.metric}"


class EvaluationSection(Part):
    """How evaluations run on a cluster; elsewhere `scholarch promote` runs them itself."""

    image: Annotated[str, Field(max_length=512, pattern=r"^[^\s]*$")] = ""
    code: Archive = ""
    resources: Resources = Field(default_factory=Resources)
    processes: int = Field(0, ge=0, le=64, description="workers; 0: one for each GPU, or one")
    queue: Name = ""
    gang: Gang = Field(default_factory=Gang)
    placement: Placement = Field(default_factory=Placement)
    env: list[Variable] = Field(default_factory=list, max_length=64)
    volumes: list[Volume] = Field(default_factory=list, max_length=16)
    secrets: Secrets = Field(default_factory=Secrets)
    mlflow: Tracking = Field(default_factory=Tracking)
    retries: int = Field(2, ge=0, le=10, description="evaluation runs that fail are started again so often")


class PolicySpec(Part):
    """The rule for one registered model."""

    model: ModelName
    candidate_alias: Alias = "candidate"
    champion_alias: Alias = "champion"
    previous_alias: Alias = "previous"
    suites: list[SuiteSection] = Field(min_length=1, max_length=16)
    gates: list[Gate] = Field(min_length=1, max_length=64)
    hold: bool = Field(False, description="a candidate that passed waits until somebody approves its version")
    evaluation: EvaluationSection = Field(default_factory=EvaluationSection)

    rules = (
        Rule(
            "self.gates.all(g, self.suites.exists(s, s.name == g.suite))",
            "each gate's suite must be among suites",
            lambda p: {gate.suite for gate in p.gates} <= {suite.name for suite in p.suites},
        ),
        Rule(
            "self.gates.exists(g, g.required)",
            "at least one gate must be required",
            lambda p: any(gate.required for gate in p.gates),
        ),
        Rule(
            "self.candidateAlias != self.championAlias && self.candidateAlias != self.previousAlias && "
            "self.championAlias != self.previousAlias",
            "candidateAlias, championAlias and previousAlias must be three names",
            lambda p: unique((p.candidate_alias, p.champion_alias, p.previous_alias)),
        ),
    )

    @field_validator("suites")
    @classmethod
    def _has_names_once(cls, value: list[SuiteSection]) -> list[SuiteSection]:
        if not unique(suite.name for suite in value):
            raise ValueError("each name once")
        return value


class PromotionSpec(Part):
    """One request: to make the candidate champion, whichever version that is, as the policy allows."""

    policy: Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")]
    version: Annotated[str, Field(max_length=16, pattern=r"^[0-9]*$")] = Field(
        "", description="of the model; empty: whichever has the candidate alias, and those that follow it"
    )
    suspend: bool = Field(False, description="evaluates and decides nothing until it is false again")


def policy_names() -> list[str]:
    """Names of the policies that come with the package, sorted."""
    return sorted(p.relative_to(FOLDER).with_suffix("").as_posix() for p in FOLDER.rglob("*.yaml"))


def read_policy(name: str) -> PolicySpec:
    """A policy from a YAML file: the spec alone, or the whole `PromotionPolicy` as for `kubectl apply`.

    Args:
        name: path of the file, or a name of `policy_names`.

    Raises:
        UserError: naming every mistake and where it is.
    """
    file = Path(name) if name.endswith((".yaml", ".yml")) else FOLDER / f"{name}.yaml"
    if not file.is_file():
        fix = f"name a YAML file, or one of: {', '.join(policy_names())}"
        raise UserError(f"there is no policy {name}", where="--policy", fix=fix)
    try:
        found: Any = parse_yaml(file.read_text())
    except yaml.YAMLError as error:
        raise UserError(f"this is not YAML: {error}", where=name, fix="mend the file") from None
    if not isinstance(found, Mapping):
        raise UserError("a policy is a mapping with model, suites and gates", where=name)
    if "kind" in found:
        wanted = f"{GROUP}/{VERSION}"
        if (found["kind"], found.get("apiVersion")) != (POLICY, wanted):
            raise UserError(f"is not a {POLICY} of {wanted}", where=name)
        found = found.get("spec") or {}
    return PolicySpec.read(found, name)
