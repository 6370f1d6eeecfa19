"""A backbone in a real registry: found by its alias, loaded elsewhere, registered once."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from environments import linked_environment
from PIL import Image
from ports import free_port
from scholarch.data.views import EvaluationView
from scholarch.errors import UserError
from scholarch.models import build_backbone
from scholarch.models.features import Backbone, Features, Views
from scholarch.models.initialise import initialise
from scholarch.models.vit import ViTOptions
from scholarch.registry.backbone import Preprocessing, load_backbone
from scholarch.registry.card import Card
from scholarch.registry.client import local_uri
from scholarch.registry.models import Trained, download, register_backbone, requirements
from scholarch.registry.tracking import Data, Tracker
from scholarch.storage.records import append_record

OPTIONS = ViTOptions(size=None, embed_dim=16, depth=1, heads=2, ffn="mlp", ffn_ratio=2, patch=4, registers=1)
SEEN = Preprocessing(size=16, mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.2))
CARD = Card(
    recipe="demo/digits",
    licence="Apache-2.0",
    data=[Data(name="digits", source="builtin:digits", fingerprint="ab" * 32, counts={"pictures": 1797})],
    evaluations={"evaluation/knn": 0.91234},
)


def backbone() -> Backbone:
    model = build_backbone(OPTIONS)
    initialise(model, seed=1)
    return model.eval()


def trained(step: int = 30) -> Trained:
    tags = {"recipe": "demo/digits", "data_fingerprint": "ab" * 32, "code_version": "0.1.0"}
    return Trained(
        options=OPTIONS,
        weights=backbone().state_dict(),
        preprocessing=SEEN,
        step=step,
        card=CARD,
        tags=tags,
    )


def pictures() -> tuple[list[np.ndarray], list[bytes]]:
    """Three pictures of different sizes, and as PNG files."""
    generator = np.random.default_rng(0)
    arrays = [
        generator.integers(0, 256, size, dtype=np.uint8) for size in [(20, 20, 3), (24, 40, 3), (18, 30)]
    ]
    files = []
    for array in arrays:
        file = io.BytesIO()
        Image.fromarray(array).save(file, format="PNG")
        files.append(file.getvalue())
    return arrays, files


def features(arrays: list[np.ndarray]) -> Features:
    """What the backbone gives when it is called directly."""
    view = EvaluationView(SEEN.size, SEEN.mean, SEEN.std)
    rgb = [array if array.ndim == 3 else np.stack([array] * 3, axis=-1) for array in arrays]
    batch = torch.stack([view(torch.from_numpy(array).permute(2, 0, 1)) for array in rgb])
    with torch.no_grad():
        (found,) = backbone()([Views(batch)])
    return found


def track(folder: Path) -> str:
    tracker = Tracker.start(folder, "digits", "first", every=0.1)
    append_record(folder / "metrics.jsonl", {"step": 30, "time": 5.0, "evaluation/knn": 0.9})
    assert tracker.finish("FINISHED", timeout=60) == ""
    return str(tracker.run_id)


@pytest.fixture(scope="module")
def registered(tmp_path_factory: pytest.TempPathFactory, fresh_database: Path) -> tuple[Path, str]:
    """Run folder and run id; a model `dino` registered from it twice over."""
    import shutil

    folder = tmp_path_factory.mktemp("registered")
    (folder / "mlflow").mkdir()
    shutil.copy(fresh_database, folder / "mlflow" / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        # MLflow takes such files from the working directory for the model's own.
        patch.chdir(tmp_path_factory.mktemp("project"))
        Path("uv.lock").write_text("version = 1\n")
        Path("pyproject.toml").write_text("[project]\nname = 'other'\nversion = '1'\n")
        run_id = track(folder)
        first = register_backbone(folder, "dino", trained())
        again = register_backbone(folder, "dino", trained())
        assert sorted(path.name for path in Path().iterdir()) == ["pyproject.toml", "uv.lock"]
    assert (first.version, first.created, first.uri) == ("1", True, "models:/dino/1")
    assert (again.version, again.created) == ("1", False)
    return folder, run_id


def load(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    import mlflow

    monkeypatch.setattr(mlflow.tracking._tracking_service.utils, "_tracking_uri", None)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", local_uri(folder))
    return mlflow.pyfunc.load_model("models:/dino@candidate")


def test_the_loaded_model_gives_what_the_backbone_gives(
    registered: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import pandas as pd

    arrays, files = pictures()
    wanted = features(arrays)
    model = load(registered[0], monkeypatch)
    frame = pd.DataFrame({"image": files})

    embeddings = model.predict(frame)
    patches = model.predict(frame, params={"return": "patches"})

    assert embeddings.dtype == np.float32
    assert embeddings.shape == (3, 16)
    np.testing.assert_allclose(embeddings, wanted.cls.numpy(), atol=1e-6)
    np.testing.assert_allclose(patches, wanted.patches.numpy(), atol=1e-6)
    assert patches.shape == (3, 16, 16)
    assert model.predict(frame[:0]).shape == (0, 16)
    with pytest.raises(ValueError, match="'cls' or 'patches', not 'pixels'"):
        model.predict(frame, params={"return": "pixels"})
    with pytest.raises(Exception, match=r"row 1.*not a picture"):
        model.predict(pd.DataFrame({"image": [files[0], b"no picture"]}))


def test_the_version_says_where_it_comes_from(registered: tuple[Path, str]) -> None:
    from mlflow import MlflowClient

    folder, run_id = registered
    client = MlflowClient(local_uri(folder))
    version = client.get_model_version_by_alias("dino", "candidate")
    model = client.get_logged_model(version.tags["model_id"])
    run = client.get_run(run_id)

    assert version.run_id == run_id
    assert version.tags == {
        "recipe": "demo/digits",
        "data_fingerprint": "ab" * 32,
        "code_version": "0.1.0",
        "run_id": run_id,
        "step": "30",
        "model_id": model.model_id,
        "registered_for": "candidate",
    }
    assert "| knn | 0.9123 |" in version.description
    assert "models:/dino@candidate" in version.description
    assert [(metric.key, metric.value) for metric in model.metrics] == [("evaluation/knn", 0.9)]
    assert len(client.get_metric_history(run_id, "evaluation/knn")) == 1
    assert [output.model_id for output in run.outputs.model_outputs] == [model.model_id]
    assert len(client.search_logged_models([run.info.experiment_id])) == 1
    assert run.info.status == "FINISHED"


def model_folder(folder: Path) -> Path:
    (found,) = (folder / "mlflow" / "artifacts" / "models").glob("*/artifacts")
    return found


def test_the_files_of_a_model(registered: tuple[Path, str]) -> None:
    import yaml

    folder = model_folder(registered[0])
    described = yaml.safe_load((folder / "MLmodel").read_text())

    assert sorted(path.name for path in (folder / "data" / "backbone").iterdir()) == [
        "backbone.json",
        "backbone.safetensors",
    ]
    assert "# dino" in (folder / "README.md").read_text()
    assert json.loads(described["signature"]["inputs"]) == [
        {"type": "binary", "name": "image", "required": True}
    ]
    assert json.loads(described["signature"]["outputs"])[0]["tensor-spec"] == {
        "dtype": "float32",
        "shape": [-1, 16],
    }
    assert (folder / "requirements.txt").read_text().split() == requirements()
    assert (folder / "code" / "scholarch" / "registry" / "pyfunc.py").exists()
    assert not {"uv.lock", "pyproject.toml"} & {path.name for path in folder.iterdir()}
    assert not list(folder.rglob("*.pkl"))


def test_base64_over_http_gives_the_same(registered: tuple[Path, str]) -> None:
    from mlflow.models import convert_input_example_to_serving_input
    from mlflow.pyfunc import load_model
    from mlflow.pyfunc.scoring_server import invocations

    arrays, files = pictures()
    model = load_model(str(model_folder(registered[0])))
    encoded = [[base64.b64encode(file).decode()] for file in files]
    payloads = {
        "own": json.dumps({"dataframe_split": {"columns": ["image"], "data": encoded}}),
        "example": convert_input_example_to_serving_input(model.input_example),
    }

    # What `mlflow models serve` does with a request.
    answers = {
        name: invocations(payload, "application/json", model, model.metadata.get_input_schema())
        for name, payload in payloads.items()
    }

    assert {answer.status for answer in answers.values()} == {200}
    found = np.asarray(json.loads(answers["own"].response)["predictions"])
    np.testing.assert_allclose(found, features(arrays).cls.numpy(), atol=1e-6)
    assert np.asarray(json.loads(answers["example"].response)["predictions"]).shape == (1, 16)
    assert model.input_example["image"][0][:4] == b"\x89PNG"


@pytest.mark.service
def test_mlflow_serves_it(registered: tuple[Path, str], tmp_path: Path) -> None:
    arrays, files = pictures()
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", str(model_folder(registered[0]))]
    command += ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env={**os.environ, "PATH": path}, start_new_session=True
        )
    try:
        deadline = time.monotonic() + 240
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=5):
                    break
            except OSError:
                assert time.monotonic() < deadline, (tmp_path / "log").read_text()[-3000:]
                assert process.poll() is None, (tmp_path / "log").read_text()[-3000:]
                time.sleep(0.2)
        encoded = [[base64.b64encode(file).decode()] for file in files]
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/invocations",
            json.dumps({"dataframe_split": {"columns": ["image"], "data": encoded}}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=120) as answer:
            found = np.asarray(json.load(answer)["predictions"])
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    np.testing.assert_allclose(found, features(arrays).cls.numpy(), atol=1e-6)


def test_timm_loads_its_checkpoint(registered: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(model_folder(registered[0]) / "timm")
    names: dict[str, Any] = {}
    exec(Path("timm_model.py").read_text(), names)
    (loaded,) = (value for value in names.values() if isinstance(value, torch.nn.Module))
    picture = torch.rand(2, 3, SEEN.size, SEEN.size)
    with torch.no_grad():
        (found,) = backbone()([Views(picture)])
        theirs = loaded.eval().forward_features(picture)[:, 0]
    torch.testing.assert_close(theirs, found.cls, atol=1e-5, rtol=1e-5)


def test_it_loads_where_only_its_requirements_are(registered: tuple[Path, str], tmp_path: Path) -> None:
    arrays, files = pictures()
    # A JPEG too: another decoder reads it.
    Image.fromarray(np.full((16, 16, 3), 99, np.uint8)).save(tmp_path / "other.jpg")
    (tmp_path / "picture.png").write_bytes(files[1])
    program = (
        "import importlib.util, sys\n"
        "assert importlib.util.find_spec('scholarch') is None\n"
        "import mlflow, numpy, pandas\n"
        "model = mlflow.pyfunc.load_model(sys.argv[1])\n"
        "files = [open(name, 'rb').read() for name in ('picture.png', 'other.jpg')]\n"
        "found = model.predict(pandas.DataFrame({'image': files}))\n"
        "import scholarch; assert scholarch.__file__.startswith(sys.argv[1]), scholarch.__file__\n"
        "numpy.save('found.npy', found)\n"
    )
    folder = model_folder(registered[0])
    needed = [line.partition("==")[0] for line in (folder / "requirements.txt").read_text().split()]
    python = linked_environment(tmp_path / "environment", *needed)

    done = subprocess.run(
        [python, "-c", program, str(folder)], cwd=tmp_path, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr[-2000:]
    found = np.load(tmp_path / "found.npy")
    assert found.shape == (2, 16)
    np.testing.assert_allclose(found[:1], features(arrays[1:2]).cls.numpy(), atol=1e-6)


def test_the_alias_moves_to_a_later_step_and_not_back(run_folder: Path) -> None:
    from mlflow import MlflowClient

    track(run_folder)
    client = MlflowClient(local_uri(run_folder))

    assert register_backbone(run_folder, "dino", trained(10)).version == "1"
    assert register_backbone(run_folder, "dino", trained(20)).version == "2"
    assert not register_backbone(run_folder, "dino", trained(10)).created
    assert client.get_model_version_by_alias("dino", "candidate").version == 2
    assert register_backbone(run_folder, "other", trained(20), alias=None).version == "1"
    assert client.get_registered_model("other").aliases == {}


def test_the_newest_version_has_the_alias_also_when_an_older_one_writes_it_last(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    track(run_folder)
    client = MlflowClient(local_uri(run_folder))
    write = MlflowClient.set_registered_model_alias
    written: list[str] = []

    def after_a_newer_one(self: MlflowClient, name: str, alias: str, version: str) -> None:
        """Between the first one's look at the alias and its write, another run registers from begin to end."""
        if not written:
            written.append("look")
            assert register_backbone(run_folder, "dino", trained(20)).version == "2"
        written.append(version)
        write(self, name, alias, version)

    monkeypatch.setattr(MlflowClient, "set_registered_model_alias", after_a_newer_one)

    assert register_backbone(run_folder, "dino", trained(10)).version == "1"

    assert written == ["look", "2", "1", "2"]
    assert client.get_registered_model("dino").aliases == {"candidate": 2}


