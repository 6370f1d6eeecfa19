"""The chart of the platform, rendered: what is in it, what it refuses, and what its policies mean.

`REGENERATE_GOLDEN=1 pytest tests/charts/test_platform.py` writes the golden files anew.
"""

from __future__ import annotations

import base64
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from rendering import NAMESPACE, PLATFORM, Manifest, Pod, allowed, helm, of_kind, pods, rendered
from scholarch_operator.metrics import PROMOTIONS, RECONCILES, RunCollector

GOLDEN = Path(__file__).parent / "golden"
MINIO: Manifest = {
    "image": {"repository": "registry.example/scholarch", "digest": f"sha256:{'a' * 64}"},
    "minio": {"image": "registry.example/minio:1"},
    "namespaces": [{"name": "vision"}, {"name": "speech"}],
}
CASES: dict[str, Manifest] = {
    "minio": MINIO,
    "external": {
        "imagePullSecrets": ["registry"],
        "minio": {"enabled": False},
        "storage": {"endpoint": "https://s3.example.org", "secret": "s3-key"},
        "mlflow": {
            "secret": "mlflow-admin",
            "postgresql": {"secret": "database"},
            "allowedHosts": ["mlflow.example.org"],
            "storageClass": "fast",
        },
        "operator": {"namespaces": ["vision"]},
        "dashboard": {"enabled": False},
        "networkPolicies": {
            "egress": [{"to": [{"ipBlock": {"cidr": "203.0.113.0/24"}}], "ports": [{"port": 443}]}],
            "metrics": [{"namespaceSelector": {"matchLabels": {"name": "monitoring"}}}],
        },
    },
    "kueue": MINIO
    | {
        "namespaces": [{"name": "vision"}],
        "kueue": {
            "enabled": True,
            "flavors": [
                {"name": "h100", "nodeLabels": {"pool": "h100"}, "quota": {"cpu": 96, "memory": "768Gi"}}
            ],
            "priorities": {"urgent": 1000},
        },
    },
}


@pytest.fixture(params=CASES, scope="module")
def case(request: pytest.FixtureRequest) -> tuple[str, list[Manifest]]:
    """Name and manifests."""
    return request.param, rendered(PLATFORM, CASES[request.param])


@pytest.fixture(scope="module")
def platform() -> list[Manifest]:
    """With MinIO and two namespaces."""
    return rendered(PLATFORM, MINIO)


def masked(manifest: Manifest) -> Manifest:
    """Without what is drawn anew in each rendering, and without the dashboard, a file of its own."""
    if manifest["kind"] != "Secret" and not manifest["metadata"]["name"].endswith("-dashboard"):
        return manifest
    return {**manifest, "data": dict.fromkeys(manifest["data"], "...")}


def test_golden(case: tuple[str, list[Manifest]]) -> None:
    name, manifests = case
    kept = [masked(m) for m in manifests if m["kind"] != "CustomResourceDefinition"]
    text = yaml.safe_dump_all(json.loads(json.dumps(kept)), sort_keys=False, width=110)
    path = GOLDEN / f"{name}.yaml"
    if os.environ.get("REGENERATE_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert path.read_text() == text


def test_lint() -> None:
    done = helm("lint", "--strict", str(PLATFORM), values=MINIO)
    assert done.returncode == 0, done.stdout


def test_crds_stay_when_the_platform_goes(platform: list[Manifest]) -> None:
    found = of_kind(platform, "CustomResourceDefinition")
    assert {crd["spec"]["group"] for crd in found} == {"scholarch.dev"}
    assert "trainingruns.scholarch.dev" in {crd["metadata"]["name"] for crd in found}
    assert not of_kind(rendered(PLATFORM, {**MINIO, "crds": {"enabled": False}}), "CustomResourceDefinition")
    kept = [*found, *of_kind(platform, "PersistentVolumeClaim", "Secret", "Namespace")]
    assert {m["metadata"]["annotations"]["helm.sh/resource-policy"] for m in kept} == {"keep"}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"mlfow": {}}, "mlfow"),
        ({"minio": {"image": "m", "replicas": 3}}, "replicas"),
        ({"namespaces": ["vision"]}, "namespaces"),
        ({"namespaces": [{"name": "Vision"}]}, "namespaces"),
        ({"image": {"repository": ""}}, "repository"),
        ({"image": {"digest": "latest"}}, "digest"),
        ({"storage": {"endpoint": "s3.example.org"}}, "endpoint"),
        ({"storage": {"endpoint": "https://user:secret@s3.example.org"}}, "endpoint"),
        ({"storage": {"buckets": {"runs": "Runs"}}}, "buckets"),
        ({"operator": {"resources": {"limits": {"cpu": "much"}}}}, "limits"),
        ({"mlflow": {"size": "ten"}}, "size"),
        ({"kueue": {"enabled": True}}, "flavors"),
        ({"networkPolicies": {"clients": [{"everyone": True}]}}, "clients"),
        ({"minio": {}}, "minio.image is needed"),
        ({"minio": {"enabled": False}}, "storage.endpoint is needed"),
        ({"minio": {"enabled": False}, "storage": {"endpoint": "https://s3"}}, "storage.secret is needed"),
    ],
)
def test_wrong_values_are_refused(change: Manifest, says: str) -> None:
    values = {**MINIO, **change}
    done = helm("template", "scholarch", str(PLATFORM), "--kube-version", "1.34.0", values=values)
    assert done.returncode != 0
    assert says in done.stderr


