"""The whole command on small data: what is trained on, and what is left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from scholarch.cli import main
from scholarch.cli.sources import open_model
from scholarch.models.features import Views
from scholarch.registry.backbone import assemble, load_backbone
from scholarch.storage.records import RECORDS_NAME, read_records
from tiny_training import TINY

PICTURES = tuple(word for word in TINY if not word.startswith("model.channels"))
QUICK = ("training.steps=3", "training.workers=0", "evaluation.every=3")


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def photos(folder: Path, count: int, *, channels: int = 3) -> Path:
    folder.mkdir(parents=True)
    draws = np.random.default_rng(len(folder.name))
    for number in range(count):
        pixels = draws.integers(0, 256, (40, 50, channels), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.jpg")
    return folder


def pretrain(*words: str) -> Path:
    assert main(["pretrain", "--run", "run", *words, *PICTURES, *QUICK]) == 0
    return Path("run")


def losses(run: Path) -> list[float]:
    return [r["loss/total"] for r in read_records(run / RECORDS_NAME) if "loss/total" in r]


def test_a_folder_of_jpegs_without_label_or_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    photos(Path("mine/nested"), 10)
    (Path("mine") / "broken.jpg").write_bytes(b"\xff\xd8no picture")
    run = pretrain("data=mine")
    assert len(losses(run)) == 3
    text = capsys.readouterr().err
    assert "1 of 11 pictures checked are broken and left out: broken.jpg" in text
    assert "no labels: k-NN accuracy was not measured" in text
    assert "registered demo-pictures version 1, alias candidate" in text
    for name in ("recipe.yaml", "report/index.html", "export/backbone.safetensors", "export/timm_model.py"):
        assert (run / name).stat().st_size > 0


def test_class_folders_are_evaluated(capsys: pytest.CaptureFixture[str]) -> None:
    photos(Path("mine/cats"), 6)
    photos(Path("mine/doggies"), 6)
    run = pretrain("data=mine")
    scores = [r["evaluation/knn"] for r in read_records(run / RECORDS_NAME) if "evaluation/knn" in r]
    assert len(scores) == 2
    assert "k-NN accuracy on 2 held-out pictures" in capsys.readouterr().err
    assert main(["evaluate", "run", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["train"] == 10
    assert result["knn/20"] == pytest.approx(scores[-1])


@pytest.mark.parametrize(("channels", "kind"), [(1, np.uint16), (3, np.uint16), (5, np.uint8)])
def test_channels_and_depths(channels: int, kind: type) -> None:
    folder = Path("mine")
    folder.mkdir()
    draws = np.random.default_rng(0)
    for number in range(9):
        pixels = draws.integers(0, np.iinfo(kind).max, (30, 20, channels), dtype=kind)
        np.save(folder / f"{number}.npy", pixels.squeeze())
    run = pretrain("data=mine")
    assert all(np.isfinite(losses(run)))
    backbone, preprocessing = load_backbone(run / "export")
    assert backbone.channels == channels
    assert preprocessing.mean == pytest.approx([0.5] * channels, abs=0.02)


def test_what_is_registered_is_what_was_trained() -> None:
    run = pretrain("--recipe", "demo/digits")
    mlflow.set_tracking_uri(f"sqlite:///{run.absolute()}/mlflow/mlflow.db")
    model = mlflow.pyfunc.load_model("models:/demo-digits@candidate")
    Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).save("one.png")
    found = model.predict(pd.DataFrame({"image": [Path("one.png").read_bytes()]}))
    opened = open_model("run")
    backbone = assemble(opened.options, opened.weights)
    picture = torch.arange(256).reshape(1, 1, 16, 16) / 255
    mean, std = opened.preprocessing.mean[0], opened.preprocessing.std[0]
    # 16 px: the short side goes to 16 x 256 / 224 = 18 and the centre is cut; size 16 keeps it simple.
    assert found.shape == (1, 24)
    (features,) = backbone([Views((picture - mean) / std)])
    assert float(torch.nn.functional.cosine_similarity(features.cls, torch.from_numpy(found))[0]) > 0.9


def test_export_loads_in_timm_with_the_same_features(capsys: pytest.CaptureFixture[str]) -> None:
    pretrain("--recipe", "demo/digits", "model.rope.rescale=null")
    assert main(["export", "run", "--to", "out"]) == 0
    assert "by timm" in capsys.readouterr().out
    script = (
        "import runpy, torch\n"
        "model = runpy.run_path('timm_model.py')['model'].eval()\n"
        "x = torch.linspace(-1, 1, 3 * 256).reshape(3, 1, 16, 16)\n"
        "torch.save(model(x), 'found.pt')\n"
    )
    subprocess.run([sys.executable, "-c", script], cwd="out", check=True, timeout=120)
    backbone, _ = load_backbone(Path("out"))
    (features,) = backbone([Views(torch.linspace(-1, 1, 3 * 256).reshape(3, 1, 16, 16))])
    torch.testing.assert_close(torch.load("out/found.pt"), features.cls, rtol=1e-4, atol=1e-5)


def test_an_export_is_a_model_too(capsys: pytest.CaptureFixture[str]) -> None:
    pretrain("--recipe", "demo/digits")
    assert main(["evaluate", "run/export", "--data", "digits", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["test"] == 359


def test_mlflow_that_is_down_does_not_fail_the_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Training is done and exported; the message says how to make up for it, once for all."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    run = pretrain("--recipe", "demo/digits")
    text = capsys.readouterr().err
    assert "warning" in text
    assert (run / "export" / "backbone.safetensors").is_file()
    assert "scholarch register run" in text
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{Path('later').absolute()}/mlflow.db")
    for _ in range(2):
        assert main(["register", "run"]) == 0
    client = mlflow.MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    (version,) = client.search_model_versions("name = 'demo-digits'")
    (experiment,) = client.search_experiments(filter_string="name = 'demo/digits'")
    (found,) = client.search_runs([experiment.experiment_id])
    assert version.run_id == found.info.run_id
    assert found.info.status == "FINISHED"
    points = client.get_metric_history(found.info.run_id, "loss/total")
    assert [point.value for point in sorted(points, key=lambda point: point.step)] == losses(run)
    assert found.data.params["training.steps"] == "3"
    names = {file.path for file in client.list_artifacts(found.info.run_id, "report")}
    assert "report/index.html" in names
    assert not [key for key in found.data.metrics if key.startswith("system/")], "of another machine"
