"""Runs under Kueue, in a queue of their own with room for two nodes; no pod ever runs: no node has their image."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from runs_api import Api, Manifest, condition, wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("operator")]
KUEUE = "kueue.x-k8s.io/v1beta1"


@pytest.fixture
def queue(api: Api, namespace: str) -> Iterator[str]:
    """Room for two nodes; `urgent` goes before the rest. All of it is named as the namespace is."""
    if not api.serves(KUEUE):
        pytest.skip("the cluster has no Kueue")
    quota = [{"name": "cpu", "nominalQuota": "200m"}, {"name": "memory", "nominalQuota": "32Mi"}]
    group = {
        "coveredResources": ["cpu", "memory"],
        "flavors": [{"name": namespace, "resources": quota}],
    }
    whole: list[tuple[str, Manifest]] = [
        ("ResourceFlavor", {}),
        ("ClusterQueue", {"spec": {
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
            "preemption": {"withinClusterQueue": "LowerPriority"},
            "resourceGroups": [group],
        }}),
        ("WorkloadPriorityClass", {"value": 1000}),
    ]  # fmt: skip
    for kind, content in whole:
        body = {"apiVersion": KUEUE, "kind": kind, "metadata": {"name": namespace}, **content}
        api.of(kind, KUEUE).create(body=body)
    local = {"apiVersion": KUEUE, "kind": "LocalQueue", "metadata": {"name": "team", "namespace": namespace}}
    api.of("LocalQueue", KUEUE).create(
        body=local | {"spec": {"clusterQueue": namespace}}, namespace=namespace
    )
    yield "team"
    for run in api.runs.get(namespace=namespace).to_dict()["items"]:
        api.runs.delete(name=run["metadata"]["name"], namespace=namespace)
    for kind, _ in reversed(whole):
        api.of(kind, KUEUE).delete(name=namespace)


def queued(queue: str, **changes: object) -> Manifest:
    """The spec of a run of two nodes of 100m each."""
    return {
        "image": "scholarch.invalid/nowhere:1",
        "stages": [{"recipe": "demo/digits"}],
        "run": "s3://runs/digits",
        "nodes": {"min": 2, "max": 2},
        "resources": {"cpu": "100m", "memory": "16Mi", "sharedMemory": "1Mi"},
        "gang": {"backend": "kueue"},
        "queue": queue,
        **changes,
    }


def waits(api: Api, namespace: str, name: str) -> bool:
    """Whether the run stands in the queue."""
    found = condition(api.get(namespace, name), "Suspended")
    return (found.get("status"), found.get("reason")) == ("True", "Queued")


def goes_on(api: Api, namespace: str, name: str) -> int:
    """Pods that the run's current Job asks for; none while it is suspended."""
    jobs = [job for job in api.jobs(namespace, name) if not job["spec"].get("suspend")]
    return int(jobs[-1]["spec"]["parallelism"]) if jobs else 0


def test_room_for_one(api: Api, namespace: str, queue: str) -> None:
    """The second waits, says so, and starts when the first is over."""
    api.run(namespace, "first", queued(queue))
    wait_for("admission", lambda: goes_on(api, namespace, "first") == 2)
    api.run(namespace, "second", queued(queue))
    wait_for("waiting", lambda: waits(api, namespace, "second"))
    api.change(namespace, "first", cancel=True)
    wait_for("admission of the second", lambda: goes_on(api, namespace, "second") == 2)
    wait_for("condition", lambda: not waits(api, namespace, "second"))
    # Suspended by its user, it leaves its room to others, and Kueue does not start it again.
    api.run(namespace, "third", queued(queue))
    api.change(namespace, "second", suspend=True)
    wait_for("admission of the third", lambda: goes_on(api, namespace, "third") == 2)
    wait_for("no pods", lambda: not api.pods(namespace, "second"))
    assert goes_on(api, namespace, "second") == 0


def test_elastic_run_starts_small_and_changes_its_size(api: Api, namespace: str, queue: str) -> None:
    api.run(namespace, "elastic", queued(queue, nodes={"min": 1, "max": 3}))
    wait_for("two of three nodes", lambda: goes_on(api, namespace, "elastic") == 2)
    api.change(namespace, "elastic", nodes={"min": 1, "max": 1})
    wait_for("a size of one", lambda: goes_on(api, namespace, "elastic") == 1)


def test_higher_priority_goes_first(api: Api, namespace: str, queue: str) -> None:
    """The lower one is suspended, keeps its attempt, and goes on when there is room again."""
    api.run(namespace, "low", queued(queue))
    wait_for("admission", lambda: goes_on(api, namespace, "low") == 2)
    api.run(namespace, "high", queued(queue, priorityClass=namespace))
    wait_for("preemption", lambda: goes_on(api, namespace, "high") == 2)
    wait_for("eviction", lambda: waits(api, namespace, "low") and not api.pods(namespace, "low"))
    api.change(namespace, "high", cancel=True)
    wait_for("readmission", lambda: goes_on(api, namespace, "low") == 2)
    run = api.get(namespace, "low")
    assert run is not None
    counts = {key: run["status"][key] for key in ("attempt", "countedRestarts")}
    assert counts == {"attempt": 1, "countedRestarts": 0}
