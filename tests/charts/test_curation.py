"""The chart of a curation: a RayJob that holds to KubeRay's fields, and a command that is one of ours."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from rendering import CURATION, Manifest, Pod, allowed, helm, of_kind, rendered
from scholarch.cli import curate
from scholarch.curation.recipe import CurationRecipe, load_curation

EXAMPLE: Manifest = yaml.safe_load((CURATION / "ci/digits.yaml").read_text())
# Of ray.io/v1 in KubeRay's own CRD, helm-chart/kuberay-operator/crds/ray.io_rayjobs.yaml: what we give, and its type.
RAY_JOB = {
    "entrypoint": str,
    "submissionMode": str,
    "shutdownAfterJobFinishes": bool,
    "ttlSecondsAfterFinished": int,
    "backoffLimit": int,
    "suspend": bool,
    "rayClusterSpec": dict,
}
RAY_CLUSTER = {"headGroupSpec": dict, "workerGroupSpecs": list}
HEAD = {"rayStartParams": dict, "template": dict}
WORKERS = HEAD | {"groupName": str, "replicas": int, "minReplicas": int, "maxReplicas": int}


@pytest.fixture(scope="module")
def manifests() -> list[Manifest]:
    return rendered(CURATION, EXAMPLE, release="mine")


@pytest.fixture
def job(manifests: list[Manifest]) -> Manifest:
    (found,) = of_kind(manifests, "RayJob")
    return found


def groups(job: Manifest) -> list[Manifest]:
    cluster = job["spec"]["rayClusterSpec"]
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def unknown(value: Any, kind: str, where: str) -> Iterator[str]:
    """Keys that Kubernetes' own model of a kind does not have."""
    from kubernetes import client

    if kind.startswith("list["):
        for number, item in enumerate(value):
            yield from unknown(item, kind[5:-1], f"{where}[{number}]")
    elif model := getattr(client, kind, None):
        types = {model.attribute_map[name]: found for name, found in model.openapi_types.items()}
        for key, inner in value.items():
            if key not in types:
                yield f"{where}.{key}"
            elif inner is not None:
                yield from unknown(inner, types[key], f"{where}.{key}")


def has_fields(value: Manifest, fields: dict[str, type]) -> bool:
    return all(type(value[key]) is fields.get(key) for key in value)


def test_every_field_is_one_of_kuberay(job: Manifest) -> None:
    assert job["apiVersion"] == "ray.io/v1"
    assert has_fields(job["spec"], RAY_JOB)
    assert has_fields(job["spec"]["rayClusterSpec"], RAY_CLUSTER)
    head, workers = groups(job)
    assert has_fields(head, HEAD)
    assert has_fields(workers, WORKERS)
    for group in (head, workers):
        assert all(type(value) is str for value in group["rayStartParams"].values())
        assert list(unknown(group["template"], "V1PodTemplateSpec", "template")) == []
    assert list(unknown({"spec": {"container": []}}, "V1PodTemplateSpec", "")) == [".spec.container"]


def test_it_runs_our_command_with_the_recipe(
    job: Manifest, manifests: list[Manifest], tmp_path: Path
) -> None:
    program, verb, *words = shlex.split(job["spec"]["entrypoint"])
    assert (program, verb) == ("scholarch", "curate")
    parser = argparse.ArgumentParser()
    curate.add_arguments(parser)
    asked = parser.parse_args(words)
    assert (asked.run, asked.ray) == (EXAMPLE["run"], "auto")
    (config,) = of_kind(manifests, "ConfigMap")
    (tmp_path / "curation.yaml").write_text(config["data"]["curation.yaml"])
    assert load_curation(str(tmp_path / "curation.yaml")).sample is not None
    for group in groups(job):
        spec = group["template"]["spec"]
        mount = {m["name"]: m["mountPath"] for m in spec["containers"][0]["volumeMounts"]}
        assert asked.recipe == f"{mount['recipe']}/curation.yaml"
        (volume,) = [v for v in spec["volumes"] if v["name"] == "recipe"]
        assert volume["configMap"]["name"] == config["metadata"]["name"]


