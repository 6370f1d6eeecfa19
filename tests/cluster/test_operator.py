"""The operator of the cluster and the objects of a run whose image no node has, so that no pod of it ever runs."""

from __future__ import annotations

import random
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from runs_api import Api, Manifest, condition, wait_for
from scholarch_operator.cluster import Cluster, OutdatedError
from scholarch_operator.status import RunStatus

from operators import Operator

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("operator")]
SPEC: Manifest = {
    "image": "scholarch.invalid/nowhere:1",
    "stages": [{"recipe": "demo/digits"}],
    "run": "s3://runs/digits",
    "nodes": {"min": 1, "max": 2},
    "resources": {"cpu": "10m", "memory": "16Mi", "sharedMemory": "1Mi"},
}


def suspended(job: Manifest) -> bool:
    return bool(job["spec"].get("suspend"))


def at_work(job: Manifest) -> bool:
    ended = any(
        c["status"] == "True" for c in job["status"].get("conditions", []) if c["type"] != "Suspended"
    )
    return not (suspended(job) or ended or "deletionTimestamp" in job["metadata"])


class Watched:
    """Every Job that a run ever had, as often as the API server can be asked.

    Attributes:
        made: uids by name; a second one is a second Job of one attempt.
        together: Jobs that were at work at the same time.
    """

    def __init__(self) -> None:
        self.made: dict[str, set[str]] = defaultdict(set)
        self.together: list[list[str]] = []

    def look(self, jobs: list[Manifest]) -> None:
        for job in jobs:
            self.made[job["metadata"]["name"]].add(job["metadata"]["uid"])
        working = [job["metadata"]["name"] for job in jobs if at_work(job)]
        if len(working) > 1:
            self.together.append(working)


@contextmanager
def watched(namespace: str, run: str) -> Iterator[Watched]:
    found, over, api = Watched(), threading.Event(), Api()

    def look() -> None:
        while not over.wait(0.1):
            found.look(api.jobs(namespace, run))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield found
    finally:
        over.set()
        thread.join()


def test_life_of_a_run(api: Api, namespace: str) -> None:
    api.run(namespace, "digits", SPEC)

    def job() -> Manifest:
        (only,) = wait_for("one Job", lambda: api.jobs(namespace, "digits"))
        found: Manifest = only
        return found

    first = job()
    assert (first["metadata"]["name"], first["spec"]["parallelism"]) == ("digits-1", 2)
    wait_for("its conditions", lambda: condition(api.get(namespace, "digits"), "Scheduled"))
    # By the scale subresource, as `kubectl scale` does it.
    body = {"spec": {"replicas": 3}}
    api.runs.scale.patch(
        body=body, name="digits", namespace=namespace, content_type="application/merge-patch+json"
    )
    wait_for("three nodes", lambda: job()["spec"]["parallelism"] == 3)
    api.change(namespace, "digits", suspend=True)
    wait_for("suspension", lambda: suspended(job()))
    wait_for("no pods", lambda: not api.pods(namespace, "digits"))
    wait_for("condition", lambda: condition(api.get(namespace, "digits"), "Suspended")["status"] == "True")
    api.change(namespace, "digits", suspend=False)
    wait_for("resumption", lambda: len(api.pods(namespace, "digits")) == 3)
    assert job()["metadata"]["uid"] == first["metadata"]["uid"], "all of it in one attempt"
    api.change(namespace, "digits", cancel=True)
    wait_for(
        "cancellation", lambda: condition(api.get(namespace, "digits"), "Failed").get("reason") == "Cancelled"
    )
    wait_for("no Jobs", lambda: not api.jobs(namespace, "digits"))
    api.runs.delete(name="digits", namespace=namespace)
    for kind, version in (
        ("Service", "v1"),
        ("Deployment", "apps/v1"),
        ("NetworkPolicy", "networking.k8s.io/v1"),
    ):
        wait_for(
            f"no {kind}", lambda kind=kind, version=version: not api.list(kind, version, namespace, "digits")
        )


