"""`scholarch evaluate MODEL --suite`: from the command line to result, table, MLflow; and what is refused."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scholarch.cli import main, suites
from scholarch.cli.subjects import open_subject
from scholarch.errors import UserError
from scholarch.models import build_backbone
from scholarch.models.features import Views
from scholarch.models.initialise import initialise
from scholarch.models.vit import ViTOptions
from scholarch.registry.backbone import Preprocessing, save_backbone
from scholarch.storage.results import read_result

SUITE = """
size: 24
data:
  scenes: {kind: scenes, train: 30, test: 20}
  videos: {kind: scenes-videos, test: 12}
evaluations:
  knn: {neighbours: 3}
  tracking: {data: videos}
"""
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    options = ViTOptions(
        size=None, embed_dim=16, depth=1, heads=2, ffn="mlp", ffn_ratio=2, patch=8, registers=1
    )
    backbone = build_backbone(options)
    initialise(backbone, 0)
    save_backbone(
        folder, options, backbone.state_dict(), Preprocessing(size=24, mean=(0.5,) * 3, std=(0.3,) * 3)
    )
    return folder


@pytest.fixture
def suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    path = tmp_path / "mine.yaml"
    path.write_text(SUITE)
    return str(path)


def test_result_table_and_pictures(
    export: Path, suite: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to = tmp_path / "result"
    assert main(["evaluate", str(export), "--suite", suite, "--to", str(to)]) == 0
    shown = capsys.readouterr().out
    found = read_result(str(to), pictures=True)
    assert (
        f"knn/top1 {found.metrics['knn/top1']:.4g}".split()
        == next(line for line in shown.splitlines() if "knn/top1" in line).split()[:2]
    )
    assert "n = 20" in shown
    assert found.model.address == str(export)
    assert found.data["scenes"].samples == {"train": 30, "test": 20}
    assert found.data["videos"].broken == {"test": 0}
    assert found.evaluations["knn"] == {"kind": "knn", "data": "scenes", "neighbours": 3, "temperature": 0.07}
    assert set(found.pictures) == {"knn-confusion.png", "tracking-tracks.png"}
    assert all(data.startswith(b"\x89PNG") for data in found.pictures.values())
    assert not (to / "features").exists()


def test_json_and_features_that_are_kept(
    export: Path, suite: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", str(export), "--suite", suite, "--json", "--features", str(tmp_path / "kept")]
    documents = []
    for number in range(2):
        assert main([*words, "--to", str(tmp_path / f"result-{number}"), "--batch", str(7 + number)]) == 0
        documents.append(json.loads(capsys.readouterr().out))
        files = sorted((tmp_path / "kept").rglob("*.safetensors"))
        times = {path: path.stat().st_mtime_ns for path in files}
        if number == 0:
            first = times
    assert documents[0]["metrics"] == documents[1]["metrics"]
    assert times == first != {}


def test_the_same_command_goes_on_after_sigterm(
    export: Path, suite: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    to = tmp_path / "result"
    original = suites.extract_all

    def extract(*given: Any, **named: Any) -> None:
        asked = named.pop("each")

        def each() -> None:
            if list(to.rglob("*.safetensors")):
                os.kill(os.getpid(), signal.SIGTERM)
            asked()

        original(*given, **named, each=each)

    monkeypatch.setattr(suites, "extract_all", extract)
    words = ["evaluate", str(export), "--suite", suite, "--to", str(to)]
    assert main(words) == 75
    before = list(to.rglob("*.safetensors"))
    assert before
    assert not (to / "result.json").exists()
    monkeypatch.setattr(suites, "extract_all", original)
    assert main(words) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--suite", "scenez"], "did you mean scenes"),
        (["--suite", "SUITE", "evaluations.knn.neighbour=3"], "did you mean `neighbours`"),
        (["--suite", "SUITE", "--data", "digits"], "a suite names its own data"),
        (["--suite", "SUITE", "--batch", "0"], "holds no picture"),
        (["--suite", "SUITE", "--features", "SUITE"], "is a file, not a folder"),
        (["data.scenes.train=3"], "changes a suite, and none is named"),
        (["--suite", "SUITE", "data.scenes={kind: voc, address: /nowhere}"], "/nowhere"),
        (["--suite", "SUITE", "evaluations.knn.data=videos"], "videos has no train split"),
    ],
)
def test_mistakes_write_nothing(
    export: Path,
    suite: str,
    words: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = [word.replace("SUITE", suite) for word in words]
    to = tmp_path / "result"
    assert main(["evaluate", str(export), *words, "--to", str(to)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not to.exists()


def test_mlflow_has_metrics_pictures_and_data(
    export: Path, suite: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.chdir(tmp_path)  # artifacts go below it
    to = tmp_path / "result"
    assert main(["evaluate", str(export), "--suite", suite, "--to", str(to)]) == 0
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("evaluations")
    (run,) = client.search_runs([experiment.experiment_id])
    found = read_result(str(to))
    assert run.data.metrics["knn/top1"] == found.metrics["knn/top1"]
    assert run.data.tags["scholarch.model_sha256"] == found.model.sha256
    assert run.info.status == "FINISHED"
    names = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert {"result.json", "samples.npz", "pictures"} <= names
    assert {one.dataset.name for one in run.inputs.dataset_inputs} == {"scenes", "videos"}


def test_a_backbone_of_timm_gives_its_own_features(tmp_path: Path) -> None:
    import timm
    from safetensors.torch import save_file

    model = timm.create_model("test_vit", num_classes=0).eval()
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    name = f"timm:test_vit:{tmp_path}/weights.safetensors"
    found = open_subject(name, CPU)
    backbone = found.subject.backbone
    images = torch.randn(2, 3, found.subject.size, found.subject.size)
    with torch.no_grad():
        expected = model.forward_features(images)
        (features,) = backbone([Views(images)])
        (before, last) = backbone.intermediate_layers(images, 2)
    prefix = model.num_prefix_tokens
    torch.testing.assert_close(features.cls, expected[:, 0])
    torch.testing.assert_close(features.patches, expected[:, prefix:])
    torch.testing.assert_close(last.patches, features.patches)
    assert not torch.allclose(before.patches, last.patches)
    assert found.model.sha256 == open_subject(name, CPU).model.sha256
    with pytest.raises(UserError, match="timm has no"):
        open_subject("timm:vit_tinny", CPU)
    (tmp_path / "weights.safetensors").write_bytes(b"no weights")
    with pytest.raises(UserError, match="timm cannot load it"):
        open_subject(name, CPU)


def test_features_of_an_export_do_not_depend_on_the_way_they_are_seen(export: Path) -> None:
    found = open_subject(str(export), CPU)
    assert found.subject.view("crop", 30).size == 32
    picture = torch.zeros(3, 40, 80, dtype=torch.uint8)
    assert found.subject.view("whole", 24)(picture).shape == (3, 24, 48)
    assert np.isfinite(found.subject.view("crop", 24)(picture).numpy()).all()
