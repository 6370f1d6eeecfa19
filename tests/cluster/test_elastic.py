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
from collections.abc import Callable, Iterator

import pytest
from commands import objects
from platform_release import NAMESPACE, TEAM
from runs_api import Api, Manifest, condition, wait_for
from scholarch.storage.objects import open_objects
from stores import RUNS, new_name, small, store_at_hand

pytestmark = [pytest.mark.cluster, pytest.mark.long, pytest.mark.timeout(3000)]
LONG = 900.0
STEPS = 20_000


def cluster(*arguments: str) -> None:
    subprocess.run([os.environ["CLUSTER"], *arguments], check=True, timeout=120)


def without_store() -> str:
    """Number of the node on which MinIO is not: with that one's volume every run would be lost."""
    selector = "app.kubernetes.io/component=minio,app.kubernetes.io/name=scholarch"
    (store,) = objects("pods", "-n", NAMESPACE, "-l", selector)
    return {"node1": "2", "node2": "1"}[store["spec"]["nodeName"]]


def records(name: str) -> list[Manifest]:
    """What the run has recorded so far."""
    with store_at_hand():
        try:
            lines = open_objects(f"{RUNS}/{name}").read("metrics.jsonl").decode().splitlines()
        except FileNotFoundError:
            return []
    return [json.loads(line) for line in lines]


def times(name: str) -> list[float]:
    """When the steps that the run has recorded so far ended."""
    return sorted(record["time"] for record in records(name))


def curve(name: str) -> dict[int, Manifest]:
    """Loss and gradient norms by step, each step once."""
    steps = [record for record in records(name) if "loss/total" in record]
    found = {
        record["step"]: {
            key: record[key] for key in record if key.startswith(("loss/total", "gradient_norm"))
        }
        for record in steps
    }
    assert len(found) == len(steps), "no step is recorded twice"
    return found


class Elastic:
    """A run that ends late; of one or two nodes, on two nodes. Its bits do not depend on how many there are."""

    def __init__(self, api: Api, name: str, image: str, most: int = 2) -> None:
        self.api, self.name = api, name
        steps = (
            f"training.steps={STEPS}",
            "training.checkpoint_every=10",
            "training.log_every=1",
            "training.grain=4",
        )
        api.run(TEAM, name, small(image, name, *steps, nodes={"min": 1, "max": most}))

    def pods(self) -> list[Manifest]:
        """Of the workers, those that run, by index."""
        found = [pod for pod in self.api.pods(TEAM, self.name) if pod["status"]["phase"] == "Running"]
        found = [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]
        return sorted(found, key=lambda pod: str(pod["metadata"]["name"]))

    def status(self) -> Manifest:
        found: Manifest = (self.api.get(TEAM, self.name) or {}).get("status", {})
        return found

    def end(self) -> None:
        """Cancels it, which saves and records what was done."""
        self.api.change(TEAM, self.name, cancel=True)
        wait_for("no pods", lambda: not self.api.pods(TEAM, self.name), LONG)

    def kill(self, pod: Manifest) -> float:
        """Takes a pod away without a word; gives the time."""
        event = time.time()
        how = {"gracePeriodSeconds": 0}
        self.api.of("Pod").delete(name=pod["metadata"]["name"], namespace=TEAM, body=how)
        return event

    def given_up(self) -> bool:
        """Whether Kubernetes has taken a pod away from it."""
        return any("deletionTimestamp" in pod["metadata"] for pod in self.api.pods(TEAM, self.name))

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
        wait_for("records", lambda: any(ended > event + 1 for ended in times(self.name)), LONG)
        # A step under way may still have ended behind the event; what was lost shows as the longest gap.
        gaps = [
            (later - ended, later) for ended, later in itertools.pairwise(times(self.name)) if later > event
        ]
        seconds = max(gaps)[1] - event
        sys.stdout.write(f"\n| {what} | {seconds:.0f} s |\n")
        return seconds


@pytest.fixture
def run(api: Api, name: str, image: str) -> Elastic:
    if "CLUSTER" not in os.environ:
        pytest.skip("CLUSTER names no program that kills nodes")
    found = Elastic(api, name, image)
    wait_for("two nodes", found.trains_on(2, 0), LONG)
    return found


@pytest.fixture
def other(api: Api) -> Iterator[str]:
    """The name of another run."""
    yield from new_name(api, "undisturbed")


def test_lost_node(run: Elastic, other: str, image: str) -> None:
    """A power cut at one node: the other goes on alone, and takes it back; losses are those of a run in peace."""
    node, event = without_store(), time.time()
    cluster("kill-node", node)
    try:
        wait_for("one node", run.trains_on(1, event), LONG)
        run.recovered("a node killed: to the first step of one", event)
        # Until then a node that comes back brings a pod that ended with 137, as one does that somebody killed.
        wait_for("its pod is given up", run.given_up, LONG)
    finally:
        back = time.time()
        cluster("start-node", node)
    wait_for("two nodes", run.trains_on(2, back), LONG)
    run.recovered("the node back: to the first step of two", back)
    assert (run.status()["attempt"], run.status()["countedRestarts"]) == (1, 0)
    run.end()
    disturbed = curve(run.name)
    last = max(disturbed)
    assert sorted(disturbed) == list(range(1, last + 1)), "each step once"
    alone = Elastic(run.api, other, image, most=1)
    wait_for("as many steps", lambda: alone.status().get("progress", {}).get("step", 0) >= last, LONG)
    alone.end()
    undisturbed = curve(other)
    sys.stdout.write(f"\n{last} steps of the disturbed run and of one node alone are compared\n")
    # Gradients are summed in one order whoever computed them; the loss in the log is summed as it comes.
    norms = [{k: v for k, v in of.items() if k != "loss/total"} for of in disturbed.values()]
    assert norms[0], "there are norms to compare"
    assert norms == [{k: undisturbed[step][k] for k in of} for step, of in zip(disturbed, norms, strict=True)]
    losses = [of["loss/total"] for of in disturbed.values()]
    assert losses == pytest.approx([undisturbed[step]["loss/total"] for step in disturbed], rel=1e-5)


def test_lost_pod_of_rank_0(run: Elastic) -> None:
    event = run.kill(run.pods()[0])
    wait_for("two nodes", lambda: len(run.pods()) == 2 and run.trains_on(2, event)(), LONG)
    run.recovered("pod with rank 0 killed: to the first step after", event)
    assert run.status()["attempt"] == 1


def test_lost_rendezvous(run: Elastic) -> None:
    pods = run.api.list("Pod", "v1", TEAM, run.name)
    (store,) = [pod for pod in pods if pod["metadata"]["labels"]["scholarch.dev/role"] == "rendezvous"]
    event = run.kill(store)
    wait_for("two nodes", run.trains_on(2, event + 5), LONG)
    run.recovered("rendezvous pod killed: to the first step after", event)
    assert run.status()["attempt"] == 1
