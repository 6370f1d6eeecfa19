"""Small runs that really train: two nodes over gloo on the pod network, kept in MinIO, tracked in MLflow."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from commands import followed
from platform_release import TEAM, away
from runs_api import Api, Manifest, condition, wait_for
from scholarch.cli import main
from scholarch.storage.objects import open_objects
from stores import ENVIRONMENT, RUNS, SMALL, registry_at_hand, small, store_at_hand

pytestmark = [pytest.mark.cluster, pytest.mark.long, pytest.mark.timeout(1500)]
MINUTES = 60.0
TRAINING = 10 * MINUTES
"""For a run to come to its end on two cores that do other things too."""


def finished(api: Api, name: str) -> None:
    """Waits for the run's end, which is a good one."""

    def over() -> bool:
        run = api.get(TEAM, name)
        failed = condition(run, "Failed")
        assert failed.get("status") != "True", failed
        return condition(run, "Complete").get("status") == "True"

    wait_for(f"the end of {name}", over, TRAINING)


def step(api: Api, name: str) -> int:
    run = api.get(TEAM, name) or {}
    return int(run.get("status", {}).get("progress", {}).get("step", -1))


def test_two_stages_on_two_nodes(api: Api, name: str, image: str, digits: str, tmp_path: Path) -> None:
    """Data and checkpoints in MinIO; progress, checkpoint and link in the status; suspended and resumed on the way."""
    seen = tmp_path / "seen"
    with followed(seen, "trainingruns", name, "-n", TEAM):
        run_suspended_and_resumed(api, name, image, digits)
    steps = re.findall(rf"^{name} +True +2 +(\d+) +40 ", seen.read_text(), re.MULTILINE)
    assert len(set(steps)) > 1, "kubectl get --watch tells how far it is"
    status = (api.get(TEAM, name) or {})["status"]
    assert (status["attempt"], status["countedRestarts"]) == (1, 0)
    assert status["progress"]["total"] == 40
    assert status["lastCheckpoint"] == "stages/2-stage-2/checkpoints/step-000000040"
    with store_at_hand(), registry_at_hand() as client:
        records = open_objects(f"{RUNS}/{name}").read("stages/1-demo-digits/metrics.jsonl").decode()
        run_id = status["mlflowUrl"].rpartition("/")[2]
        assert client.get_run(run_id).data.metrics["loss/total"] > 0
        files = {file.path for file in client.list_artifacts(run_id, "report")}
    assert records.count('"loss/total"') == 40, "each step once, although it was suspended"
    assert {"report/index.html", "report/losses.png"} <= files


def run_suspended_and_resumed(api: Api, name: str, image: str, digits: str) -> None:
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
    finished(api, name)


def test_a_run_that_ends_without_mlflow_is_made_up_for(api: Api, name: str, image: str) -> None:
    """It completes all the same, and one command brings its record, report and version to MLflow."""
    with away("mlflow"):
        api.run(TEAM, name, small(image, name, "training.steps=4", f"registered_name={name}"))
        finished(api, name)
    with store_at_hand(), registry_at_hand() as client:
        assert not client.search_registered_models(f"name = '{name}'")
        for _ in range(2):
            assert main(["register", f"{RUNS}/{name}"]) == 0
        (version,) = client.search_model_versions(f"name = '{name}'")
        assert client.get_registered_model(name).aliases == {"candidate": "1"}
        assert len(client.get_metric_history(version.run_id, "loss/total")) == 4
        files = {file.path for file in client.list_artifacts(version.run_id, "report")}
    assert {"report/index.html", "report/losses.png"} <= files


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


def follows(folder: Path, replicas: str, seen: int) -> None:
    """Reads a log as it comes, until it tells of a step that was still to come."""
    command = [sys.executable, "-m", "torchx.cli.main", "log", "--tail", replicas]
    # Else what it prints into a pipe comes by 8 KiB, which are minutes of a log.
    unbuffered = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True, env=unbuffered) as process:
        ending = threading.Timer(5 * MINUTES, process.kill)
        ending.start()
        try:
            assert process.stdout is not None
            told = (re.search(r"step +(\d+)/", line) for line in process.stdout)
            assert any(found and int(found[1]) > seen + 20 for found in told), "the log goes on"
        finally:
            ending.cancel()
            process.kill()


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
    follows(tmp_path, f"{handle}/pretrain/0,1", step(api, name))
    torchx(tmp_path, "cancel", handle)
    wait_for("no Job", lambda: not api.jobs(TEAM, name), 5 * MINUTES)
    assert "CANCELLED" in torchx(tmp_path, "status", handle)
    torchx(tmp_path, "delete", handle)
    wait_for("no run", lambda: handle not in torchx(tmp_path, "list", "-s", "scholarch"))
