"""The scheduler `scholarch` through TorchX's own command line: no Docker, no cluster."""

from __future__ import annotations

import configparser
import inspect
import re
import subprocess
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import local_torchx
import pytest
import scholarch_jobs
import yaml
from scholarch.config.training_run import TrainingRunSpec
from torchx.runner import get_runner
from torchx.specs import AppDef, AppState, InvalidRunConfigException, Resource, Role
from torchx.specs.finder import ComponentValidationException

ROOT = Path(__file__).parents[2]
KEPT = {"runs": "s3://runs/team"}


def torchx(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """As on a machine without Docker and without a kubeconfig."""
    nowhere = {"KUBECONFIG": "/nonexistent", "DOCKER_HOST": "unix:///nonexistent", "HOME": str(folder)}
    return local_torchx.torchx(*arguments, path="/nonexistent", folder=folder, **nowhere)


def request(text: str) -> Any:
    return yaml.safe_load(text.partition("=== SCHEDULER REQUEST ===")[2])


def rendered(component: str, *arguments: str, **options: Any) -> dict[str, Any]:
    with get_runner() as runner:
        info = runner.dryrun_component(component, list(arguments), "scholarch", KEPT | options)
    run: dict[str, Any] = yaml.safe_load(str(info))
    TrainingRunSpec.parse(run["spec"])
    return run


def test_dryrun_prints_what_kubectl_takes(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("extends: demo/digits\n")
    (tmp_path / ".torchxconfig").write_text("[scholarch]\nruns = s3://runs/team\nnamespace = vision\n")
    done = torchx(
        tmp_path, "run", "--dryrun", "-s", "scholarch", "-cfg", "gang=kueue,queue=team", "scholarch_jobs.pretrain",
        "--name", "digits", "--recipe", "demo/digits,mine.yaml", "--nodes", "1:2", "--resource", "h100_4",
        "--env", "NCCL_DEBUG=WARN", "--mounts", "type=volume,src=pictures,dst=/data,readonly", "--data", "/data",
        "--restarts", "1", "--retries", "4", "training.steps=10",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert request(done.stdout) == {
        "apiVersion": "scholarch.dev/v1alpha1",
        "kind": "TrainingRun",
        "metadata": {"name": "digits", "namespace": "vision"},
        "spec": {
            "image": "scholarch:0.1.0",
            "stages": [{"recipe": "demo/digits"}, {"inline": "extends: demo/digits\n"}],
            "overrides": ["training.steps=10"],
            "data": "/data",
            "run": "s3://runs/team/digits",
            "nodes": {"max": 2},
            "resources": {"cpu": "88", "gpus": 4, "memory": "917504Mi", "sharedMemory": "458752Mi"},
            "queue": "team",
            "gang": {"backend": "kueue"},
            "env": [{"name": "NCCL_DEBUG", "value": "WARN"}],
            "volumes": [{"claim": "pictures", "path": "/data", "readOnly": True}],
            "retries": {"inPlace": 1, "attempts": 5},
        },
    }


def test_code_is_named_by_its_content_and_sent_by_no_dryrun(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("VALUE = 1")
    code = rendered("scholarch_jobs.pretrain", "--recipe", "demo/digits", code=str(tmp_path))["spec"]["code"]
    assert re.fullmatch(r"s3://runs/team/code/[0-9a-f]{64}\.tar\.gz", code)
    (tmp_path / "mine.py").write_text("VALUE = 2")
    again = rendered("scholarch_jobs.pretrain", "--recipe", "demo/digits", code=str(tmp_path))["spec"]["code"]
    assert again != code
    with pytest.raises(ComponentValidationException, match="no such folder"):
        rendered("scholarch_jobs.pretrain", "--recipe", "demo/digits", code=str(tmp_path / "none"))
    with pytest.raises(InvalidRunConfigException, match="code needs a place in S3"):
        rendered("scholarch_jobs.evaluate", "--model", "models:/a@champion", code=str(tmp_path), runs="")


def test_sample_of_the_configuration_names_what_there_is() -> None:
    sample = configparser.ConfigParser()
    sample.read_string(
        re.sub(r"^# (?=\w+ =)", "", (ROOT / "jobs/torchxconfig.sample").read_text(), flags=re.M)
    )
    from torchx_plugins.schedulers.scholarch import Options

    assert set(sample["scholarch"]) <= {option.name for option in fields(Options)}
    assert sample["cli:run"]["scheduler"] == "scholarch"
    arguments = set(inspect.signature(scholarch_jobs.pretrain).parameters)
    assert set(sample["component:scholarch_jobs.pretrain"]) <= arguments


def test_evaluation() -> None:
    spec = rendered("scholarch_jobs.evaluate", "--model", "models:/digits@champion", "--data", "digits")[
        "spec"
    ]
    assert (spec["verb"], spec["model"], spec["data"]) == ("evaluate", "models:/digits@champion", "digits")
    assert "run" not in spec


def test_names_are_new_unless_given() -> None:
    first, second = (rendered("scholarch_jobs.pretrain", "--recipe", "demo/digits") for _ in range(2))
    assert first["metadata"]["name"] != second["metadata"]["name"]
    assert first["spec"]["run"] == f"s3://runs/team/{first['metadata']['name']}"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["-cfg", "gang=kueue,runs=s3://a/b"], "queue and gang.backend kueue need one another"),
        ([], "Where is the run to be kept?"),
        (["-cfg", "runs=/tmp/runs"], "run must outlive its pods"),
    ],
)
def test_mistakes_are_told_before_anything_is_sent(tmp_path: Path, arguments: list[str], says: str) -> None:
    run = ["run", "-s", "scholarch", *arguments, "scholarch_jobs.pretrain", "--recipe", "demo/digits"]
    done = torchx(tmp_path, *run)
    assert done.returncode == 1
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def two_roles(app: AppDef) -> None:
    app.roles.append(app.roles[0])


def another_component(app: AppDef) -> None:
    app.roles[0].metadata = {}


def a_bind_mount(app: AppDef) -> None:
    from torchx.specs import BindMount

    app.roles[0].mounts = [BindMount("/a", "/b")]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (two_roles, "has one role"),
        (another_component, "none of scholarch_jobs"),
        (a_bind_mount, "type=volume only"),
    ],
)
def test_apps_that_are_no_training_run(change: Callable[[AppDef], None], says: str) -> None:
    metadata = {"scholarch": {"verb": "pretrain", "stages": [{"recipe": "demo/digits"}]}}
    resource = Resource(cpu=1, gpu=0, memMB=1024)
    app = AppDef("a", [Role("pretrain", "image", entrypoint="python", resource=resource, metadata=metadata)])
    with get_runner() as runner:
        runner.dryrun(app, "scholarch", KEPT)
        change(app)
        with pytest.raises(ComponentValidationException, match=says):
            runner.dryrun(app, "scholarch", KEPT)


