"""`scholarch align` from a backbone to a registered model that reads texts, and what it refuses."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scholarch.cli import main
from scholarch.cli.sources import open_model, open_run
from scholarch.config.promotion import PolicySpec
from scholarch.data.catalog import open_source
from scholarch.models import build_backbone
from scholarch.models.initialise import initialise
from scholarch.models.vit import ViTOptions
from scholarch.registry.backbone import Preprocessing, save_backbone
from scholarch.registry.decision import Contender, decide
from scholarch.storage.results import read_result

VIT = ViTOptions(size="tiny", embed_dim=48, depth=1, heads=2, patch=8)
SEEN = Preprocessing(size=32, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))


@pytest.fixture
def backbone(tmp_path: Path) -> Path:
    model = build_backbone(VIT)
    initialise(model, 3)
    folder = tmp_path / "backbone"
    folder.mkdir()
    save_backbone(folder, VIT, model.state_dict(), SEEN)
    return folder


def align(run: Path, *more: str) -> int:
    small = ["training.steps=3", "evaluation.every=3", "evaluation.size=32", "seed=2"]
    return main(["align", "--scale", "tiny", "--run", str(run), *small, *more])


def picture(number: int) -> bytes:
    file = io.BytesIO()
    pixels = open_source("shapes").read(number).permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def test_from_a_backbone_to_a_model_that_reads_texts(
    backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import mlflow
    import pandas

    run = tmp_path / "run"
    assert align(run, "--backbone", str(backbone)) == 0
    opened = open_run(run)
    assert opened.recipe.model.vision == VIT
    assert (opened.recipe.data.mean, opened.recipe.data.std) == (SEEN.mean, SEEN.std)
    first = open_model(str(backbone)).weights
    for name, tensor in first.items():
        assert torch.equal(opened.model.weights[f"visual_model.backbone.{name}"], tensor), name
    # From the export as from the checkpoint.
    exported = open_model(str(run / "export"))
    assert exported.preprocessing == opened.model.preprocessing
    assert exported.preprocessing.merges == (run / "vocabulary.txt").read_text()

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{run}/mlflow/mlflow.db")
    mlflow.set_tracking_uri(f"sqlite:///{run}/mlflow/mlflow.db")
    version = mlflow.MlflowClient().get_model_version_by_alias("dinov3-text-tiny", "candidate")
    assert version.tags["parent"] == str(backbone)
    model = mlflow.pyfunc.load_model("models:/dinov3-text-tiny@candidate")
    files = pandas.DataFrame({"image": [picture(0), picture(1)]})
    texts = pandas.DataFrame({"text": ["a red square", "", "🔴"]})
    images, words = model.predict(files), model.predict(texts, params={"task": "embed_text"})
    assert images.shape == (2, 64)
    assert words.shape == (3, 64)
    for rows in (images, words):
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-5)
    given = {"task": "classify", "classes": ["red square", "blue ring"], "templates": ["a {}"]}
    shares = model.predict(files, params=given)
    named = model.predict(
        pandas.DataFrame({"text": ["a red square", "a blue ring"]}), params={"task": "embed_text"}
    )
    scale = float(opened.model.weights["logit_scale"].exp())
    logits = np.exp(scale * images @ named.T)
    np.testing.assert_allclose(shares, logits / logits.sum(axis=1, keepdims=True), rtol=1e-4)

    (tmp_path / "picture.png").write_bytes(picture(0))
    out = tmp_path / "seen"
    capsys.readouterr()
    where = [str(run), str(tmp_path / "picture.png"), "--out", str(out), "--sizes", "32"]
    asked = [*where, "--text", "a red square", "--text", "a ring"]
    assert main(["inspect", *asked]) == 0
    assert str(out / "text.png") in capsys.readouterr().out
    assert "“a red square”" in (out / "index.html").read_text()
    by_tokens = (out / "text.png").read_bytes()
    assert main(["inspect", *asked, "--window", "12"]) == 0
    assert (out / "text.png").read_bytes() != by_tokens
    assert re.search(r"seen 16/16  [\d,]+ windows/s\n", capsys.readouterr().err)
    for wrong, said in (
        ([*asked, "--window", "33"], "give 1 to 32"),
        ([*where, "--window", "12"], "--text PHRASE"),
    ):
        assert main(["inspect", *wrong]) == 2
        assert said in capsys.readouterr().err
    gates_hold(str(run), str(tmp_path / "evaluated"))


def gates_hold(run: str, to: str) -> None:
    """The suite of words on the model, and zero-shot accuracy as the gate of a promotion."""
    small = ["data.shapes.test=20", "size=32", "evaluations.text_segmentation=null"]
    assert main(["evaluate", run, "--suite", "text", "--to", to, *small]) == 0
    found = read_result(to)
    assert found.metrics["zero_shot/chance"] == pytest.approx(1 / 36)
    assert {"text_retrieval/picture_to_text/r1", "text_retrieval/text_to_picture/r10"} <= found.metrics.keys()
    suites = [{"name": "text", "data": {"shapes": found.data["shapes"].fingerprint}}]

    def verdict(candidate: float, champion: float, **gate: object) -> str:
        spec = {"suite": "text", "metric": "zero_shot/top1", **gate}
        policy = PolicySpec.read({"model": "words", "suites": suites, "gates": [spec]}, "test")
        sides = []
        for version, share in (("2", candidate), ("1", champion)):
            right = (np.arange(20) < 20 * share).astype(np.float64)
            metrics = {**found.metrics, "zero_shot/top1": share}
            samples = {**found.samples, "zero_shot/top1": right}
            model = replace(found.model, address=f"models:/words/{version}")
            result = replace(found, model=model, metrics=metrics, samples=samples)
            sides.append(Contender(version, {"text": result}))
        return decide(policy, *sides).verdict

    assert found.samples["zero_shot/top1"].shape == (20,)
    assert verdict(0.8, 0.5, bound=0.7) == "promote"
    assert verdict(0.6, 0.5, bound=0.7) == "refuse"
    assert verdict(0.9, 0.5, allowedRegression=0.0, confidence=0.95) == "promote"
    assert verdict(0.5, 0.9, allowedRegression=0.0, confidence=0.95) == "refuse"


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("data=digits", "data.channels=3"), "these pictures have no captions"),
        (("captions.merges=nowhere.txt",), "cannot be read"),
        (("captions.merges=",), "how are captions cut into tokens?"),
        (("captions.merge=learned",), "did you mean `merges`?"),
        (("model.text.vocabulary=100",), "at least 514"),
        (("views.caption={size: 32}",), "views.caption: is the name of what a sample's caption is"),
        (("training.micro_batch=4",), "cannot be cut into micro-batches"),
        (("--backbone", "nowhere"), "nowhere does not exist"),
    ],
)
def test_a_mistake_is_told_and_nothing_is_written(
    more: tuple[str, ...], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert align(run, *more) == 2
    assert words in capsys.readouterr().err
    assert not run.exists()


def test_a_backbone_alone_reads_no_text(
    backbone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "picture.png").write_bytes(picture(0))
    assert main(["inspect", str(backbone), str(tmp_path / "picture.png"), "--text", "a ring"]) == 2
    assert "this model reads no text" in capsys.readouterr().err
