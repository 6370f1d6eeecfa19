"""What the operator sees: runs, Jobs and pods as the API server has them, and the run's own `progress.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic import BaseModel, ConfigDict
from scholarch.config.training_run import TrainingRunSpec
from scholarch.errors import EXIT_DONE, EXIT_INTERRUPTED, EXIT_WRONG_INPUT

from scholarch_operator.names import INDEX_ANNOTATION, NODES_ANNOTATION, ROLE_LABEL, WORKER, attempt_of
from scholarch_operator.status import RunStatus

Body = Mapping[str, Any]


@dataclass(frozen=True)
class Run:
    """A `TrainingRun`.

    Attributes:
        generation: of the spec that `status` may lag behind.
        deleting: it is being deleted; its objects follow by their owner references.
    """

    name: str
    namespace: str
    uid: str
    generation: int
    spec: TrainingRunSpec
    status: RunStatus
    deleting: bool = False

    @classmethod
    def parse(cls, body: Body) -> Run:
        """A run from its object.

        Raises:
            UserError: if its spec is not one that this operator knows.
        """
        meta = body["metadata"]
        return cls(
            name=meta["name"],
            namespace=meta["namespace"],
            uid=meta["uid"],
            generation=meta.get("generation", 0),
            spec=TrainingRunSpec.parse(body.get("spec", {})),
            status=RunStatus.parse(body.get("status")),
            deleting="deletionTimestamp" in meta,
        )


@dataclass(frozen=True)
class Job:
    """The Job of an attempt.

    Attributes:
        ended: "Complete", "Failed", or empty while it goes on.
        reason: why it ended, as the Job controller says it.
        nodes: what it was asked to be, MIN:MAX.
    """

    name: str
    attempt: int
    ended: str = ""
    reason: str = ""
    message: str = ""
    suspended: bool = False
    parallelism: int = 0
    nodes: str = ""
    deleting: bool = False

    @classmethod
    def parse(cls, run: str, body: Body) -> Job | None:
        """The Job, if it is one of this run's attempts."""
        meta, spec, status = body["metadata"], body.get("spec", {}), body.get("status", {})
        attempt = attempt_of(run, meta["name"])
        if attempt is None:
            return None
        true = {c["type"]: c for c in status.get("conditions", ()) if c["status"] == "True"}
        last = true.get("Complete") or true.get("Failed") or {}
        return cls(
            name=meta["name"],
            attempt=attempt,
            ended=last.get("type", ""),
            reason=last.get("reason", ""),
            message=last.get("message", ""),
            suspended=bool(spec.get("suspend")),
            parallelism=spec.get("parallelism", 0),
            nodes=meta.get("annotations", {}).get(NODES_ANNOTATION, ""),
            deleting="deletionTimestamp" in meta,
        )