def test_a_registration_cut_in_the_middle_is_completed(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    run_id = track(run_folder)
    client = MlflowClient(local_uri(run_folder))
    # What an attempt leaves that ended while the files were on their way.
    experiment = client.get_run(run_id).info.experiment_id
    begun = client.create_logged_model(experiment, name="backbone", source_run_id=run_id, tags={"step": "30"})

    register_backbone(run_folder, "dino", trained())

    version = client.get_model_version_by_alias("dino", "candidate")
    assert version.tags["model_id"] == begun.model_id
    assert load(run_folder, monkeypatch).predict(_frame()).shape == (1, 16)


def _frame() -> Any:
    import pandas as pd

    return pd.DataFrame({"image": pictures()[1][:1]})


def test_what_a_user_can_get_wrong(run_folder: Path) -> None:
    with pytest.raises(UserError, match="was never tracked"):
        register_backbone(run_folder, "dino", trained())
    with pytest.raises(UserError, match="cannot name a registered model"):
        register_backbone(run_folder, "demo/digits", trained())
    track(run_folder)
    wrong = replace(trained(), options=replace(OPTIONS, embed_dim=32))
    with pytest.raises(UserError, match="do not fit the model"):
        register_backbone(run_folder, "dino", wrong)


def test_a_registered_backbone_can_be_fetched(
    registered: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", local_uri(registered[0]))

    for address in ("models:/dino@candidate", "models:/dino/1"):
        found = download(address)
        assert found.address == "models:/dino/1"
        loaded, preprocessing = load_backbone(found.folder)
        assert preprocessing == SEEN
        assert torch.equal(loaded.state_dict()["cls_token"], backbone().state_dict()["cls_token"])
    for address, words in {
        "models:/dino@champion": "there is no such version",
        "models:/dino/9": "there is no such version",
        "models:/none/1": "there is no such version",
        "models:/dino": "names no version",
    }.items():
        with pytest.raises(UserError, match=words):
            download(address)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with pytest.raises(UserError, match="which is not set"):
        download("models:/dino/1")


def test_requirements_are_pinned_to_what_is_installed() -> None:
    found = dict(line.split("==") for line in requirements())

    assert torch.__version__.startswith(found["torch"])
    assert "+" not in "".join(found.values())
    assert {"mlflow", "numpy", "pillow", "safetensors", "torchvision"} <= set(found)
