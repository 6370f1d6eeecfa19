"""Ray under TorchX: Ray Train as the second launcher, whose loss curve is that of the first, and a curation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from local_torchx import run_here
from scholarch.data.catalog import open_source
from scholarch.errors import UserError
from scholarch.storage.records import read_records
from scholarch_jobs.ray_launcher import main, worker_range
from tiny_curation import write_model

CHANGES = (
    "training.steps=4", "training.log_every=1", "training.workers=0", "training.precision=fp64",
    "evaluation.at_most=64",
)  # fmt: skip
CURATION = {
    "pool": {"digits": "digits"},
    "deduplicate": {"hash_bits": None, "threshold": 0.9999, "neighbours": {"k": 4}},
    "cluster": {"levels": [{"clusters": 20, "iterations": 3, "rounds": 0}]},
    "sample": {"pictures": 200},
    "mix": {"digits": {"of": "sample"}},
}


def losses(run: Path) -> list[float]:
    return [record["loss/total"] for record in read_records(run / "metrics.jsonl") if "loss/total" in record]


@pytest.fixture(autouse=True)
def _another_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")  # of a Ray that nobody asked for


@pytest.mark.gloo
@pytest.mark.xdist_group("ray")
def test_the_curve_is_that_of_the_other_launcher(tmp_path: Path) -> None:
    one, other = tmp_path / "launcher", tmp_path / "ray"
    digits = ("--recipe", "demo/digits")
    # An environment that is not activated: TorchX must find this Python all the same.
    run_here("scholarch_jobs.pretrain", *digits, "--run", str(one), *CHANGES, path="/usr/bin:/bin")
    run_here("scholarch_jobs.ray", *digits, "--workers", "2", "--run", str(other), *CHANGES)
    assert len(losses(one)) == 4
    assert losses(other) == pytest.approx(losses(one), rel=1e-9)
    assert (other / "checkpoints").is_dir()
    assert (other / "export").is_dir()


@pytest.mark.xdist_group("ray")
def test_digits_are_curated(tmp_path: Path) -> None:
    recipe, run = tmp_path / "curation.yaml", tmp_path / "run"
    model = write_model(tmp_path / "model")
    recipe.write_text(yaml.safe_dump({**CURATION, "embed": {"model": str(model), "part": 900}}))
    run_here("scholarch_jobs.curate", "--recipe", str(recipe), "--run", str(run))
    (embedded,) = run.glob("steps/embed-pool-digits-*/result.json")
    assert json.loads(embedded.read_text())["counts"]["pictures out"] == 1797
    (mixture,) = run.glob("steps/mix-*")
    assert len(open_source(str(mixture))) == 200


@pytest.mark.parametrize("text", ["0", "3:2", "two", "1:"])
def test_numbers_of_workers(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError):
        worker_range(text)
    assert main(["--workers", text, "--", "pretrain"]) == 2
    assert "is no number of workers" in capsys.readouterr().err
    assert worker_range("2:8") == (2, 8)