def test_every_container_is_restricted_and_bounded(case: tuple[str, list[Manifest]]) -> None:
    """Pod Security `restricted`, and beside it: root file system, API token, requests and limits."""
    for name, template in pods(case[1]):
        spec = template["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] > 0
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["automountServiceAccountToken"] is (name == "scholarch-operator")
        assert not any(key in spec for key in ("hostNetwork", "hostPID", "hostIPC", "initContainers"))
        assert not any("hostPath" in volume for volume in spec["volumes"])
        assert all("sizeLimit" in v["emptyDir"] for v in spec["volumes"] if "emptyDir" in v)
        for container in spec["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
                "readOnlyRootFilesystem": True,
            }
            for bound in ("requests", "limits"):
                assert set(container["resources"][bound]) == {"cpu", "memory"}


def test_servers_have_probes_and_no_second_replica(case: tuple[str, list[Manifest]]) -> None:
    for deployment in of_kind(case[1], "Deployment"):
        assert deployment["spec"]["replicas"] == 1
        assert deployment["spec"]["strategy"] == {"type": "Recreate"}
        for container in deployment["spec"]["template"]["spec"]["containers"]:
            assert {"startupProbe", "livenessProbe", "readinessProbe"} <= set(container)


def test_namespaces_are_restricted(platform: list[Manifest]) -> None:
    found = of_kind(platform, "Namespace")
    assert [namespace["metadata"]["name"] for namespace in found] == ["vision", "speech"]
    for namespace in found:
        assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


def by_name(platform: list[Manifest]) -> dict[tuple[str, str], dict[str, str]]:
    return {
        (s["metadata"]["namespace"], s["metadata"]["name"]): {
            key: base64.b64decode(value).decode() for key, value in s["data"].items()
        }
        for s in of_kind(platform, "Secret")
    }


def test_secrets_stand_in_secrets_alone_and_each_is_another(platform: list[Manifest]) -> None:
    secrets = by_name(platform)
    drawn = {
        value
        for (namespace, _), data in secrets.items()
        for key, value in data.items()
        if namespace != NAMESPACE and key not in ("AWS_ACCESS_KEY_ID", "MLFLOW_TRACKING_USERNAME")
    }
    assert len(drawn) == 6, "three Secrets in each of two namespaces"
    assert all(len(value) == 40 for value in drawn)
    elsewhere = json.dumps([m for m in platform if m["kind"] != "Secret"])
    values = [value for data in secrets.values() for value in data.values() if len(value) == 40]
    assert not any(value in elsewhere for value in values)
    keys = secrets[NAMESPACE, "scholarch-storage-keys"]
    assert keys["vision.runs"] == secrets["vision", "scholarch-storage"]["AWS_SECRET_ACCESS_KEY"]
    assert keys["speech.datasets"] == secrets["speech", "scholarch-datasets"]["AWS_SECRET_ACCESS_KEY"]
    assert keys["operator"] == secrets[NAMESPACE, "scholarch-storage-operator"]["AWS_SECRET_ACCESS_KEY"]


def test_plan_of_storage_has_a_key_for_each_secret_and_no_more(platform: list[Manifest]) -> None:
    (plan,) = [m for m in of_kind(platform, "ConfigMap") if "plan.json" in m["data"]]
    keys = json.loads(plan["data"]["plan.json"])["keys"]
    assert set(keys) == set(by_name(platform)[NAMESPACE, "scholarch-storage-keys"])
    writes = {
        (purpose, place["bucket"], place["prefix"])
        for purpose, places in keys.items()
        for place in places
        if place["rights"] == "write"
    }
    assert writes == {
        ("mlflow", "mlflow", ""),
        ("vision.runs", "runs", "vision"),
        ("vision.datasets", "datasets", "vision"),
        ("speech.runs", "runs", "speech"),
        ("speech.datasets", "datasets", "speech"),
    }


PORTS = {"mlflow": 5000, "minio": 9000, "operator": 8080}
REACHES = {
    ("run", "mlflow"), ("run", "minio"), ("mlflow", "minio"), ("operator", "minio"), ("operator", "mlflow"),
    ("provision", "minio"), ("provision", "mlflow"), ("test", "minio"), ("test", "mlflow"), ("test", "operator"),
}  # fmt: skip
"""Who has to open a connection to whom."""
HARMLESS = {("mlflow", "operator"), ("minio", "operator"), ("minio", "mlflow"), ("provision", "operator")}
"""The platform's own parts reach one another, though they do not need to; everything else is closed."""


def test_network_policies_open_what_is_needed_and_nothing_else(platform: list[Manifest]) -> None:
    policies = of_kind(platform, "NetworkPolicy")
    parts = {
        template["metadata"]["labels"]["app.kubernetes.io/component"]: Pod(
            NAMESPACE, template["metadata"]["labels"]
        )
        for _, template in pods(platform)
    }
    assert set(parts) == {"operator", "mlflow", "minio", "provision", "test"}
    strangers = {"stranger": Pod("other", {"app": "x"}), "neighbour": Pod(NAMESPACE, {"app": "x"})}
    # The operator's policy of a run is in its own golden files; this is the platform's side of it.
    everyone = parts | strangers | {"run": Pod("elsewhere", {"scholarch.dev/run": "digits"})}
    reached = {
        (name, target)
        for name, source in everyone.items()
        for target, port in PORTS.items()
        if name != target and allowed(policies, source, parts[target], port)
    }
    assert reached == REACHES | HARMLESS
    assert not any(allowed(policies, parts["operator"], stranger, 80) for stranger in strangers.values())
    assert not allowed(policies, everyone["run"], parts["minio"], 9001)
    closed = Pod("vision", {"app": "x"})
    assert not allowed(policies, closed, parts["mlflow"], 5000)
    assert not allowed(policies, strangers["stranger"], closed, 80)


def rules(platform: list[Manifest], name: str) -> set[tuple[str, str, str]]:
    """Group, resource and verb that a ClusterRole gives, with what it aggregates."""
    roles = {m["metadata"]["name"]: m for m in of_kind(platform, "ClusterRole")}
    chosen = [roles[name]]
    for selector in roles[name].get("aggregationRule", {}).get("clusterRoleSelectors", []):
        chosen += [
            r for r in roles.values() if selector["matchLabels"].items() <= r["metadata"]["labels"].items()
        ]
    return {
        (group, resource, verb)
        for role in chosen
        for rule in role.get("rules", [])
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def test_roles_give_what_is_needed_and_no_more(platform: list[Manifest]) -> None:
    user, admin = rules(platform, "scholarch-user"), rules(platform, "scholarch-admin")
    operator = rules(platform, "scholarch-operator")
    assert user < admin
    assert ("scholarch.dev", "trainingruns", "create") in user
    assert ("", "pods/log", "get") in user
    assert ("scholarch.dev", "trainingruns/status", "patch") in operator - admin
    assert ("kueue.x-k8s.io", "clusterqueues", "update") in admin - user
    for given in (user, admin, operator):
        assert not any(
            resource in ("secrets", "pods/exec", "*") or verb == "*" for _, resource, verb in given
        )
    limited = rendered(PLATFORM, CASES["external"])
    assert not any(group == "scholarch.dev" for group, _, _ in rules(limited, "scholarch-operator"))
    (role,) = of_kind(limited, "Role")
    assert role["metadata"]["namespace"] == "vision"


def arguments(platform: list[Manifest], name: str) -> Any:
    (found,) = [m for m in of_kind(platform, "Deployment") if m["metadata"]["name"] == name]
    return found["spec"]["template"]["spec"]["containers"][0]["args"]


def test_mlflow_answers_to_its_service_names_and_keeps_artifacts_in_s3(platform: list[Manifest]) -> None:
    given = arguments(platform, "scholarch-mlflow")
    (hosts,) = [
        a.removeprefix("--allowed-hosts=").split(",") for a in given if a.startswith("--allowed-hosts")
    ]
    service = "scholarch-mlflow.scholarch-system.svc"
    assert {service, f"{service}:*", "scholarch-mlflow:*"} <= set(hosts)
    assert "*" not in hosts
    assert {"--app-name=basic-auth", "--no-serve-artifacts", "--default-artifact-root=s3://mlflow"} <= set(
        given
    )
    outside = arguments(rendered(PLATFORM, CASES["external"]), "scholarch-mlflow")
    assert any("mlflow.example.org:*" in argument for argument in outside)


def test_the_dashboard_asks_for_what_the_operator_tells(platform: list[Manifest]) -> None:
    """Each metric is on it, and each name on it is a metric."""
    run = {
        "metadata": {"namespace": "vision", "name": "a"},
        "status": {"attempt": 1, "progress": {"step": 1, "total": 2, "time": "2026-01-01T00:00:00Z"}},
    }
    told = {"scholarch_reconcile_seconds_bucket", *(m.name for m in RunCollector(lambda: [run]).collect())}
    told |= {f"{metric.name}_total" for counter in (RECONCILES, PROMOTIONS) for metric in counter.collect()}
    (found,) = [m for m in of_kind(platform, "ConfigMap") if m["metadata"]["name"].endswith("-dashboard")]
    assert found["metadata"]["labels"]["grafana_dashboard"] == "1"
    board = json.loads(found["data"]["scholarch-runs.json"])
    asked = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    asked += [variable["query"] for variable in board["templating"]["list"][1:]]
    names = {name for expression in asked for name in re.findall(r"scholarch_\w+", expression)}
    assert names == told
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    off = of_kind(rendered(PLATFORM, CASES["external"]), "ConfigMap")
    assert not [m for m in off if m["metadata"]["name"].endswith("-dashboard")]