def test_the_schema_has_the_sections_of_a_recipe() -> None:
    schema = yaml.safe_load((CURATION / "values.schema.json").read_text())
    assert set(schema["properties"]["recipe"]["properties"]) == set(CurationRecipe.model_fields)


def test_pods_are_restricted_bounded_and_hold_no_token(job: Manifest) -> None:
    for group in groups(job):
        spec = group["template"]["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["automountServiceAccountToken"] is False
        (container,) = spec["containers"]
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert {source["secretRef"]["name"] for source in container["envFrom"]} == {
            "scholarch-storage",
            "scholarch-tracking",
        }
    assert groups(job)[0]["rayStartParams"]["num-cpus"] == "0"
    assert groups(job)[1]["replicas"] == 4


def test_kueue_begins_it_and_without_it_nothing_holds_it(job: Manifest) -> None:
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "scholarch"
    assert job["spec"]["suspend"] is True
    (plain,) = of_kind(rendered(CURATION, {**EXAMPLE, "queue": "", "secrets": {}}, release="mine"), "RayJob")
    assert "kueue.x-k8s.io/queue-name" not in plain["metadata"]["labels"]
    assert "suspend" not in plain["spec"]
    assert groups(plain)[0]["template"]["spec"]["containers"][0]["envFrom"] == []


def test_gpus_are_asked_for_by_workers_alone(job: Manifest) -> None:
    (found,) = of_kind(rendered(CURATION, {**EXAMPLE, "workers": {"gpus": 2}}), "RayJob")
    head, workers = (group["template"]["spec"]["containers"][0]["resources"] for group in groups(found))
    assert workers["limits"]["nvidia.com/gpu"] == 2
    assert "nvidia.com/gpu" not in head["limits"]
    assert "nvidia.com/gpu" not in str(job)


def test_who_reaches_whom(job: Manifest, manifests: list[Manifest]) -> None:
    policies = of_kind(manifests, "NetworkPolicy")
    for policy in policies:
        policy["metadata"]["namespace"] = "vision"
    head, worker = (Pod("vision", group["template"]["metadata"]["labels"]) for group in groups(job))
    other = Pod("vision", {"scholarch.dev/run": "other"})
    kuberay = Pod("ray-system", {"app.kubernetes.io/name": "kuberay-operator"})
    minio = Pod("scholarch-system", {"app.kubernetes.io/part-of": "scholarch-platform"})
    assert allowed(policies, worker, head, 6379)
    assert allowed(policies, head, worker, 6380)
    assert allowed(policies, kuberay, head, 8265)
    assert allowed(policies, worker, minio, 9000)
    assert not allowed(policies, kuberay, head, 6379)
    assert not allowed(policies, other, head, 6379)
    assert not allowed(policies, other, head, 8265)


def test_lint() -> None:
    done = helm("lint", "--strict", str(CURATION), values=EXAMPLE)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"image": ""}, "image"),
        ({"run": "runs/a"}, "run"),
        ({"run": "s3://runs/a; rm -r /"}, "run"),
        ({"recipe": {"pool": {"web": "s3://a/b"}}}, "embed"),
        ({"recipe": {**EXAMPLE["recipe"], "clusters": {}}}, "clusters"),
        ({"workers": {"count": 0}}, "count"),
        ({"workers": {"memory": "much"}}, "memory"),
        ({"worker": {}}, "worker"),
        ({"secrets": {"storage": "S3 key"}}, "storage"),
        ({"env": {"A": 1}}, "env"),
    ],
)
def test_wrong_values_are_refused(change: Manifest, says: str) -> None:
    done = helm("template", "mine", str(CURATION), "--kube-version", "1.34.0", values={**EXAMPLE, **change})
    assert done.returncode != 0
    assert says in done.stderr
