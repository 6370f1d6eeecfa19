"""Charts as `helm template` renders them, without a cluster; and what NetworkPolicies say about two pods."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

Manifest = dict[str, Any]
ROOT = Path(__file__).parents[2]
PLATFORM, RUN = ROOT / "charts/scholarch", ROOT / "charts/scholarch-run"
CURATION = ROOT / "charts/scholarch-curation"
NAMESPACE = "scholarch-system"


def helm(*arguments: str, values: Manifest | None = None) -> subprocess.CompletedProcess[str]:
    """`helm ARGUMENTS`, with values on standard input; skips the test where there is no helm."""
    program = shutil.which("helm") or str(Path("~/.cache/cluster/bin/helm").expanduser())
    if not Path(program).is_file():
        pytest.skip("no helm: in PATH, or in ~/.cache/cluster/bin after `.ci/cluster up`")
    given = ["--values", "-"] if values is not None else []
    return subprocess.run(
        [program, *arguments, *given],
        input=yaml.safe_dump(values) if values is not None else None,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def rendered(chart: Path, values: Manifest, release: str = "scholarch") -> list[Manifest]:
    """All manifests, in Helm's order."""
    done = helm("template", release, str(chart), "-n", NAMESPACE, "--kube-version", "1.34.0", values=values)
    assert done.returncode == 0, done.stderr
    return [manifest for manifest in yaml.safe_load_all(done.stdout) if manifest]


def of_kind(manifests: list[Manifest], *kinds: str) -> list[Manifest]:
    return [manifest for manifest in manifests if manifest["kind"] in kinds]


def pods(manifests: list[Manifest]) -> list[tuple[str, Manifest]]:
    """Name and pod template (metadata and spec) of everything that makes pods."""
    found = []
    for manifest in of_kind(manifests, "Deployment", "StatefulSet", "DaemonSet", "Job", "Pod"):
        template = manifest if manifest["kind"] == "Pod" else manifest["spec"]["template"]
        found.append((manifest["metadata"]["name"], template))
    return found


class Pod:
    """A pod by its labels and its namespace's; a namespace has its name as a label."""

    def __init__(self, namespace: str, labels: dict[str, str]) -> None:
        self.namespace, self.labels = namespace, labels

    @property
    def of_namespace(self) -> dict[str, str]:
        return {"kubernetes.io/metadata.name": self.namespace}


def allowed(policies: list[Manifest], source: Pod, target: Pod, port: int) -> bool:
    """Whether both sides let a TCP connection pass, as the NetworkPolicy API defines it."""
    return _lets(policies, "Egress", source, target, port) and _lets(
        policies, "Ingress", target, source, port
    )


def _lets(policies: list[Manifest], way: str, pod: Pod, peer: Pod, port: int) -> bool:
    chosen = [
        policy["spec"]
        for policy in policies
        if policy["metadata"].get("namespace", NAMESPACE) == pod.namespace
        and way in policy["spec"]["policyTypes"]
        and _selects(policy["spec"]["podSelector"], pod.labels)
    ]
    rules = [rule for spec in chosen for rule in spec.get(way.lower()) or []]
    return not chosen or any(_matches(rule, way, pod, peer, port) for rule in rules)


def _matches(rule: Manifest, way: str, pod: Pod, peer: Pod, port: int) -> bool:
    ports = rule.get("ports")
    if ports and not any(p.get("protocol", "TCP") == "TCP" and p["port"] == port for p in ports):
        return False
    peers = rule.get("to" if way == "Egress" else "from")
    return not peers or any(_is(one, pod, peer) for one in peers)


def _is(one: Manifest, pod: Pod, peer: Pod) -> bool:
    if "ipBlock" in one:
        return False
    same = peer.namespace == pod.namespace
    if "namespaceSelector" in one:
        same = _selects(one["namespaceSelector"], peer.of_namespace)
    return same and _selects(one.get("podSelector", {}), peer.labels)


def _selects(selector: Manifest, labels: dict[str, str]) -> bool:
    for expression in selector.get("matchExpressions", []):
        assert expression["operator"] == "Exists"
        if expression["key"] not in labels:
            return False
    return all(labels.get(key) == value for key, value in (selector.get("matchLabels") or {}).items())
