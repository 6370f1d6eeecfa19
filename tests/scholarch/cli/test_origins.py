"""What `init_from` and frozen teachers name: runs, exports, the registry's versions; and what is written down."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
import yaml
from mlflow import MlflowClient
from safetensors.torch import load_file
from scholarch.cli import main
from scholarch.cli.origins import of_teachers
from scholarch.cli.sources import find_model, open_model
from scholarch.config.schema import Recipe
from scholarch.storage.local import sha256
from scholarch.training.checkpoint import committed
from scholarch.training.recipe import load_recipe
from tiny_training import TINY, tiny_recipe

QUICK = (*TINY, "training.workers=0", "training.steps=2", "evaluation.at_most=32")
DIGITS = ("pretrain", "--recipe", "demo/digits", "--run", "new", *QUICK)
STILL = ("optimizer.lr=0.0", "model.stochastic_depth=0.0")


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two steps, version 1 of demo-digits in its own registry."""
    run = tmp_path_factory.mktemp("runs") / "first"
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        assert main(["pretrain", "--recipe", "demo/digits", "--run", str(run), *QUICK]) == 0
    return run


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def saved() -> dict[str, dict[str, dict[str, object]]]:
    data: dict[str, dict[str, dict[str, object]]] = yaml.safe_load(Path("new/recipe.yaml").read_text())
    return data


def distilled(first: object) -> tuple[str, ...]:
    """A narrower student that learns from the run; its heads are as wide as the teacher's own."""
    return (
        "model.embed_dim=16",
        "masks.global.hide=false",
        f"teachers.big={{weights: frozen, checkpoint: '{first}'}}",
        "terms.dino.teacher=big",
        "terms.ibot.teacher=big",
    )


