"""`scholarch distill`: each student a run of its own, stopped, failed and gone on with."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from gloo import run_ranks
from mlflow import MlflowClient
from scholarch.cli import main
from scholarch.cli.sources import open_run
from scholarch.cli.students import JOB, Job, distil
from scholarch.config.scale import STEPS
from scholarch.errors import EXIT_DONE, RunFailed
from scholarch.storage.records import RECORDS_NAME, read_records
from scholarch.training.checkpoint import committed
from tiny_training import gloo_world
from torch.distributed import ProcessGroup

QUICK = ("data.source=digits", "data.channels=3", "evaluation.at_most=16")


def run(
    group: ProcessGroup,
    folder: Path,
    recipe: str,
    overrides: Sequence[str],
    resume: bool = False,
    only: Sequence[str] = (),
    address: str = "run",
    tracking: str = "",
) -> int:
    os.chdir(folder)
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    if tracking:
        os.environ["MLFLOW_TRACKING_URI"] = tracking
    job = Job("" if resume else recipe, tuple(overrides), "tiny", address, tuple(only), resume=resume)
    try:
        return distil(job, gloo_world(group))
    except RunFailed as failure:
        return failure.exit_code


def curve(folder: Path, student: str) -> list[float]:
    records = read_records(folder / "run/students" / student / RECORDS_NAME)
    return [record["loss/total"] for record in records if "loss/total" in record]


def without(*names: str) -> list[str]:
    return [f"students.{name}=null" for name in names]


@pytest.mark.gloo
@pytest.mark.timeout(600)
def test_vision_transformers_end_as_runs_and_go_on_where_they_were_cut_off(tmp_path: Path) -> None:
    overrides = [*QUICK, *without("vits16plus", "vitl16", "vith16plus")]
    assert run_ranks(2, run, tmp_path, "dinov3/distill-vits", overrides) == [EXIT_DONE] * 2
    whole = {name: curve(tmp_path, name) for name in ("vits16", "vitb16")}
    for name, losses in whole.items():
        folder = tmp_path / "run/students" / name
        assert len(losses) == STEPS
        assert all(math.isfinite(loss) for loss in losses)
        assert (folder / "export").is_dir()
        assert (folder / "report/index.html").is_file()
        assert open_run(folder).recipe.registered_name == f"dinov3-distill-vits-tiny-{name}"
    assert whole["vits16"] != whole["vitb16"]

    # As if cut off in the middle, one student further than the other.
    for name, kept in (("vits16", 8), ("vitb16", 10)):
        folder = tmp_path / "run/students" / name
        for checkpoint in committed(folder / "checkpoints"):
            if checkpoint.step > kept:
                shutil.rmtree(checkpoint.address)
        shutil.rmtree(folder / "export")
    assert run_ranks(2, run, tmp_path, "", [], True) == [EXIT_DONE] * 2
    for name, losses in whole.items():
        assert curve(tmp_path, name) == losses
        assert (tmp_path / "run/students" / name / "export").is_dir()
    assert json.loads((tmp_path / "run" / JOB).read_text())["recipe"] == "dinov3/distill-vits"

    # One more student, by itself: what there is of the others stays as it is.
    before = _files(tmp_path / "run/students")
    added = ["students.added={model: {embed_dim: 24}}"]
    assert run_ranks(1, run, tmp_path, "", added, True, ["added"]) == [EXIT_DONE]
    after = _files(tmp_path / "run/students")
    assert {path: after[path] for path in before} == before
    assert len(curve(tmp_path, "added")) == STEPS

    # One whose folder is gone begins anew, and comes to where it was; another one that is not done either stays so.
    shutil.rmtree(tmp_path / "run/students/vitb16")
    shutil.rmtree(tmp_path / "run/students/vits16/export")
    before = _files(tmp_path / "run/students")
    assert run_ranks(1, run, tmp_path, "", [], True, ["vitb16"]) == [EXIT_DONE]
    after = _files(tmp_path / "run/students")
    assert {path: after[path] for path in before} == before
    assert curve(tmp_path, "vitb16") == whole["vitb16"]

    # The stage that follows: each begins as it was, at several resolutions.
    overrides = [*overrides, "init_from.checkpoint=run"]
    codes = run_ranks(2, run, tmp_path, "dinov3/distill-vits-highres", overrides, False, (), "later")
    assert codes == [EXIT_DONE] * 2
    for name in whole:
        recipe = open_run(tmp_path / "later/students" / name).recipe
        assert recipe.init_from is not None
        assert recipe.init_from.found is not None
        assert recipe.init_from.checkpoint == f"run/students/{name}"
        assert recipe.init_from.found.name.endswith(f"run/students/{name}/checkpoints/step-{STEPS:09d}")


def _files(folder: Path) -> dict[Path, tuple[int, bytes]]:
    return {
        path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()
    }


@pytest.mark.gloo
@pytest.mark.timeout(600)
def test_a_student_that_fails_is_named_and_the_others_end(tmp_path: Path) -> None:
    """ConvNeXts, whose teacher sees smaller crops; one has a learning rate that breaks it."""
    overrides = [
        *QUICK,
        *without("convnext_base", "convnext_large"),
        "students.convnext_small.optimizer.lr=1e30",
        "students.convnext_small.optimizer.clip=null",
    ]
    store = f"sqlite:///{tmp_path}/mlflow.db"
    client = MlflowClient(store)
    client.search_experiments()  # two students that make the tables at the same time are in each other's way
    codes = run_ranks(2, run, tmp_path, "dinov3/distill-convnext", overrides, False, (), "run", store)
    assert codes == [1, 1]
    assert len(curve(tmp_path, "convnext_tiny")) == STEPS
    assert (tmp_path / "run/students/convnext_tiny/export").is_dir()
    assert len(curve(tmp_path, "convnext_small")) < STEPS
    assert not (tmp_path / "run/students/convnext_small/export").exists()

    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    found = {one.info.run_name: one for one in client.search_runs(experiments)}
    whole, *_ = (one for one in found.values() if "mlflow.parentRunId" not in one.data.tags)
    students = {one.data.tags["scholarch.student"]: one for one in found.values() if one is not whole}
    assert {one.data.tags["mlflow.parentRunId"] for one in students.values()} == {whole.info.run_id}
    assert {name: one.info.status for name, one in students.items()} == {
        "convnext_tiny": "FINISHED",
        "convnext_small": "FAILED",
    }
    assert whole.info.status == "FAILED"
    points = client.get_metric_history(students["convnext_tiny"].info.run_id, "loss/total")
    assert sorted((p.step, p.value) for p in points) == list(enumerate(curve(tmp_path, "convnext_tiny"), 1))
    assert [model.name for model in client.search_registered_models()] == [
        "dinov3-distill-convnext-tiny-convnext_tiny"
    ]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "which recipe?"),
        (
            ["--recipe", "dinov3/distill-vits", "--scale", "tiny"],
            "5 students need as many processes, and there are 1",
        ),
        (["--recipe", "dinov3/distill-vits", "--student", "nobody"], "no student 'nobody'"),
        (["--recipe", "dinov3/distill-vits", "--run", "nowhere", "--resume"], "there is no run"),
    ],
)
def test_mistakes_leave_nothing_behind(
    words: list[str],
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["distill", *words]) == 2
    assert told in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_pretrain_sends_a_recipe_with_students_to_distill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["pretrain", "--recipe", "dinov3/distill-vits", "--scale", "tiny"]) == 2
    assert "scholarch distill" in capsys.readouterr().err
