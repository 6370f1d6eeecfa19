"""`scholarch curate` as a person types it: results, report, MLflow; in a folder and in MinIO, killed and resumed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from scholarch.cli import main
from scholarch.data.catalog import open_source
from scholarch.data.mixture import Mixture
from scholarch.storage.objects import open_objects
from tiny_curation import write_model, write_pictures, write_recipe

pytestmark = pytest.mark.xdist_group("ray")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SCHOLARCH_SCRATCH", str(tmp_path / "scratch"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    write_pictures(tmp_path)
    write_model(tmp_path / "tiny")
    write_recipe(tmp_path)
    return tmp_path


def test_into_a_folder(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")  # of another cluster, which nobody asked for
    command = ["curate", "--recipe", "recipe.yaml", "--run", "run", "--workers", "2"]
    assert main(command) == 0
    told = capsys.readouterr()
    mixture = told.out.strip().removeprefix("next: scholarch pretrain data=")
    source = open_source(mixture)
    assert isinstance(source, Mixture)
    assert [part.name for part in source.parts] == ["chosen", "found", "references"]
    page = (folder / "run" / "report" / "index.html").read_text()
    for words in ("Around the threshold", "Dropped pictures", "balance, sample over clusters", "broken.png"):
        assert words in page
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder}/run/mlflow/mlflow.db")
    (experiment,) = client.search_experiments(filter_string="name = 'curate/recipe'")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.metrics["counts/sample/pictures_out"] == 12
    assert run.data.metrics["balance/sample_over_clusters/entropy"] > 0
    assert {found.dataset.name for found in run.inputs.dataset_inputs} == {"web", "known", "test"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--recipe", "none.yaml"], "there is no such file"),
        (["--recipe", "recipe.yaml", "--workers", "0"], "0 workers cannot work"),
        (["--recipe", "recipe.yaml", "embed.model=nothing"], "nothing"),
        (["--recipe", "recipe.yaml", "pool.web.source=nowhere"], "there is no such folder"),
        (["--recipe", "recipe.yaml", "--run", "recipe.yaml"], "is a file, not a folder"),
    ],
)
def test_mistakes_write_nothing(
    folder: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["curate", *words]) == 2
    assert message in capsys.readouterr().err
    assert not (folder / "runs").exists()
    assert not (folder / "run").exists()


@pytest.mark.service
@pytest.mark.usefixtures("folder")
def test_from_minio_to_minio_killed_on_the_way(bucket: str) -> None:
    assert main(["pack", "web", f"{bucket}/web", "--workers", "1"]) == 0
    command = [sys.executable, "-m", "scholarch.cli", "curate", "--recipe", "recipe.yaml", "--workers", "2"]
    command += ["--run", f"{bucket}/run", f"pool.web.source={bucket}/web"]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, start_new_session=True, env=os.environ.copy()
    ) as killed:
        assert killed.stderr is not None
        for line in killed.stderr:
            if line.startswith("deduplicate: "):
                break
        os.killpg(killed.pid, signal.SIGKILL)
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=250)
    assert done.returncode == 0, done.stderr
    assert "embed/pool/web: 60 pictures in, 0 broken, 60 pictures out (as before)" in done.stderr
    assert "deduplicate: 60 pictures in" in done.stderr
    mixture = done.stdout.strip().removeprefix("next: scholarch pretrain data=")
    assert mixture.startswith(f"{bucket}/run/steps/mix-")
    source = open_source(mixture)
    assert source.read(len(source) - 6).shape == (3, 32, 32)
    names = {entry.name for entry in open_objects(f"{bucket}/run").entries()}
    assert {"curation.yaml", "report/index.html"} <= names
    assert not [name for name in names if "/work/" in name or name == "lease.json"]
