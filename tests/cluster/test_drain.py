"""Runs that really train, in the platform's queue with room for one: the urgent one goes first, nothing is lost."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import followed
from platform_release import TEAM
from runs_api import Api, condition, wait_for
from scholarch.config.training_run import GROUP
from scholarch.errors import EXIT_INTERRUPTED
from scholarch.storage.objects import open_objects
from scholarch.training.checkpoint import committed
from stores import RUNS, new_name, small, store_at_hand
from test_kueue import KUEUE, waits

pytestmark = [pytest.mark.cluster, pytest.mark.long, pytest.mark.timeout(2400)]
TRAINING = 900.0
QUEUED = {"gang": {"backend": "kueue"}, "queue": "scholarch"}
ROOM = {"cpu": "1", "memory": "5Gi", "sharedMemory": "64Mi", "scratch": "1Gi"}
"""Of 8Gi that the queue has (platform_release)."""


@pytest.fixture
def urgent(api: Api) -> Iterator[str]:
    """The name of another run."""
    yield from new_name(api, "urgent")


def step(api: Api, name: str) -> int:
    return int((api.get(TEAM, name) or {}).get("status", {}).get("progress", {}).get("step", -1))


def recorded(name: str) -> list[int]:
    """Steps in the run's records, which has one of several."""
    with store_at_hand():
        lines = open_objects(f"{RUNS}/{name}").read("metrics.jsonl").decode().splitlines()
    return [record["step"] for record in map(json.loads, lines) if "loss/total" in record]


def test_an_urgent_run_drains_another_which_resumes(
    api: Api, name: str, urgent: str, image: str, tmp_path: Path
) -> None:
    if not api.serves(KUEUE):
        pytest.skip("the cluster has no Kueue")
    # Between two checkpoints of its own, far apart: what it keeps is what it saved when it was asked to end.
    steps = ("training.steps=100000", "training.checkpoint_every=10000")
    api.run(TEAM, name, small(image, name, *steps, resources=ROOM, **QUEUED))
    wait_for("steps", lambda: step(api, name) > 0, TRAINING)
    codes = tmp_path / "codes"
    ended = "jsonpath={.status.containerStatuses[0].state.terminated.exitCode}{'\\n'}"
    of_run = f"{GROUP}/run={name},{GROUP}/role=worker"
    with followed(codes, "pods", "-n", TEAM, "-l", of_run, "-o", ended):
        quick = small(image, urgent, "training.steps=4", resources=ROOM, **QUEUED)
        api.run(TEAM, urgent, quick | {"priorityClass": "scholarch-urgent"})
        wait_for("the other one waits", lambda: waits(api, TEAM, name) and not api.pods(TEAM, name), TRAINING)
        done = recorded(name)
        with store_at_hand():
            (kept,) = committed(f"{RUNS}/{name}/checkpoints")
    assert kept.step >= done[-1], "all that was done is saved"
    assert {int(code) for code in codes.read_text().split()} == {EXIT_INTERRUPTED}
    wait_for(
        "the end of the urgent one",
        lambda: condition(api.get(TEAM, urgent), "Complete").get("status") == "True",
        TRAINING,
    )
    wait_for("more steps", lambda: step(api, name) > kept.step, TRAINING)
    status = (api.get(TEAM, name) or {})["status"]
    assert (status["attempt"], status["countedRestarts"]) == (1, 0)
    api.change(TEAM, name, cancel=True)
    wait_for("no pods", lambda: not api.pods(TEAM, name), TRAINING)
    steps_done = recorded(name)
    assert steps_done == sorted(set(steps_done)), "none is done again"
