"""Looks at runs one after another, whenever something about them changed and every few seconds anyway."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime

from kubernetes.client.exceptions import ApiException
from scholarch.errors import UserError
from urllib3.exceptions import HTTPError

from scholarch_operator.cluster import Cluster, OutdatedError, refusal
from scholarch_operator.conditions import unreadable
from scholarch_operator.gang import API
from scholarch_operator.metrics import RECONCILE_SECONDS, RECONCILES
from scholarch_operator.observed import Body, Job, Observed, Pod, Run
from scholarch_operator.plan import plan
from scholarch_operator.progress import ProgressReader
from scholarch_operator.settings import Settings
from scholarch_operator.status import RunStatus

PERIOD_SECONDS = 15.0
"""For what no event tells: progress, and time that has passed."""

Key = tuple[str, str]
"""Namespace and name of a run."""
logger = logging.getLogger(__name__)


class Controller:
    """One per operator. The indexes are live views that kopf keeps up to date.

    Args:
        runs, jobs, pods: by the run's key.
    """

    def __init__(
        self,
        cluster: Cluster,
        settings: Settings,
        runs: Mapping[Key, Iterable[Body]],
        jobs: Mapping[Key, Iterable[Job]],
        pods: Mapping[Key, Iterable[Pod]],
    ) -> None:
        self._cluster, self._settings = cluster, settings
        self._runs, self._jobs, self._pods = runs, jobs, pods
        self._progress = ProgressReader()
        self._refused: dict[Key, str] = {}
        self._changed: dict[Key, None] = {}  # a set that keeps its order
        self._wake = asyncio.Event()

    def touch(self, key: Key) -> None:
        """Something about a run has changed."""
        self._changed[key] = None
        self._wake.set()

    def bodies(self) -> list[Body]:
        """All runs."""
        return [body for key in list(self._runs) for body in self._runs.get(key, ())]

    async def work(self) -> None:
        """Goes on until it is cancelled."""
        while True:
            try:
                await asyncio.wait_for(self._wake.wait(), PERIOD_SECONDS)
            except TimeoutError:
                self._changed |= dict.fromkeys(list(self._runs))
            self._wake.clear()
            for key in list(self._changed):
                del self._changed[key]
                await self._look_at(key)

    async def _look_at(self, key: Key) -> None:
        body = next(iter(self._runs.get(key, ())), None)
        if body is None:
            self._refused.pop(key, None)
            self._cluster.forget(*key)
            return
        jobs, pods = list(self._jobs.get(key, ())), list(self._pods.get(key, ()))
        outcome = "error"
        try:
            with RECONCILE_SECONDS.time():
                await asyncio.to_thread(self._reconcile, key, body, jobs, pods)
            outcome = "done"
            self._refused.pop(key, None)
        except OutdatedError:
            outcome = "outdated"
        except ApiException as error:
            self._refused[key] = refusal(error)
            logger.warning("%s/%s: %s", *key, self._refused[key] or error)
        except (HTTPError, OSError) as error:
            logger.warning("%s/%s: the API server does not answer: %s", *key, error)
        except Exception:
            # One run's defect must not end the care for all others.
            logger.exception("%s/%s", *key)
        RECONCILES.labels(outcome).inc()

    def _reconcile(self, key: Key, body: Body, jobs: list[Job], pods: list[Pod]) -> None:
        now = datetime.now(UTC).replace(microsecond=0)
        try:
            run = Run.parse(body)
        except UserError as error:  # written under another version of the CRD
            before = RunStatus.parse(body.get("status"))
            status = unreadable(before, str(error), now)
            if status != before:
                self._cluster.write_status(*key, body["metadata"]["resourceVersion"], status)
            return
        progress, known = None, True
        if pods and not run.status.finished:
            progress, known = self._progress.read(run.spec)
        api = API.get(run.spec.gang.backend, "")
        observed = Observed(
            now=now,
            jobs=tuple(sorted(jobs, key=lambda job: job.attempt)),
            pods=tuple(sorted(pods, key=lambda pod: (pod.attempt, pod.index, pod.name))),
            progress=progress,
            progress_known=known,
            missing_api=api if api and not self._cluster.serves(api, "PodGroup") else "",
            refused=self._refused.get(key, ""),
        )
        self._cluster.carry_out(body, run, plan(run, observed, self._settings))