def test_quiet_run_costs_no_writes(api: Api, operator: Operator, namespace: str) -> None:
    """A look at a run about which nothing has changed changes nothing."""
    api.run(namespace, "digits", SPEC)
    wait_for("pods", lambda: len(api.pods(namespace, "digits")) == 2)

    def versions() -> list[Any]:
        objects = [api.get(namespace, "digits"), *api.jobs(namespace, "digits")]
        objects += [*api.list("Service", "v1", namespace, "digits")]
        objects += [*api.list("NetworkPolicy", "networking.k8s.io/v1", namespace, "digits")]
        return [found and found["metadata"]["resourceVersion"] for found in objects]

    before: list[Any] = []

    def at_rest() -> bool:
        nonlocal before
        last, before = before, versions()
        time.sleep(5)
        return bool(last) and last == before

    wait_for("rest", at_rest)
    looks = operator.looks()
    wait_for("two more looks", lambda: operator.looks() >= looks + 2)
    assert versions() == before


def test_refused_objects_are_told(api: Api, namespace: str) -> None:
    """Where the namespace has no room left, the run says so, and goes on when there is."""
    quota = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "none", "namespace": namespace},
        "spec": {"hard": {"count/jobs.batch": "0"}},
    }
    api.of("ResourceQuota").create(body=quota, namespace=namespace)
    wait_for(
        "quota",
        lambda: (api.get(namespace, "none", "ResourceQuota", "v1") or {}).get("status", {}).get("hard"),
    )
    api.run(namespace, "digits", SPEC)

    def scheduled() -> Manifest:
        return condition(api.get(namespace, "digits"), "Scheduled")

    wait_for("refusal", lambda: scheduled().get("reason") == "Refused")
    assert "exceeded quota" in scheduled()["message"]
    api.of("ResourceQuota").delete(name="none", namespace=namespace)
    wait_for("Job", lambda: api.jobs(namespace, "digits"))
    wait_for("reason", lambda: scheduled().get("reason") != "Refused")


def test_status_of_an_older_look_is_not_written(api: Api, namespace: str) -> None:
    """And counts as nothing but that: the next look comes with the change."""
    old = api.run(namespace, "digits", SPEC)["metadata"]["resourceVersion"]
    wait_for("a status", lambda: (api.get(namespace, "digits") or {}).get("status"))
    cluster = Cluster()
    with pytest.raises(OutdatedError):
        cluster.write_status(namespace, "digits", old, RunStatus(attempt=7))
    with pytest.raises(OutdatedError):
        cluster.write_status(namespace, "nobody", old, RunStatus(attempt=7))
    found = api.get(namespace, "digits")
    assert found is not None
    assert found["status"]["attempt"] == 1


@pytest.mark.parametrize("kills", [3, pytest.param(10, marks=pytest.mark.long)])
def test_operator_killed_at_random_moments(api: Api, operator: Operator, namespace: str, kills: int) -> None:
    """Never two Jobs of one attempt, never two attempts at work, and at the end what the spec says."""
    chance = random.Random(kills)
    nodes = {"min": 1, "max": 2}
    with watched(namespace, "digits") as seen:
        api.run(namespace, "digits", SPEC)
        for _ in range(kills):
            time.sleep(chance.uniform(0, 3))
            if chance.random() < 0.5:
                nodes = {"min": chance.randint(1, 2), "max": chance.randint(2, 3)}
                api.change(namespace, "digits", nodes=nodes)
            else:
                api.change(namespace, "digits", suspend=chance.random() < 0.5)
            time.sleep(chance.uniform(0, 0.5))
            operator.kill()
        api.change(namespace, "digits", suspend=False)

        def right() -> bool:
            run, jobs = api.get(namespace, "digits"), api.jobs(namespace, "digits")
            assert run is not None
            status = run.get("status", {})
            return (
                [job["metadata"]["name"] for job in jobs] == [f"digits-{status.get('attempt')}"]
                and at_work(jobs[0])
                and jobs[0]["spec"]["parallelism"] == nodes["max"]
                and status["observedGeneration"] == run["metadata"]["generation"]
                and condition(run, "Suspended")["status"] == "False"
            )

        wait_for("the run as it was last asked to be", right)
    assert {name: len(uids) for name, uids in seen.made.items()} == dict.fromkeys(seen.made, 1)
    assert not seen.together


def test_deletion_needs_no_operator(api: Api, operator: Operator, namespace: str) -> None:
    api.run(namespace, "digits", SPEC)
    wait_for("pods", lambda: api.pods(namespace, "digits"))
    operator.kill()
    api.runs.delete(name="digits", namespace=namespace)
    wait_for("no run", lambda: api.get(namespace, "digits") is None, 30)
    wait_for("no Jobs", lambda: not api.jobs(namespace, "digits"))
    wait_for("no pods", lambda: not api.pods(namespace, "digits"))
