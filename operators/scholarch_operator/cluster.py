"""What the operator does to the API server, and no decision."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from kubernetes import client, config
from kubernetes.client.exceptions import ApiException
from kubernetes.dynamic import DynamicClient
from kubernetes.dynamic.exceptions import ConflictError, NotFoundError, ResourceNotFoundError
from scholarch.config.training_run import GROUP, KIND, VERSION

from scholarch_operator.names import MANAGER
from scholarch_operator.objects import Manifest
from scholarch_operator.observed import Body, Run
from scholarch_operator.plan import Plan
from scholarch_operator.promotion import Promotion
from scholarch_operator.promotion_status import PromotionStatus
from scholarch_operator.status import RunStatus

API_VERSION = f"{GROUP}/{VERSION}"
TIMEOUT_SECONDS = 30


class OutdatedError(Exception):
    """The run has changed since it was looked at; the change will come as an event."""


class Cluster:
    """One API server, as the process's own account."""

    def __init__(self) -> None:
        try:
            config.load_incluster_config()  # type: ignore[no-untyped-call]
        except config.ConfigException:
            config.load_kube_config()  # type: ignore[no-untyped-call]
        self._dynamic = DynamicClient(client.ApiClient())  # type: ignore[no-untyped-call]
        self._applied: dict[tuple[str, str, str, str], str] = {}

    def serves(self, api_version: str, kind: str) -> bool:
        """Whether the API server knows a kind."""
        try:
            self._resource(api_version, kind)
        except ResourceNotFoundError:
            return False
        return True

    def carry_out(self, body: Body, run: Run, todo: Plan) -> None:
        """Does what a plan says, in its order.

        Raises:
            OutdatedError: before anything that follows from an old state of the run.
            ApiException: what the API server refused.
        """
        version = body["metadata"]["resourceVersion"]
        if todo.status != RunStatus.parse(body.get("status")) or not body.get("status"):
            version = self.write_status(run.namespace, run.name, version, todo.status)
        for reason, message in todo.events:
            self.tell(run, reason, message)
        for manifest in todo.apply:
            self._apply(manifest)
        for manifest in todo.create:
            if self._version(run) != version:
                raise OutdatedError
            self.create(manifest)
        for name, patch in todo.patch:
            self._on_job("patch", run, name, body=patch, content_type="application/merge-patch+json")
        for name in todo.delete:
            self._on_job("delete", run, name, body={"propagationPolicy": "Background"})
        if todo.delete_run:
            options = {"propagationPolicy": "Background", "preconditions": {"uid": run.uid}}
            self._runs().delete(name=run.name, namespace=run.namespace, body=options)

    def write_status(
        self, namespace: str, name: str, version: str, status: RunStatus | PromotionStatus, kind: str = KIND
    ) -> str:
        """Writes the status onto the object that was looked at; gives its new version.

        Raises:
            OutdatedError: if it has changed since.
        """
        patch = [
            # A failed "test" is a 422 without a word of what failed; another version than the present one is a 409.
            {"op": "replace", "path": "/metadata/resourceVersion", "value": version},
            {"op": "add", "path": "/status", "value": status.manifest()},
        ]
        try:
            written = self._resource(API_VERSION, kind).status.patch(
                body=patch,
                name=name,
                namespace=namespace,
                content_type="application/json-patch+json",
                _request_timeout=TIMEOUT_SECONDS,
            )
        except (NotFoundError, ConflictError) as error:
            raise OutdatedError from error
        return str(written.metadata.resourceVersion)

    def tell(self, about: Run | Promotion, reason: str, message: str, kind: str = KIND) -> None:
        """An Event on an object."""
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        event = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"generateName": f"{about.name}-", "namespace": about.namespace},
            "involvedObject": {
                "apiVersion": API_VERSION,
                "kind": kind,
                "name": about.name,
                "namespace": about.namespace,
                "uid": about.uid,
            },
            "reason": reason,
            "message": message[:1024],
            "type": "Normal",
            "source": {"component": MANAGER},
            "firstTimestamp": now,
            "lastTimestamp": now,
        }
        self._resource("v1", "Event").create(body=event, namespace=about.namespace)

    def forget(self, namespace: str, run: str) -> None:
        """Frees what is remembered of a run that is gone."""
        for key in [key for key in self._applied if key[0] == namespace and key[1] == run]:
            del self._applied[key]

    def _apply(self, manifest: Manifest) -> None:
        meta = manifest["metadata"]
        owner = meta["ownerReferences"][0]["name"]
        key = (meta["namespace"], owner, manifest["kind"], meta["name"])
        content = json.dumps(manifest, sort_keys=True)
        if self._applied.get(key) == content:
            return
        self._resource(manifest["apiVersion"], manifest["kind"]).server_side_apply(
            body=manifest, field_manager=MANAGER, force_conflicts=True, _request_timeout=TIMEOUT_SECONDS
        )
        self._applied[key] = content

    def create(self, manifest: Manifest) -> None:
        """Makes an object, if it is not there already."""
        resource = self._resource(manifest["apiVersion"], manifest["kind"])
        try:
            resource.create(body=manifest, field_manager=MANAGER, _request_timeout=TIMEOUT_SECONDS)
        except ConflictError:
            return  # it is there already: an index comes later than the API server

    def _on_job(self, verb: str, run: Run, name: str, **how: Any) -> None:
        jobs = self._resource("batch/v1", "Job")
        try:
            getattr(jobs, verb)(name=name, namespace=run.namespace, _request_timeout=TIMEOUT_SECONDS, **how)
        except NotFoundError:
            return

    def _version(self, run: Run) -> str:
        try:
            found = self._runs().get(name=run.name, namespace=run.namespace)
        except NotFoundError as error:
            raise OutdatedError from error
        return str(found.metadata.resourceVersion)

    def _runs(self) -> Any:
        return self._resource(API_VERSION, KIND)

    def _resource(self, api_version: str, kind: str) -> Any:
        return self._dynamic.resources.get(api_version=api_version, kind=kind)


def refusal(error: ApiException) -> str:
    """What the API server said, in one line; empty where trying again may help."""
    if error.status not in (400, 403, 404, 422):
        return ""
    try:
        said: Mapping[str, Any] = json.loads(error.body or "{}")
    except json.JSONDecodeError:
        said = {}
    return str(said.get("message") or error.reason)