@dataclass(frozen=True)
class Pod:
    """A worker's pod.

    Attributes:
        exit_code: of its container; None while it runs, or where it never did.
        disrupted: the cluster took it away: preemption, drain, taint, a lost node.
        message: its termination message, as the launcher wrote it.
        gone_by: when it is to have ended at the latest; None while nobody asked it to.
        asked: when somebody asked it to end, by force or not.
    """

    name: str
    attempt: int
    index: int = 0
    phase: str = "Pending"
    node: str = ""
    started: datetime | None = None
    exit_code: int | None = None
    disrupted: bool = False
    message: str = ""
    ended: datetime | None = None
    gone_by: datetime | None = None
    asked: datetime | None = None

    @classmethod
    def parse(cls, run: str, body: Body) -> Pod | None:
        """The pod, if it is a worker of this run."""
        meta, status = body["metadata"], body.get("status", {})
        owners = [owner["name"] for owner in meta.get("ownerReferences", ()) if owner["kind"] == "Job"]
        attempt = attempt_of(run, owners[0]) if owners else None
        if attempt is None or meta.get("labels", {}).get(ROLE_LABEL) != WORKER:
            return None
        containers = status.get("containerStatuses") or [{}]
        state = containers[0].get("state", {})
        ended = state.get("terminated") or {}
        gone_by = time_of(meta.get("deletionTimestamp"))
        grace = timedelta(seconds=meta.get("deletionGracePeriodSeconds") or 0)
        return cls(
            name=meta["name"],
            attempt=attempt,
            index=int(meta.get("annotations", {}).get(INDEX_ANNOTATION, 0)),
            phase=status.get("phase", "Pending"),
            node=body.get("spec", {}).get("nodeName", ""),
            started=time_of((state.get("running") or ended).get("startedAt")),
            exit_code=ended.get("exitCode"),
            disrupted=any(
                c["type"] == "DisruptionTarget" and c["status"] == "True"
                for c in status.get("conditions", ())
            ),
            message=(ended.get("message") or "").strip(),
            ended=time_of(ended.get("finishedAt")),
            gone_by=gone_by,
            asked=gone_by - grace if gone_by else None,
        )

    @property
    def running(self) -> bool:
        """Whether it does its part and is not on its way out."""
        return self.phase == "Running" and self.gone_by is None

    @property
    def over(self) -> bool:
        """Whether its containers have ended."""
        return self.phase in ("Succeeded", "Failed")

    @property
    def ended_early(self) -> bool:
        """Whether it ended without being done."""
        return self.phase == "Failed"

    @property
    def faulty(self) -> bool:
        """Whether its end counts: a fault of its own.

        The Job's pod failure policy knows no deletion by hand or by force, and counts it against `retries.pods`.
        """
        saved = self.exit_code in (EXIT_DONE, EXIT_INTERRUPTED, EXIT_WRONG_INPUT)
        taken = self.asked is not None and (self.ended is None or self.ended >= self.asked)
        # One that never ran was taken away while it waited, by a queue say; the kubelet gives it a 137.
        ran = self.started is not None
        return self.ended_early and ran and not (self.disrupted or saved or taken)

    @property
    def reason(self) -> str:
        """Why it ended, in words: the launcher writes {reason, step, checkpoint} as JSON."""
        try:
            said = json.loads(self.message)
            return str(said["reason"]) if isinstance(said, dict) and said.get("reason") else self.message
        except json.JSONDecodeError:
            return self.message


class Progress(BaseModel):
    """`progress.json` of a run, which rank 0 writes beside the checkpoints."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    step: int
    total: int = 0
    loss: float | None = None
    images_per_second: float | None = None
    eta_seconds: float | None = None
    slowest_rank: int | None = None
    world_size: int = 0
    checkpoint: str | int | None = None
    mlflow_url: str = ""
    time: datetime
    """ISO 8601, or seconds since 1970."""

    @property
    def aware_time(self) -> datetime:
        """With a time zone; UTC where the file names none."""
        return self.time if self.time.tzinfo else self.time.replace(tzinfo=UTC)


@dataclass(frozen=True)
class Observed:
    """All that a decision may depend on, but the run itself.

    Attributes:
        progress: None: the run has written none.
        progress_known: False: the store did not answer, so that nothing follows from a missing progress.
        missing_api: what the run's gang needs and the cluster does not serve; empty where nothing is missing.
        refused: what the API server said to the last try to make the run's objects; empty where it took them.
    """

    now: datetime
    jobs: tuple[Job, ...] = ()
    pods: tuple[Pod, ...] = ()
    progress: Progress | None = None
    progress_known: bool = True
    missing_api: str = ""
    refused: str = ""

    def job(self, attempt: int) -> Job | None:
        """The Job of an attempt."""
        return next((job for job in self.jobs if job.attempt == attempt), None)

    def pods_of(self, attempt: int) -> tuple[Pod, ...]:
        """The pods of an attempt."""
        return tuple(pod for pod in self.pods if pod.attempt == attempt)


def time_of(text: str | None) -> datetime | None:
    """A time of the API server."""
    return datetime.fromisoformat(text) if text else None