def test_a_run_tells_model_and_heads_of_the_teacher(first: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The student's average is given away; a resumed run keeps to the checkpoint that it began with."""
    run = shutil.copytree(first, "teacher")
    assert main([*DIGITS, *distilled(run), "training.checkpoint_every=1"]) == 0
    assert "teacher big vit, " in " ".join(capsys.readouterr().err.split())
    teacher = saved()["teachers"]["big"]
    newest = Path(committed(Path("teacher/checkpoints"))[-1].address)
    assert teacher["found"] == {"name": str(newest), "sha256": sha256(newest / "manifest.json")}
    assert teacher["model"]["embed_dim"] == 24  # type: ignore[index]
    assert sorted(teacher["heads"]) == ["dino", "ibot"]  # type: ignore[call-overload]
    assert load_file("new/export/backbone.safetensors")["cls_token"].shape[-1] == 16
    # As if killed after the first step, while the teacher's run has gone on.
    shutil.rmtree(committed(Path("new/checkpoints"))[-1].address)
    later = shutil.copytree(newest, newest.with_name("step-000000009"))
    again = ("pretrain", "--run", "new", "--resume")
    assert main([*again]) == 0
    assert saved()["teachers"]["big"] == teacher
    shutil.rmtree(later)
    shutil.rmtree(committed(Path("new/checkpoints"))[-1].address)
    (newest / "manifest.json").write_text((newest / "manifest.json").read_text() + " ")
    capsys.readouterr()
    assert main([*again]) == 2
    assert "has changed: its SHA-256" in capsys.readouterr().err


def test_a_version_of_the_registry(first: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked for by alias; the version and its digest are written down, and the alias may move after."""
    uri = f"sqlite:///{first}/mlflow/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    client = MlflowClient(uri)
    client.set_registered_model_alias("demo-digits", "champion", "1")
    begin = "init_from.checkpoint=models:/demo-digits@champion"
    assert main([*DIGITS, begin, *STILL, "registered_name=second"]) == 0
    init = saved()["init_from"]
    assert init["checkpoint"] == "models:/demo-digits@champion"
    weights = first / "export/backbone.safetensors"
    assert init["found"] == {"name": "models:/demo-digits/1", "sha256": sha256(weights)}
    ours, theirs = load_file("new/export/backbone.safetensors"), load_file(weights)
    for name, tensor in theirs.items():  # the average of equal weights rounds
        torch.testing.assert_close(ours[name], tensor, rtol=1e-6, atol=1e-9, msg=name)
    client.delete_registered_model_alias("demo-digits", "champion")
    assert main(["pretrain", "--run", "new", "--resume"]) == 0  # what it began from was taken over long ago


def test_an_aligned_model_has_the_version_of_its_backbone_as_parent(
    first: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"sqlite:///{first}/mlflow/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    small = ("data.channels=1", "training.steps=2", "evaluation.every=2", "registered_name=words")
    asked = ("--scale", "tiny", "--run", "new", "--backbone", "models:/demo-digits@candidate", *small)
    assert main(["align", *asked]) == 0
    client = MlflowClient(uri)
    backbone = client.get_model_version_by_alias("demo-digits", "candidate")
    words = client.get_model_version_by_alias("words", "candidate")
    assert words.tags["parent"] == f"models:/demo-digits/{backbone.version}"


def test_an_exported_folder_is_a_teacher_without_heads(
    first: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export = first / "export"
    gram = (
        f"teachers.old={{weights: frozen, checkpoint: '{export}'}}",
        "terms.gram={teacher: old, teacher_view: global}",
    )
    assert main([*DIGITS, "model.embed_dim=16", *gram]) == 0
    old = saved()["teachers"]["old"]
    assert old["found"] == {"name": str(export), "sha256": sha256(export / "backbone.safetensors")}
    assert old["model"]["embed_dim"] == 24  # type: ignore[index]
    shutil.rmtree("new")
    capsys.readouterr()
    assert main([*DIGITS, *distilled(export)]) == 2
    assert "read the head 'dino' of this teacher, and the file holds none" in " ".join(
        capsys.readouterr().err.split()
    )
    assert not Path("new").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("teachers.big.checkpoint=nowhere",), "teachers.big.checkpoint: nowhere does not exist"),
        (("teachers.big.checkpoint=models:/demo-digits@champion",), "MLFLOW_TRACKING_URI, which is not set"),
        (("teachers.big.checkpoint=null",), "teachers.big.checkpoint: a frozen teacher needs `checkpoint`"),
        (("heads.dino.prototypes=11",), "terms.dino: the student has 11 prototypes, its teacher 12"),
        (("data.channels=3",), "the teacher takes pictures of 1 channels, and the data has 3"),
        (("teachers.big.found={name: '{first}', sha256: abc}",), "has changed"),
    ],
)
def test_mistakes_leave_nothing_behind(
    first: Path, overrides: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word.replace("{first}", str(first)) for word in overrides]
    assert main([*DIGITS, *distilled(first), *words]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not Path("new").exists()


def test_other_normalisation_is_noted(first: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*DIGITS, *distilled(first), "data.mean=[0.0]", "teachers.big.model={size: small}"]) == 0
    text = " ".join(capsys.readouterr().err.split())
    assert "teachers.big was trained on pictures of mean" in text
    assert "teachers.big.model is that of" in text


def test_a_plan_counts_the_teacher_that_is_here(first: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", "pretrain", "--recipe", "demo/digits", "--gpus", "2", "--gpu-memory", "80", *TINY]
    assert main([*words, *distilled(first)]) == 0
    here = capsys.readouterr().out
    own = sum(t.numel() for t in open_model(str(first)).weights.values())
    recipe, missing = of_teachers(tiny_recipe(*distilled(first)))
    assert recipe.teachers["big"].model.embed_dim == 24
    assert not missing
    (line,) = (line for line in here.splitlines() if "teacher big" in line)
    assert int(line.split()[-1].replace(",", "")) > own / 2
    assert main([*words, *distilled("elsewhere")]) == 0
    assert "note: teachers.big.checkpoint is not here" in capsys.readouterr().out


def test_a_run_without_an_average_gives_the_student_away(first: Path) -> None:
    from scholarch.cli.sources import exported_network

    def of(*overrides: str) -> str:
        recipe: Recipe = tiny_recipe(*distilled(first), *overrides)
        return exported_network(recipe)

    assert of() == "teachers.ema"
    assert of("teachers.ema=null") == "student"
    assert exported_network(load_recipe("dinov2/distill")) == "teachers.ema"
    assert main([*DIGITS, *distilled(first), "teachers.ema=null", *STILL]) == 0
    assert load_file("new/export/backbone.safetensors")["cls_token"].shape[-1] == 16
    found = find_model("new")
    assert found.network == "student"
    assert torch.equal(
        open_model("new").weights["cls_token"], load_file("new/export/backbone.safetensors")["cls_token"]
    )
