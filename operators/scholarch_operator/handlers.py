"""kopf's part: watches, indexes, and wakes the controller. No handler here changes an object or a finalizer."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from typing import Any

import kopf
from kubernetes.config import ConfigException
from prometheus_client import REGISTRY, start_http_server
from scholarch.config.promotion import POLICIES, PROMOTIONS
from scholarch.config.training_run import GROUP, PLURAL, VERSION

from scholarch_operator.cluster import Cluster
from scholarch_operator.controller import Controller, Key
from scholarch_operator.evaluation_run import PROMOTION_LABEL, read_evaluation
from scholarch_operator.metrics import RunCollector
from scholarch_operator.names import ROLE_LABEL, RUN_LABEL, WORKER
from scholarch_operator.observed import Job, Pod
from scholarch_operator.promoter import PromotionController
from scholarch_operator.settings import Settings

METRICS_PORT = 9090
JOBS: dict[str, Any] = {RUN_LABEL: kopf.PRESENT}
PODS: dict[str, Any] = {RUN_LABEL: kopf.PRESENT, ROLE_LABEL: WORKER}
logger = logging.getLogger(__name__)


@kopf.on.startup()
async def start(settings: kopf.OperatorSettings, memo: Any, **found: Any) -> None:
    """Names of our own wherever kopf writes any, and the controller beside kopf's own tasks."""
    settings.persistence.finalizer = f"{GROUP}/operator"
    settings.persistence.progress_storage = kopf.AnnotationsProgressStorage(prefix=f"operator.{GROUP}")
    settings.persistence.diffbase_storage = kopf.AnnotationsDiffBaseStorage(prefix=f"operator.{GROUP}")
    settings.posting.enabled = False
    settings.networking.connect_timeout = 10
    settings.networking.request_timeout = 60
    settings.watching.server_timeout = 600
    try:
        cluster = await asyncio.to_thread(Cluster)
    except ConfigException as error:
        raise kopf.PermanentError(f"no way to the API server: {error}") from error
    memo.controller = Controller(
        cluster, Settings.from_environment(), runs=found["runs"], jobs=found["jobs"], pods=found["pods"]
    )
    REGISTRY.register(RunCollector(memo.controller.bodies))
    start_http_server(METRICS_PORT)
    promoter = PromotionController(
        cluster,
        Settings.from_environment(),
        promotions=found["promotions"],
        policies=found["policies"],
        runs=found["evaluations"],
    )
    memo.work = [
        asyncio.create_task(memo.controller.work(), name="controller"),
        asyncio.create_task(promoter.work(), name="promotions"),
    ]
    for task in memo.work:
        task.add_done_callback(_end_with)


def _end_with(task: asyncio.Task[None]) -> None:
    if not task.cancelled():
        logger.error("the controller has ended", exc_info=task.exception())
        os.kill(os.getpid(), signal.SIGTERM)  # Kubernetes starts another one


@kopf.on.cleanup()
async def stop(memo: Any, **_: Any) -> None:
    """No half-done work: what was begun in a thread is waited for by Python itself."""
    for task in memo.work:
        task.cancel()


@kopf.index(GROUP, VERSION, PLURAL)
def runs(namespace: str | None, name: str, body: kopf.Body, **_: Any) -> dict[Key, Any]:
    """Runs by their key."""
    return {(namespace or "", name): dict(body)}


@kopf.index("batch", "v1", "jobs", labels=JOBS)
def jobs(namespace: str | None, labels: Any, body: kopf.Body, **_: Any) -> dict[Key, Any] | None:
    """Jobs by their run."""
    found = Job.parse(labels[RUN_LABEL], body)
    return {(namespace or "", labels[RUN_LABEL]): found} if found else None


@kopf.index("", "v1", "pods", labels=PODS)
def pods(namespace: str | None, labels: Any, body: kopf.Body, **_: Any) -> dict[Key, Any] | None:
    """Workers' pods by their run."""
    found = Pod.parse(labels[RUN_LABEL], body)
    return {(namespace or "", labels[RUN_LABEL]): found} if found else None


@kopf.index(GROUP, VERSION, PLURAL, labels={PROMOTION_LABEL: kopf.PRESENT})
def evaluations(namespace: str | None, labels: Any, body: kopf.Body, **_: Any) -> dict[Key, Any] | None:
    """Evaluations by their promotion."""
    found = read_evaluation(body)
    return {(namespace or "", labels[PROMOTION_LABEL]): found} if found else None


@kopf.index(GROUP, VERSION, PROMOTIONS)
def promotions(namespace: str | None, name: str, body: kopf.Body, **_: Any) -> dict[Key, Any]:
    """Promotions by their key."""
    return {(namespace or "", name): dict(body)}


@kopf.index(GROUP, VERSION, POLICIES)
def policies(namespace: str | None, name: str, body: kopf.Body, **_: Any) -> dict[Key, Any]:
    """Policies by their key."""
    return {(namespace or "", name): dict(body)}


@kopf.on.event(GROUP, VERSION, PLURAL)
async def run_changed(namespace: str | None, name: str, memo: Any, **_: Any) -> None:
    """A run was made, changed or deleted, or the operator has just seen it for the first time."""
    memo.controller.touch((namespace or "", name))


@kopf.on.event("batch", "v1", "jobs", labels=JOBS)
@kopf.on.event("", "v1", "pods", labels=PODS)
async def part_changed(namespace: str | None, labels: Any, memo: Any, **_: Any) -> None:
    """A Job or a pod of a run."""
    memo.controller.touch((namespace or "", labels[RUN_LABEL]))