def test_where_nobody_says_where() -> None:
    with get_runner() as runner, pytest.raises(InvalidRunConfigException):
        runner.dryrun_component("scholarch_jobs.pretrain", ["--recipe", "demo/digits"], "scholarch", {})


def test_unknown_resource(tmp_path: Path) -> None:
    done = torchx(tmp_path, "run", "-s", "scholarch", "scholarch_jobs.pretrain", "--resource", "h900")
    assert "resource: 'h900' is unknown; ours are h200" in done.stderr


def condition(kind: str, reason: str = "Any", message: str = "") -> dict[str, str]:
    return {"type": kind, "status": "True", "reason": reason, "message": message}


@pytest.mark.parametrize(
    ("status", "state"),
    [
        ({}, AppState.SUBMITTED),
        ({"conditions": [condition("Suspended")]}, AppState.PENDING),
        ({"conditions": [condition("Running"), condition("Stalled")]}, AppState.RUNNING),
        ({"conditions": [condition("Complete")]}, AppState.SUCCEEDED),
        ({"conditions": [condition("Failed", "CrashLoop")]}, AppState.FAILED),
        ({"conditions": [condition("Failed", "Cancelled")]}, AppState.CANCELLED),
    ],
)
def test_states(status: dict[str, Any], state: AppState) -> None:
    from torchx_plugins.schedulers.scholarch import state_of

    assert state_of(status) == state


def test_message() -> None:
    from torchx_plugins.schedulers.scholarch import message_of

    status = {
        "attempt": 2,
        "attempts": [{"number": 1, "reason": "Crashed", "message": "digits-1-0: boom"}],
        "progress": {"step": 70, "total": 100, "loss": 4.5678, "imagesPerSecond": 310.25, "etaSeconds": 12},
        "conditions": [condition("Stalled", "NoProgress", "nothing has moved")],
    }
    assert message_of(status) == (
        "step 70 of 100; loss 4.568; 310.2 images/s; 12 s left; "
        "attempt 2, the one before: Crashed digits-1-0: boom; NoProgress: nothing has moved"
    )
    waits = {**condition("Scheduled", "TooFewNodes", "0 of 2 nodes"), "status": "False"}
    assert message_of({"conditions": [waits]}) == "TooFewNodes: 0 of 2 nodes"
    assert message_of({"conditions": [condition("Scheduled", "Placed", "2 of 2 nodes")]}) == ""
