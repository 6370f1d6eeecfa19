"""The API server of the cluster that `KUBECONFIG` names, for tests of what the operator and TorchX do there."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from kubernetes import client, config
from kubernetes.client.exceptions import ApiException
from kubernetes.dynamic import DynamicClient
from kubernetes.dynamic.exceptions import ConflictError
from scholarch.config.training_run import GROUP, KIND, PLURAL, VERSION

Manifest = dict[str, Any]


class Api:
    """A thin way to objects as plain dictionaries."""

    def __init__(self) -> None:
        config.load_kube_config(os.environ["KUBECONFIG"])  # type: ignore[no-untyped-call]
        self.client = client.ApiClient()
        self._dynamic = DynamicClient(self.client)  # type: ignore[no-untyped-call]

    def of(self, kind: str, version: str = "v1") -> Any:
        return self._dynamic.resources.get(api_version=version, kind=kind)

    def serves(self, version: str) -> bool:
        """Whether the API server knows a group's version."""
        group, _, of_group = version.partition("/")
        return bool(self._dynamic.resources.search(group=group, api_version=of_group))

    @property
    def runs(self) -> Any:
        return self.of(KIND, f"{GROUP}/{VERSION}")

    def run(self, namespace: str, name: str, spec: Manifest, **how: Any) -> Manifest:
        """Makes a run; `how` is of `create_namespaced_custom_object`."""
        body = {
            "apiVersion": f"{GROUP}/{VERSION}",
            "kind": KIND,
            "metadata": {"name": name, "namespace": namespace},
            "spec": spec,
        }
        # Strict, as kubectl does it: else unknown keys are dropped in silence.
        found: Manifest = client.CustomObjectsApi(self.client).create_namespaced_custom_object(
            GROUP, VERSION, namespace, PLURAL, body, field_validation="Strict", **how
        )
        return found

    def change(self, namespace: str, name: str, **spec: Any) -> None:
        """Changes keys of a run's spec."""
        self.runs.patch(
            body={"spec": spec}, name=name, namespace=namespace, content_type="application/merge-patch+json"
        )

    def replace(self, namespace: str, name: str, spec: Manifest) -> None:
        """Gives a run another spec, whole, whatever the operator writes into its status meanwhile."""

        def replaced() -> bool:
            body = self.get(namespace, name)
            assert body is not None
            try:
                self.runs.replace(body={**body, "spec": spec}, name=name, namespace=namespace)
            except ConflictError:  # of what was read a moment ago, and not of the spec
                return False
            return True

        wait_for("the spec's replacement", replaced, 60)

    def get(
        self, namespace: str, name: str, kind: str = KIND, version: str = f"{GROUP}/{VERSION}"
    ) -> Manifest | None:
        try:
            found: Manifest = self.of(kind, version).get(name=name, namespace=namespace).to_dict()
        except ApiException as error:
            if error.status == 404:
                return None
            raise
        return found

    def list(self, kind: str, version: str, namespace: str, run: str = "") -> list[Manifest]:
        """Objects of a kind; those of one run."""
        labels = {"label_selector": f"{GROUP}/run={run}"} if run else {}
        found: list[Manifest] = self.of(kind, version).get(namespace=namespace, **labels).to_dict()["items"]
        return found

    def jobs(self, namespace: str, run: str) -> list[Manifest]:
        return self.list("Job", "batch/v1", namespace, run)

    def pods(self, namespace: str, run: str) -> list[Manifest]:
        """Of the workers."""
        found = self.list("Pod", "v1", namespace, run)
        return [pod for pod in found if pod["metadata"]["labels"].get(f"{GROUP}/role") == "worker"]

    def page(self, namespace: str, pod: str, port: int, path: str) -> str:
        """What a pod answers at a path, by way of the API server."""
        found: str = client.CoreV1Api(self.client).connect_get_namespaced_pod_proxy_with_path(
            f"{pod}:{port}", namespace, path
        )
        return found

    @contextmanager
    def namespace(self) -> Iterator[str]:
        """A namespace of its own, gone afterwards with all that is in it."""
        name = f"test-{secrets.token_hex(4)}"
        self.of("Namespace").create(
            body={"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
        )
        try:
            yield name
        finally:
            self.of("Namespace").delete(name=name)


def wait_for(what: str, probe: Callable[[], Any], seconds: float = 240) -> Any:
    """The first true value of `probe`; fails when there is none in time."""
    until = time.monotonic() + seconds
    while not (found := probe()):
        assert time.monotonic() < until, f"not in {seconds:.0f} s: {what}"
        time.sleep(0.5)
    return found


def condition(run: Manifest | None, kind: str) -> Manifest:
    """A condition of a run; empty where there is none."""
    found = (run or {}).get("status", {}).get("conditions", [])
    return next((c for c in found if c["type"] == kind), {})
