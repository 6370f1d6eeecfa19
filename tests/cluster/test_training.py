"""Small runs that really train: two nodes over gloo on the pod network, kept in MinIO, tracked in MLflow."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from platform_release import TEAM
from runs_api import Api, Manifest, condition, wait_for
from scholarch.storage.objects import open_objects
from stores import ENVIRONMENT, RUNS, SMALL, small, store_at_hand

pytestmark = [pytest.mark.cluster, pytest.mark.long, pytest.mark.timeout(1500)]
MINUTES = 60.0
TRAINING = 10 * MINUTES
"""For a run to come to its end on two cores that do other things too."""


def finished(api: Api, name: str) -> Manifest:
    """The run at its end, which is a good one."""

    def over() -> Manifest | None:
        run = api.get(TEAM, name)
        failed = condition(run, "Failed")
        assert failed.get("status") != "True", failed
        return run if condition(run, "Complete").get("status") == "True" else None

    found: Manifest = wait_for(f"the end of {name}", over, TRAINING)
    return found


def step(api: Api, name: str) -> int:
    run = api.get(TEAM, name) or {}
    return int(run.get("status", {}).get("progress", {}).get("step", -1))


def test_two_stages_on_two_nodes(api: Api, name: str, image: str, digits: str) -> None:
    """Data and checkpoints in MinIO; progress, checkpoint and link in the status; suspended and resumed on the way."""
    high = "extends: demo/digits\ninit_from: {stage: previous}\n"
    spec = small(
        image,
        name,
        "training.steps=40",
        "training.checkpoint_every=10",
        data=digits,
        stages=[{"recipe": "demo/digits"}, {"inline": high}],
        nodes={"min": 2, "max": 2},
    )
    api.run(TEAM, name, spec)
    wait_for("steps in the status", lambda: step(api, name) > 0, TRAINING)
    api.change(TEAM, name, suspend=True)
    wait_for("no pods", lambda: not api.pods(TEAM, name), 5 * MINUTES)
    api.change(TEAM, name, suspend=False)
    status = finished(api, name)["status"]
    assert (status["attempt"], status["countedRestarts"]) == (1, 0)
    assert status["progress"]["total"] == 40
    assert status["lastCheckpoint"] == "stages/2-stage-2/checkpoints/step-000000040"
    assert "/#/experiments/" in status["mlflowUrl"]
    with store_at_hand():
        records = open_objects(f"{RUNS}/{name}").read("stages/1-demo-digits/metrics.jsonl").decode()
    assert records.count('"loss/total"') == 40, "each step once, although it was suspended"


def test_wrong_input_ends_at_once(api: Api, name: str, image: str) -> None:
    """A mistake in the recipe is found in the pod, and the condition says what to change."""
    api.run(TEAM, name, small(image, name, "training.stepz=4"))

    def failed() -> Manifest:
        return condition(api.get(TEAM, name), "Failed")

    wait_for("failure", lambda: failed().get("status") == "True", TRAINING)
    assert failed()["reason"] == "WrongInput"
    assert "stepz" in failed()["message"]
    assert "steps" in failed()["message"], "names the nearest key"


def torchx(folder: Path, *arguments: str) -> str:
    """TorchX's own command line; what it says."""
    done = subprocess.run(
        [sys.executable, "-m", "torchx.cli.main", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_torchx(api: Api, name: str, image: str, tmp_path: Path) -> None:
    """Run with code that is not the image's, status, list, log, cancel and delete, from the command line."""
    packages = tmp_path / "packages"
    packages.mkdir()
    (packages / "sitecustomize.py").write_text("import sys\nsys.stderr.write('code of this test\\n')\n")
    (tmp_path / ".torchxconfig").write_text(
        f"[scholarch]\nnamespace = {TEAM}\nruns = {RUNS}\ncode = packages\n"
        "storage_secret = scholarch-storage\ntracking_secret = scholarch-tracking\n"
    )
    environment = ",".join(f"{key}={value}" for key, value in ENVIRONMENT.items())
    with store_at_hand():
        torchx(
            tmp_path, "run", "-s", "scholarch", "scholarch_jobs.pretrain", "--name", name, "--recipe", "demo/digits",
            "--image", image, "--nodes", "2", "--cpu", "1", "--memory", "1536", "--env", environment,
            *SMALL, "training.steps=100000", "training.checkpoint_every=50",
        )  # fmt: skip
    handle = f"scholarch://torchx/{TEAM}:{name}"
    assert handle in torchx(tmp_path, "list", "-s", "scholarch")
    wait_for("steps", lambda: step(api, name) > 0, TRAINING)
    said = torchx(tmp_path, "status", handle)
    assert "RUNNING" in said
    assert "of 100000" in said
    assert "/#/experiments/" in said
    assert "code of this test" in torchx(tmp_path, "log", f"{handle}/pretrain/0,1")
    torchx(tmp_path, "cancel", handle)
    wait_for("no Job", lambda: not api.jobs(TEAM, name), 5 * MINUTES)
    assert "CANCELLED" in torchx(tmp_path, "status", handle)
    torchx(tmp_path, "delete", handle)
    wait_for("no run", lambda: handle not in torchx(tmp_path, "list", "-s", "scholarch"))
