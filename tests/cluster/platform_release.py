"""The platform's chart as a release of the tests' cluster, and a way to its servers."""

from __future__ import annotations

import base64
import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from commands import Manifest, objects, run

CHART = Path(__file__).parents[2] / "charts/scholarch"
RELEASE, NAMESPACE, TEAM = "scholarch", "scholarch-system", "team-a"
IMAGE = os.environ.get("SCHOLARCH_TEST_IMAGE", "docker.io/library/scholarch:test")
MINIO = os.environ.get("SCHOLARCH_TEST_MINIO", "docker.io/library/scholarch-minio:test")
KINDS = (
    "deployments,services,configmaps,secrets,persistentvolumeclaims,serviceaccounts,networkpolicies,"
    "clusterroles,clusterrolebindings,customresourcedefinitions,namespaces"
)
SECONDS = 600
"""A busy machine needs minutes for what takes seconds."""


def values() -> Manifest:
    """Small, with one team and, where the cluster has Kueue, a queue."""
    repository, _, tag = IMAGE.rpartition(":")
    kueue = bool(objects("customresourcedefinitions", "clusterqueues.kueue.x-k8s.io"))
    flavor = {"name": "scholarch-test", "quota": {"cpu": 4, "memory": "8Gi", "nvidia.com/gpu": 8}}
    return {
        "image": {"repository": repository, "tag": tag},
        "minio": {"image": MINIO, "size": "1Gi"},
        # With the default tenth of a core it does not answer beside busy runs, and that looks like an outage.
        "mlflow": {"size": "1Gi", "resources": {"requests": {"cpu": "500m", "memory": "768Mi"}}},
        "namespaces": [{"name": TEAM}],
        "kueue": {"enabled": kueue, "flavors": [flavor], "priorities": {"scholarch-urgent": 1000}},
    }


def helm(*arguments: str, given: Manifest | None = None) -> str:
    """`helm ARGUMENTS` on the release; `given` are its values."""
    stdin = json.dumps(given) if given is not None else None
    ending = ["--values", "-"] if given is not None else []
    return run("helm", *arguments, "--namespace", NAMESPACE, *ending, stdin=stdin, seconds=SECONDS + 60)


def install() -> None:
    """Installs or upgrades, and waits until all is ready; other tests may have put CRDs there before."""
    label = {"pod-security.kubernetes.io/enforce": "restricted"}
    space = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": label}}
    run("kubectl", "apply", "-f", "-", stdin=json.dumps(space))
    timeout = ("--wait", "--timeout", f"{SECONDS}s", "--take-ownership")
    helm("upgrade", "--install", RELEASE, str(CHART), *timeout, given=values())


def secret(namespace: str, name: str) -> dict[str, str]:
    """The values of a Secret."""
    (found,) = objects("secret", name, "-n", namespace)
    return {key: base64.b64decode(value).decode() for key, value in found["data"].items()}


@contextmanager
def reached(service: str, port: int) -> Iterator[str]:
    """A Service of the platform on a port of this machine, as HOST:PORT."""
    command = ["kubectl", "port-forward", "-n", NAMESPACE, f"service/{service}", f":{port}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()  # Forwarding from 127.0.0.1:40123 -> 9000
            yield line.split()[2]
        finally:
            process.kill()


def of_release() -> dict[str, Any]:
    """What identifies each object of the release and its state, without what Kubernetes counts by itself."""
    found = objects(KINDS, "-A", "-l", "app.kubernetes.io/part-of=scholarch-platform")
    return {
        f"{one['kind']}/{one['metadata']['name']}": (
            one["metadata"]["uid"],
            one["metadata"].get("generation"),
            {key: one[key] for key in ("spec", "data", "rules") if key in one},
        )
        for one in found
    }


@contextmanager
def away(part: str) -> Iterator[None]:
    """A server of the platform has no pod meanwhile."""
    deployment = f"deployment/{RELEASE}-{part}"
    run("kubectl", "scale", deployment, "-n", NAMESPACE, "--replicas", "0")
    try:
        selector = f"app.kubernetes.io/component={part},app.kubernetes.io/name=scholarch"
        run("kubectl", "wait", "pod", "-n", NAMESPACE, "-l", selector, "--for=delete", "--timeout", "120s")
        yield
    finally:
        run("kubectl", "scale", deployment, "-n", NAMESPACE, "--replicas", "1")
        run(
            "kubectl",
            "rollout",
            "status",
            deployment,
            "-n",
            NAMESPACE,
            "--timeout",
            f"{SECONDS}s",
            seconds=SECONDS,
        )
