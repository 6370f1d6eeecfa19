"""The objects of a run that last as long as it does; those of an attempt are in `job`."""

from __future__ import annotations

from typing import Any

from scholarch.config.command import RENDEZVOUS_PORT, STORE
from scholarch.config.training_run import GROUP, KIND, VERSION

from scholarch_operator import names
from scholarch_operator.observed import Run
from scholarch_operator.settings import Settings

Manifest = dict[str, Any]

CONTAINER_SECURITY: Manifest = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,
}
POD_SECURITY: Manifest = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}


def metadata(run: Run, name: str, labels: dict[str, str]) -> Manifest:
    """Of an object that goes with its run."""
    owner = {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": KIND,
        "name": run.name,
        "uid": run.uid,
        "controller": True,
        # A run that is deleted in the foreground must not wait for pods on a lost node.
        "blockOwnerDeletion": False,
    }
    return {"name": name, "namespace": run.namespace, "labels": labels, "ownerReferences": [owner]}


def has_rendezvous(run: Run) -> bool:
    """Whether nodes have to meet: not where there is one for good."""
    return run.spec.nodes.max > 1


def lasting(run: Run, settings: Settings, *, meeting: bool) -> list[Manifest]:
    """Everything beside Jobs and pod groups.

    Args:
        meeting: whether workers are there or expected, so that they need their meeting place.
    """
    found = [pods_service(run), network_policy(run, settings)]
    if any(stage.inline for stage in run.spec.stages):
        found.append(recipes(run))
    if has_rendezvous(run):
        found += [rendezvous(run, replicas=int(meeting)), rendezvous_service(run)]
    return found


def pods_service(run: Run) -> Manifest:
    """Headless: gives each worker's pod a name that the others can resolve before it is ready."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(run, run.name, names.labels(run.name)),
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": names.selector(run.name, names.WORKER),
        },
    }


def rendezvous_service(run: Run) -> Manifest:
    """A fixed address for the meeting place."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(run, names.rendezvous_name(run.name), names.labels(run.name, names.RENDEZVOUS)),
        "spec": {
            "selector": names.selector(run.name, names.RENDEZVOUS),
            "ports": [{"name": "store", "port": RENDEZVOUS_PORT, "targetPort": RENDEZVOUS_PORT}],
        },
    }


def rendezvous(run: Run, *, replicas: int) -> Manifest:
    """The store at which the nodes meet, outside the workers, so that no worker's loss takes it along."""
    labels = names.labels(run.name, names.RENDEZVOUS)
    ready = {"tcpSocket": {"port": RENDEZVOUS_PORT}, "periodSeconds": 5}
    container = {
        "name": names.RENDEZVOUS,
        "image": run.spec.image,
        "imagePullPolicy": "IfNotPresent",
        "command": [*STORE, "--port", str(RENDEZVOUS_PORT)],
        "ports": [{"name": "store", "containerPort": RENDEZVOUS_PORT}],
        "resources": {
            "requests": {"cpu": "50m", "memory": "512Mi"},
            "limits": {"cpu": "1", "memory": "512Mi"},
        },
        "readinessProbe": ready,
        "livenessProbe": {**ready, "periodSeconds": 20, "failureThreshold": 6},
        "securityContext": CONTAINER_SECURITY,
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
    }
    pod = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": POD_SECURITY,
        "terminationGracePeriodSeconds": 5,
        "containers": [container],
        "volumes": [{"name": "tmp", "emptyDir": {"sizeLimit": "256Mi"}}],
        "tolerations": lost_node_tolerations(),
        "affinity": {"podAntiAffinity": _rather_not_with_workers(run)},
        **pull_secrets(run),
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata(run, names.rendezvous_name(run.name), labels),
        "spec": {
            "replicas": replicas,
            "revisionHistoryLimit": 0,
            # Two stores would be two meetings.
            "strategy": {"type": "Recreate"},
            "selector": {"matchLabels": names.selector(run.name, names.RENDEZVOUS)},
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    }


def _rather_not_with_workers(run: Run) -> Manifest:
    """A node that is lost takes the meeting place along, if it is there; the scheduler heeds it from both sides."""
    term = {
        "labelSelector": {"matchLabels": names.selector(run.name, names.WORKER)},
        "topologyKey": "kubernetes.io/hostname",
    }
    return {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "podAffinityTerm": term}]}


def recipes(run: Run) -> Manifest:
    """The inline recipes, as files."""
    inline = {
        f"stage-{number}.yaml": stage.inline
        for number, stage in enumerate(run.spec.stages, 1)
        if stage.inline
    }
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata(run, names.recipes_name(run.name), names.labels(run.name)),
        "immutable": True,
        "data": inline,
    }


def network_policy(run: Run, settings: Settings) -> Manifest:
    """Everything among a run's pods; from outside nothing; to the outside DNS, the platform and `settings.egress`."""
    own = {"podSelector": {"matchLabels": names.selector(run.name)}}
    platform = {
        "namespaceSelector": {},
        "podSelector": {"matchLabels": {"app.kubernetes.io/part-of": "scholarch-platform"}},
    }
    # By port alone: node-local DNS answers from an address of the host.
    dns = {"ports": [{"protocol": protocol, "port": 53} for protocol in ("UDP", "TCP")]}
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": metadata(run, run.name, names.labels(run.name)),
        "spec": {
            "podSelector": own["podSelector"],
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [{"from": [own]}],
            "egress": [{"to": [own]}, dns, {"to": [platform]}, *settings.egress],
        },
    }


def pull_secrets(run: Run) -> Manifest:
    """`imagePullSecrets`, where the run names some."""
    found = [{"name": name} for name in run.spec.secrets.pull]
    return {"imagePullSecrets": found} if found else {}


def lost_node_tolerations() -> list[Manifest]:
    """A lost node's pods are given up after 30 s, not after the default 300."""
    return [
        {
            "key": f"node.kubernetes.io/{state}",
            "operator": "Exists",
            "effect": "NoExecute",
            "tolerationSeconds": 30,
        }
        for state in ("not-ready", "unreachable")
    ]
