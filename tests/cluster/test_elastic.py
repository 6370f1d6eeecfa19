"""Runs that lose nodes and go on. Minutes each: `make cluster-test ARGS="-m long"`; needs CLUSTER, the program of it.

Each writes a line of docs/elastic.md's table to the standard output (`-s`).
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable

import pytest
from runs_api import Api, Manifest, condition, wait_for
from scholarch.storage.objects import open_objects
from stores import Store

pytestmark = [pytest.mark.cluster, pytest.mark.long, pytest.mark.timeout(1800)]
LONG = 900.0
STEPS = 2000


def cluster(*arguments: str) -> None:
    subprocess.run([os.environ["CLUSTER"], *arguments], check=True, timeout=120)


def records(place: str) -> list[dict[str, float]]:
    """What the run has recorded so far, step by step."""
    try:
        lines = open_objects(f"s3://runs/{place}").read("metrics.jsonl").decode().splitlines()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in lines]


class Elastic:
    """A run of one or two nodes, on two nodes."""

    def __init__(self, api: Api, namespace: str, store: Store, image: str) -> None:
        self.api, self.namespace, self.place = api, namespace, f"elastic-{namespace}"
        store.key(api, namespace)
        steps = (f"training.steps={STEPS}", "training.checkpoint_every=10")
        api.run(namespace, "digits", store.spec(image, self.place, *steps, nodes={"min": 1, "max": 2}))

    def pods(self) -> dict[str, Manifest]:
        """By node, those that run."""
        found = self.api.pods(self.namespace, "digits")
        return {
            pod["spec"]["nodeName"]: pod
            for pod in found
            if pod["status"]["phase"] == "Running" and "deletionTimestamp" not in pod["metadata"]
        }

    def status(self) -> Manifest:
        found: Manifest = (self.api.get(self.namespace, "digits") or {}).get("status", {})
        return found

    def trains_on(self, nodes: int, after: float) -> Callable[[], bool]:
        """Whether it has finished steps since then, at this size."""

        def probe() -> bool:
            progress = self.status().get("progress") or {}
            moved = progress.get("time", "") > time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(after))
            failed = condition({"status": self.status()}, "Failed")
            assert failed.get("status") != "True", failed
            return bool(moved) and self.status().get("worldSize") == nodes

        return probe

    def recovered(self, what: str, event: float) -> float:
        """Seconds from an event to the end of the first step after it; prints them."""
        wait_for("records", lambda: any(r["time"] > event + 1 for r in records(self.place)), LONG)
        times = sorted(r["time"] for r in records(self.place))
        # A step under way may still have ended behind the event; what was lost shows as the longest gap.
        gaps = [(b - a, b) for a, b in itertools.pairwise(times) if b > event]
        seconds = max(gaps)[1] - event if gaps else times[-1] - event
        sys.stdout.write(f"\n| {what} | {seconds:.0f} s |\n")
        return seconds


@pytest.fixture
def run(api: Api, operator: object, namespace: str, store: Store, image: str) -> Elastic:
    if "CLUSTER" not in os.environ:
        pytest.skip("CLUSTER names no program that kills nodes")
    assert operator is not None
    found = Elastic(api, namespace, store, image)
    wait_for("two nodes", found.trains_on(2, 0), LONG)
    return found


def test_lost_node(run: Elastic) -> None:
    """A power cut at one node: the other goes on alone, and takes it back."""
    event = time.time()
    cluster("kill-node", "2")
    try:
        wait_for("one node", run.trains_on(1, event), LONG)
        run.recovered("node 2 killed: to the first step of one", event)
    finally:
        back = time.time()
        cluster("start-node", "2")
    wait_for("two nodes", run.trains_on(2, back), LONG)
    run.recovered("node 2 back: to the first step of two", back)
    assert run.status()["attempt"] == 1
    assert run.status()["countedRestarts"] == 0


def test_lost_pod_of_rank_0(run: Elastic) -> None:
    ranks = {pod["metadata"]["name"]: node for node, pod in run.pods().items()}
    first = min(ranks)
    event = time.time()
    how = {"gracePeriodSeconds": 0}
    run.api.of("Pod").delete(name=first, namespace=run.namespace, body=how)
    wait_for("two nodes", lambda: len(run.pods()) == 2 and run.trains_on(2, event)(), LONG)
    run.recovered("pod with rank 0 killed: to the first step after", event)
    assert run.status()["attempt"] == 1


def test_lost_rendezvous(run: Elastic) -> None:
    pods = run.api.list("Pod", "v1", run.namespace, "digits")
    (store,) = [p for p in pods if p["metadata"]["labels"]["scholarch.dev/role"] == "rendezvous"]
    event = time.time()
    run.api.of("Pod").delete(
        name=store["metadata"]["name"], namespace=run.namespace, body={"gracePeriodSeconds": 0}
    )
    wait_for("two nodes", run.trains_on(2, event + 5), LONG)
    run.recovered("rendezvous pod killed: to the first step after", event)
    assert run.status()["attempt"] == 1
