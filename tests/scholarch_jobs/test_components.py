"""The components through TorchX's own runner and command line; no Docker, no cluster."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import scholarch_jobs
import yaml
from local_torchx import run_here, torchx
from torchx.runner import get_runner

KUBERNETES = {"queue": "default", "validate_spec": False}


def rendered(*arguments: str) -> dict[str, Any]:
    """The Kubernetes object that TorchX would create."""
    with get_runner() as runner:
        info = runner.dryrun_component("scholarch_jobs.pretrain", list(arguments), "kubernetes", KUBERNETES)
    job: dict[str, Any] = yaml.safe_load(str(info))
    return job


def container(task: dict[str, Any]) -> dict[str, Any]:
    (only,) = task["template"]["spec"]["containers"]
    result: dict[str, Any] = only
    return result


def test_align_is_a_pretraining_from_a_backbone() -> None:
    asked = {"backbone": "models:/a@champion", "data": "s3://pairs", "run": "s3://runs/t"}
    (role,) = scholarch_jobs.align("seed=3", **asked).roles
    assert role.args[role.args.index("--") + 1 :] == [
        "align", "--backbone", "models:/a@champion", "--recipe", "dinov3/text", "--run", "s3://runs/t",
        "data=s3://pairs", "seed=3",
    ]  # fmt: skip
    keys = role.metadata["scholarch"]
    assert keys["verb"] == "pretrain"
    assert keys["stages"] == [{"recipe": "dinov3/text"}]
    assert keys["overrides"] == [
        'init_from={"checkpoint": "models:/a@champion", "what": ["backbone"]}',
        "seed=3",
    ]
    with get_runner() as runner:  # TorchX reads its arguments
        runner.dryrun_component("scholarch_jobs.align", ["--backbone", "runs/mine", "seed=3"], "local_cwd")


def test_distill_is_a_run_of_one_stage() -> None:
    (role,) = scholarch_jobs.distill(
        "seed=3", recipe="dinov3/distill-vits", student=["vits16", "vitb16"], run="s3://runs/d", nodes="1:2"
    ).roles
    assert role.args[role.args.index("--") + 1 :] == [
        "distill", "--student", "vits16", "--student", "vitb16", "--recipe", "dinov3/distill-vits",
        "--run", "s3://runs/d", "seed=3",
    ]  # fmt: skip
    keys = role.metadata["scholarch"]
    assert (keys["verb"], keys["stages"]) == ("distill", [{"recipe": "dinov3/distill-vits"}])


def test_kubernetes_one_node() -> None:
    job = rendered(
        "--recipe", "demo/digits", "--image", "registry/scholarch:1", "--cpu", "4", "--gpu", "2",
        "--memory", "8192", "--env", "MLFLOW_TRACKING_URI=http://mlflow:5000", "--run", "/runs/a",
        "--resume", "True", "--data", "/data", "--mounts", "type=volume,src=pictures,dst=/data,readonly",
        "training.steps=10", "seed=3",
    )  # fmt: skip
    assert job["kind"] == "Job"
    (task,) = job["spec"]["tasks"]
    pod = task["template"]["spec"]
    worker = container(task)
    assert worker["image"] == "registry/scholarch:1"
    assert worker["command"] == [
        "python", "-m", "scholarch.training.launch", "--nodes", "1", "--run-id", job["metadata"]["name"],
        "--processes", "2", "--", "pretrain", "--recipe", "demo/digits",
        "--run", "/runs/a", "--resume", "data=/data", "training.steps=10", "seed=3",
    ]  # fmt: skip
    assert worker["resources"]["limits"] == {"cpu": "4000m", "memory": "8192M", "nvidia.com/gpu": "2"}
    assert {"name": "MLFLOW_TRACKING_URI", "value": "http://mlflow:5000"} in worker["env"]
    assert {"mountPath": "/data", "name": "mount-0", "readOnly": True} in worker["volumeMounts"]
    assert pod["restartPolicy"] == "Never"
    assert "policies" not in task, "without retries the scheduler leaves a failed pod alone"


def test_kubernetes_elastic_nodes() -> None:
    job = rendered("--nodes", "2:3", "--gpu", "8", "--retries", "2", "--restarts", "5")
    tasks = job["spec"]["tasks"]
    assert job["spec"]["maxRetry"] == 2
    assert [task["minAvailable"] for task in tasks] == [1, 1, 0]
    assert tasks[0]["policies"] == [
        {"action": "RestartJob", "event": "PodEvicted"},
        {"action": "RestartJob", "event": "PodFailed"},
    ]
    hosts = ["${TORCHX_RANK0_HOST}", "${VC_PRETRAIN_0_HOSTS}", "${VC_PRETRAIN_0_HOSTS}"]
    for task, host in zip(tasks, hosts, strict=True):
        command = container(task)["command"]
        assert command[command.index("--rendezvous") + 1] == f"{host}:29400"
        assert command[command.index("--processes") + 1] == "8"
        assert command[command.index("--max-restarts") + 1] == "5"
    assert {"name": "TORCHX_RANK0_HOST", "value": "localhost"} in container(tasks[0])["env"]
    assert container(tasks[0])["ports"] == [{"containerPort": 29400, "name": "rendezvous"}]


def test_store_outside_the_nodes() -> None:
    job = rendered("--nodes", "2:3", "--store", "meeting:29400")
    for task in job["spec"]["tasks"]:
        command = container(task)["command"]
        assert command[command.index("--rendezvous") + 1] == "meeting:29400"


def test_command_line_renders_from_the_repository_root() -> None:
    done = torchx(
        "run", "--dryrun", "-s", "kubernetes", "--workspace", "", "-cfg", "queue=default,validate_spec=False",
        "scholarch_jobs.pretrain", "--recipe", "demo/digits",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    job = yaml.safe_load(done.stdout.partition("=== SCHEDULER REQUEST ===")[2])
    assert job["spec"]["queue"] == "default"
    assert container(job["spec"]["tasks"][0])["image"] == "scholarch:0.1.0"


def test_builtin_components_stay() -> None:
    assert "dist.torchrun" in torchx("builtins").stdout


@pytest.mark.parametrize("nodes", ["0", "4:2"])
def test_wrong_nodes(nodes: str) -> None:
    done = torchx("run", "-s", "local_cwd", "scholarch_jobs.pretrain", "--nodes", nodes)
    assert done.returncode == 1
    assert f"nodes: '{nodes}'; write N, or MIN:MAX" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.gloo
def test_local_distillation(tmp_path: Path) -> None:
    run_here(
        "scholarch_jobs.distill", "--recipe", "demo/distill", "--processes", "2",
        "--run", str(tmp_path / "run"), "teachers.teacher.checkpoint=drawn", "training.steps=1",
        "training.workers=0", "training.global_batch=16", "evaluation.at_most=16",
    )  # fmt: skip
    for student in ("vit", "convnext"):
        assert (tmp_path / "run/students" / student / "export").is_dir()
    assert json.loads((tmp_path / "run/progress.json").read_text())["world_size"] == 2


def test_ray_and_curate() -> None:
    (role,) = scholarch_jobs.ray("seed=1", recipe=["demo/digits"], workers="2:4").roles
    wanted = ["--workers", "2:4", "--failures", "3", "--", "pretrain", "--recipe", "demo/digits", "seed=1"]
    assert role.args == ["-m", "scholarch_jobs.ray_launcher", *wanted]
    (role,) = scholarch_jobs.curate("sample.pictures=5", recipe="a.yaml", run="runs/a").roles
    assert role.args[-6:] == ["curate", "--recipe", "a.yaml", "--run", "runs/a", "sample.pictures=5"]
    with get_runner() as runner:  # TorchX reads their arguments
        runner.dryrun_component("scholarch_jobs.ray", ["--recipe", "demo/digits", "seed=1"], "local_cwd")
        runner.dryrun_component("scholarch_jobs.curate", ["--recipe", "a.yaml", "seed=1"], "local_cwd")
