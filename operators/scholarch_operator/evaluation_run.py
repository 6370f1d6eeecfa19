"""The `TrainingRun`s that evaluate for a promotion: from a start to the object, and back."""

from __future__ import annotations

from scholarch.config.promotion import PROMOTION, PolicySpec
from scholarch.config.training_run import GROUP, KIND, VERSION, TrainingRunSpec

from scholarch_operator.names import ATTEMPT_LABEL, MANAGER
from scholarch_operator.objects import Manifest
from scholarch_operator.observed import Body
from scholarch_operator.promotion import EvaluationRun, Promotion, Start
from scholarch_operator.status import RunStatus

PROMOTION_LABEL = f"{GROUP}/promotion"
PURPOSE, SUITE = f"{GROUP}/purpose", f"{GROUP}/suite"
_NAME_LENGTH = 28


def evaluation_run(promotion: Promotion, policy: PolicySpec, start: Start) -> Manifest:
    """The object; its name follows from what it is for, so that it is not made twice."""
    how = policy.evaluation
    suite = next(one for one in policy.suites if one.name == start.suite)
    spec = TrainingRunSpec(
        verb="evaluate",
        image=how.image,
        code=how.code,
        model=f"models:/{policy.model}/{start.version}",
        suite=start.suite,
        overrides=suite.overrides,
        processes=how.processes,
        resources=how.resources,
        queue=how.queue,
        gang=how.gang,
        placement=how.placement,
        env=how.env,
        volumes=how.volumes,
        secrets=how.secrets,
        mlflow=how.mlflow,
    )
    owner = {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": PROMOTION,
        "name": promotion.name,
        "uid": promotion.uid,
        "controller": True,
        "blockOwnerDeletion": False,
    }
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": KIND,
        "metadata": {
            "name": f"{promotion.name[:_NAME_LENGTH].rstrip('-')}-{start.purpose}-{start.attempt}",
            "namespace": promotion.namespace,
            "labels": {
                "app.kubernetes.io/managed-by": MANAGER,
                PROMOTION_LABEL: promotion.name,
                PURPOSE: start.purpose,
                ATTEMPT_LABEL: str(start.attempt),
            },
            "annotations": {SUITE: start.suite},
            "ownerReferences": [owner],
        },
        "spec": spec.manifest(),
    }


def read_evaluation(body: Body) -> EvaluationRun | None:
    """What a `TrainingRun` evaluates; None for one that was not started for a promotion."""
    meta = body["metadata"]
    labels = meta.get("labels", {})
    if not labels.get(ATTEMPT_LABEL, "").isdigit() or PURPOSE not in labels:
        return None
    status = RunStatus.parse(body.get("status"))
    failed = status.condition("Failed")
    state = "Complete" if status.is_true("Complete") else "Failed" if status.is_true("Failed") else "Running"
    return EvaluationRun(
        name=meta["name"],
        purpose=labels[PURPOSE],
        attempt=int(labels[ATTEMPT_LABEL]),
        state=state,  # type: ignore[arg-type]
        message=f"{failed.reason}: {failed.message}" if failed is not None and state == "Failed" else "",
    )
