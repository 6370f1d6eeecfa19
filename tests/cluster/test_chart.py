"""The platform's chart on a real cluster: installed from nothing, tested, upgraded, uninstalled, and back again."""

from __future__ import annotations

import uuid

import pytest
from commands import objects, run
from platform_release import NAMESPACE, RELEASE, TEAM, helm, install, of_release, reached, secret
from runs_api import wait_for
from scholarch.registry.client import connect
from scholarch.storage.s3 import S3Objects

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("platform")]
PART = "app.kubernetes.io/part-of=scholarch-platform"


def test_all_pods_are_ready_under_pod_security_restricted() -> None:
    (namespace,) = objects("namespace", NAMESPACE)
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    pods = objects("pods", "-n", NAMESPACE, "-l", PART)
    parts = {pod["metadata"]["labels"]["app.kubernetes.io/component"] for pod in pods}
    assert parts >= {"operator", "mlflow", "minio"}
    for pod in pods:
        assert all(status["ready"] for status in pod["status"]["containerStatuses"]), pod["metadata"]["name"]


def test_every_container_is_non_root_and_cannot_write_its_root_file_system() -> None:
    program = "import os; print(os.getuid(), open('/proc/self/status').read())"
    for part in ("operator", "mlflow"):
        command = ("kubectl", "exec", "-n", NAMESPACE, f"deploy/{RELEASE}-{part}", "--", "python", "-c")
        said = run(*command, program, seconds=120)
        assert said.startswith("10001 "), said
        assert "CapEff:\t0000000000000000" in said
        assert "NoNewPrivs:\t1" in said
        with pytest.raises(AssertionError, match="Read-only file system"):
            run(*command, "open('/opt/written', 'w')", seconds=120)
    # MinIO's image has nothing but the server: what the kubelet was told is all there is to ask.
    for pod in objects("pods", "-n", NAMESPACE, "-l", PART):
        assert pod["spec"]["securityContext"]["runAsUser"] == 10001
        assert all(c["securityContext"]["readOnlyRootFilesystem"] for c in pod["spec"]["containers"])


def test_helm_test_is_green() -> None:
    """Each access key does what it should and nothing else, accounts log in, the operator is well."""
    assert "Phase:          Succeeded" in helm("test", RELEASE, "--timeout", "600s")


def test_second_upgrade_changes_nothing() -> None:
    before = of_release()
    assert len(before) > 20
    install()
    after = of_release()
    assert {name: after.get(name) for name in before} == before


def test_uninstallation_leaves_data_and_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    keys, account = secret(TEAM, "scholarch-storage"), secret(TEAM, "scholarch-tracking")
    for name, value in (keys | account).items():
        monkeypatch.setenv(name, value)
    claims = {claim["metadata"]["uid"] for claim in objects("pvc", "-n", NAMESPACE)}
    assert len(claims) == 2
    with reached("scholarch-minio", 9000) as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{address}")
        S3Objects("runs", TEAM).write("recipe.yaml", b"kept")
    experiment = f"kept-{uuid.uuid4().hex[:8]}"
    with reached("scholarch-mlflow", 5000) as address:
        connect(f"http://{address}").create_experiment(experiment)

    helm("uninstall", RELEASE)  # with --wait it would wait for what it keeps
    wait_for("no pod of the platform", lambda: not objects("pods", "-n", NAMESPACE, "-l", PART))
    assert objects("customresourcedefinitions", "trainingruns.scholarch.dev")
    assert objects("namespace", TEAM)
    assert {claim["metadata"]["uid"] for claim in objects("pvc", "-n", NAMESPACE)} == claims

    install()
    assert secret(TEAM, "scholarch-storage") == keys
    with reached("scholarch-minio", 9000) as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{address}")
        assert S3Objects("runs", TEAM).read("recipe.yaml") == b"kept"
    with reached("scholarch-mlflow", 5000) as address:
        found = connect(f"http://{address}").get_experiment_by_name(experiment)
        assert found.artifact_location.startswith("s3://mlflow/"), "artifacts do not pass the server"
