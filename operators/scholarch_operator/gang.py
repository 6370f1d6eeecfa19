"""Who starts the nodes of a run together: nobody, Kueue, Volcano, or the cluster's own scheduler."""

from __future__ import annotations

from scholarch_operator import names
from scholarch_operator.objects import Manifest, metadata
from scholarch_operator.observed import Run

KUEUE = "kueue.x-k8s.io"
API = {"volcano": "scheduling.volcano.sh/v1beta1", "native": "scheduling.k8s.io/v1beta1"}
"""API that a backend needs, of which the operator makes a PodGroup. Kubernetes 1.37 serves the native one."""


def is_queued(run: Run) -> bool:
    """Whether Kueue starts and stops the Job, so that nobody else may."""
    return run.spec.gang.backend == "kueue"


def pod_groups(run: Run) -> list[Manifest]:
    """The PodGroup of a run, where its backend has one; its least number can change."""
    nodes, backend = run.spec.nodes, run.spec.gang.backend
    priority = {"priorityClassName": run.spec.priority_class} if run.spec.priority_class else {}
    if backend == "volcano":
        queue = {"queue": run.spec.queue} if run.spec.queue else {}
        spec: Manifest = {"minMember": nodes.min, **queue, **priority}
    elif backend == "native":
        spec = {"schedulingPolicy": {"gang": {"minCount": nodes.min}}, **priority}
    else:
        return []
    meta = metadata(run, run.name, names.labels(run.name))
    return [{"apiVersion": API[backend], "kind": "PodGroup", "metadata": meta, "spec": spec}]


def joined(job: Manifest, run: Run) -> Manifest:
    """The Job as a member of its gang; changes it in place."""
    meta, spec = job["metadata"], job["spec"]
    template, pod = spec["template"], spec["template"]["spec"]
    if is_queued(run):
        meta["labels"] = meta["labels"] | {f"{KUEUE}/queue-name": run.spec.queue}
        if run.spec.priority_class:
            meta["labels"][f"{KUEUE}/priority-class"] = run.spec.priority_class
        meta["annotations"] |= partial_admission(run)
        spec["suspend"] = True  # Kueue starts it
        return job
    if run.spec.priority_class:
        pod["priorityClassName"] = run.spec.priority_class
    if run.spec.gang.backend == "volcano":
        pod["schedulerName"] = "volcano"
        template["metadata"]["annotations"] = {"scheduling.k8s.io/group-name": run.name}
    elif run.spec.gang.backend == "native":
        pod["schedulingGroup"] = {"podGroupName": run.name}
    return job


def partial_admission(run: Run) -> dict[str, str]:
    """Annotations with which Kueue may start an elastic run with fewer nodes than it asks for."""
    nodes = run.spec.nodes
    if nodes.min == nodes.max:
        return {}
    return {
        f"{KUEUE}/job-min-parallelism": str(nodes.min),
        f"{KUEUE}/job-completions-equal-parallelism": "true",
    }
