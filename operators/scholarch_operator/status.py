"""What a `TrainingRun`'s status says: the operator's whole memory, so that it can be killed at any time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

CONDITIONS = ("Suspended", "Scheduled", "Running", "Stalled", "Complete", "Failed")
MESSAGE_LENGTH = 1024
KEPT_ATTEMPTS = 20

Time = Annotated[datetime, Field(json_schema_extra={"format": "date-time"})]
Message = Annotated[str, Field(max_length=MESSAGE_LENGTH)]
Reason = Annotated[str, Field(max_length=64, pattern=r"^[A-Z][A-Za-z]*$")]
Checkpoint = Annotated[str, Field(max_length=1024)]


def known(status: Mapping[str, Any] | None, types: Sequence[str]) -> dict[str, Any]:
    """A status without conditions of other types, which a newer operator may have written."""
    found = dict(status or {})
    if "conditions" in found:
        found["conditions"] = [c for c in found["conditions"] if c.get("type") in types]
    return found


class Part(BaseModel):
    """Base: unknown keys are dropped, for a status may come from a newer operator."""

    model_config = ConfigDict(extra="ignore", frozen=True, alias_generator=to_camel, populate_by_name=True)


class Observation(Part):
    """What a condition says, as Kubernetes has them."""

    status: Literal["True", "False", "Unknown"]
    reason: Reason
    message: Message = ""
    last_transition_time: Time
    observed_generation: int = 0


class Condition(Observation):
    """One of `CONDITIONS`."""

    type: Literal["Suspended", "Scheduled", "Running", "Stalled", "Complete", "Failed"]


class Attempt(Part):
    """An attempt that is over.

    Attributes:
        counts: whether its end was the run's own fault; the others are not held against it.
        checkpoint: the newest when it ended.
    """

    number: int = Field(ge=1)
    reason: Reason
    message: Message = ""
    counts: bool
    checkpoint: Checkpoint = ""
    ended: Time
    restarts: int = 0
    counted_restarts: int = 0


class ProgressStatus(Part):
    """How far the run is, as rank 0 last wrote it."""

    step: int = 0
    total: int = 0
    loss: float | None = None
    images_per_second: float | None = None
    eta_seconds: float | None = None
    slowest_rank: int | None = None
    time: Time | None = None


class Waiting(Part):
    """What the operator remembers about a run that has too few nodes."""

    since: Time | None = Field(None, description="when the run last had enough nodes, or was started")
    retry_at: Time | None = Field(None, description="when a run suspended for too few nodes is tried again")
    times: int = Field(0, description="how often in a row it was suspended for this")


class RunStatus(Part):
    """The status; what is counted is over all attempts."""

    observed_generation: int = 0
    conditions: list[Condition] = Field(default_factory=list, max_length=8)
    attempt: int = Field(1, ge=1)
    attempts: list[Attempt] = Field(default_factory=list, max_length=KEPT_ATTEMPTS)
    restarts: int = Field(0, description="pods that ended early")
    counted_restarts: int = Field(0, description="of these, by a fault")
    nodes: int = Field(0, description="running pods")
    world_size: int = 0
    selector: Annotated[str, Field(max_length=256)] = ""
    progress: ProgressStatus | None = None
    last_checkpoint: Checkpoint = ""
    mlflow_url: Annotated[str, Field(max_length=1024)] = ""
    avoided_nodes: list[Annotated[str, Field(max_length=253)]] = Field(default_factory=list, max_length=16)
    waiting: Waiting = Field(default_factory=Waiting)
    start_time: Time | None = None
    completion_time: Time | None = None

    @classmethod
    def parse(cls, status: Mapping[str, Any] | None) -> RunStatus:
        """The status of an object; a run that has none yet has the default one."""
        return cls.model_validate(known(status, CONDITIONS))

    def manifest(self) -> dict[str, Any]:
        """As in an object; times in whole seconds of UTC."""
        found: dict[str, Any] = self.model_dump(mode="json", by_alias=True, exclude_none=True)
        return found

    def condition(self, kind: str) -> Condition | None:
        """The condition of this type, if there is one yet."""
        return next((condition for condition in self.conditions if condition.type == kind), None)

    def is_true(self, kind: str) -> bool:
        """Whether a condition holds."""
        found = self.condition(kind)
        return found is not None and found.status == "True"

    @property
    def finished(self) -> bool:
        """Whether the run is over for good."""
        return self.is_true("Complete") or self.is_true("Failed")
