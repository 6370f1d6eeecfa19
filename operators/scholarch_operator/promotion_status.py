"""What a `ModelPromotion`'s status says; what was promoted is in the registry's own log, not here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from scholarch_operator.status import Message, Observation, Part, Time, known

Type = Literal["Evaluating", "Promoted", "Held", "Drifted", "Failed", "Reachable"]
CONDITIONS: tuple[Type, ...] = ("Evaluating", "Promoted", "Held", "Drifted", "Failed", "Reachable")
Version = Annotated[str, Field(max_length=16)]
Word = Annotated[str, Field(max_length=200)]
MAX_REASONS, MAX_GATES, MAX_EVALUATIONS = 32, 64, 32


class PromotionCondition(Observation):
    """One of `CONDITIONS`."""

    type: Type


class GateStatus(Part):
    """What a gate said; values as text, for numbers that JSON has not."""

    gate: Annotated[str, Field(max_length=260)]
    required: bool = True
    outcome: Word
    candidate: Word = ""
    champion: Word = ""
    reason: Message = ""


class EvaluationStatus(Part):
    """One suite for one version.

    Attributes:
        run: name of its newest TrainingRun.
        attempt: how many there were.
    """

    version: Version
    suite: Annotated[str, Field(max_length=128)]
    run: Annotated[str, Field(max_length=63)]
    attempt: int = 1
    state: Literal["Running", "Complete", "Failed"]
    message: Message = ""


class PromotionStatus(Part):
    """The status; of the candidate that was looked at last."""

    observed_generation: int = 0
    conditions: list[PromotionCondition] = Field(default_factory=list, max_length=8)
    model: Word = ""
    candidate: Version = ""
    champion: Version = ""
    previous: Version = ""
    verdict: Word = ""
    reasons: list[Message] = Field(default_factory=list, max_length=MAX_REASONS)
    gates: list[GateStatus] = Field(default_factory=list, max_length=MAX_GATES)
    evaluations: list[EvaluationStatus] = Field(default_factory=list, max_length=MAX_EVALUATIONS)
    decision_time: Time | None = None

    @classmethod
    def parse(cls, status: Mapping[str, Any] | None) -> PromotionStatus:
        """The status of an object; one that has none yet has the default one."""
        return cls.model_validate(known(status, CONDITIONS))

    def manifest(self) -> dict[str, Any]:
        """As in an object."""
        found: dict[str, Any] = self.model_dump(mode="json", by_alias=True, exclude_none=True)
        return found

    def condition(self, kind: Type) -> PromotionCondition | None:
        """The condition of this type, if there is one yet."""
        return next((condition for condition in self.conditions if condition.type == kind), None)
