"""Several data sets in one run: what is trained on, evaluated, looked at and recorded."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
from scholarch.cli import main
from scholarch.cli.plan import Request, data_of, make_plan, split_of
from scholarch.config.schema import Recipe
from scholarch.data.builtin import DigitsSource
from scholarch.data.folder import FolderSource
from scholarch.data.mixture import Mixture
from scholarch.errors import UserError
from scholarch.storage.records import RECORDS_NAME, read_records
from scholarch.training.distributed import world
from scholarch.training.recipe import load_recipe
from tiny_training import TINY
from torch import Tensor

MIXED = (
    "data.sources.numbers={source: digits, weight: 3, homogeneous: 0.1}",
    "data.sources.plain={source: noise}",
)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    noise = np.random.default_rng(0)
    Path("noise").mkdir()
    for number in range(6):
        np.save(f"noise/{number}.npy", noise.integers(0, 256, (12, 12), dtype=np.uint8))
    Path("noise/torn.npy").touch()


def counted(read: Callable[[Any, int], Tensor], reads: Counter[str]) -> Callable[[Any, int], Tensor]:
    def reading(self: Any, index: int) -> Tensor:
        reads[self.name(index)] += 1
        return read(self, index)

    return reading


def recipe(*words: str) -> Recipe:
    return load_recipe("demo/digits", [*TINY, *MIXED, *words])


def test_one_data_set_is_evaluated_and_the_others_are_trained_on_whole() -> None:
    split = split_of(recipe())
    assert isinstance(split.train, Mixture)
    assert split.labelled is not None
    assert split.held is not None
    assert split.evaluated == "numbers"
    assert [len(part.source) for part in split.train.parts] == [len(split.labelled), 7]
    assert len(split.labelled) + len(split.held) == len(DigitsSource())
    numbers, plain = data_of(recipe(), split)
    assert (numbers.name, numbers.source, plain.source) == ("numbers", "builtin:digits", "noise")
    assert numbers.counts == {"pictures": len(split.labelled), "held_out": len(split.held), "share": 0.775}
    assert plain.counts == {"pictures": 7, "held_out": 0, "share": 0.225}
    assert numbers.fingerprint == split.labelled.fingerprint()


def test_without_labels_nothing_is_held_out() -> None:
    split = split_of(recipe("data.sources.numbers.labels=none"))
    assert (split.held, split.labelled, split.evaluated) == (None, None, None)
    assert len(split.train) == len(DigitsSource()) + 7


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("data.evaluated=plain",), "plain has no labels"),
        (("data.sources.plain.weight=0",), "needs a weight or a homogeneous share"),
        (("data.sources.plain.homogeneous=0.95",), "add up to 1.05"),
        (("data.sources.plain.homogeneous=0.0001",), "in thousandths"),
        (("data.sources.plain.source=nowhere",), "no such folder"),
    ],
)
def test_what_cannot_be_mixed(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        split_of(recipe(*words))


def test_every_picture_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    reads: Counter[str] = Counter()
    for kind in (DigitsSource, FolderSource):
        monkeypatch.setattr(kind, "read", counted(kind.read, reads))
    words = (*TINY, *MIXED, "training.workers=0")
    with world() as here:
        plan = make_plan(Request("demo/digits", words, "run", resume=False, run=Path("run")), here)
    assert plan.recipe.data.evaluated == "numbers"
    assert plan.recipe.data.channels == 1
    assert max(reads.values()) == 1
    assert sum(name.endswith(".npy") for name in reads) == 7
    assert len(reads) == 1024 + 7
    assert "numbers 77.5%" in plan.preflight.table()
    assert "plain/torn.npy: the file is empty" in plan.preflight.table()


def test_a_run_from_its_start_to_a_refused_resume(capsys: pytest.CaptureFixture[str]) -> None:
    words = (*TINY, *MIXED, "training.steps=2", "training.workers=0", "evaluation.every=2")
    assert main(["pretrain", "--recipe", "demo/digits", "--run", "run", *words]) == 0
    records = read_records(Path("run") / RECORDS_NAME)
    assert all(0 <= record["evaluation/knn"] <= 1 for record in records if "evaluation/knn" in record)
    assert "evaluation/knn" in records[-1]
    client = mlflow.MlflowClient(f"sqlite:///{Path('run/mlflow/mlflow.db').absolute()}")
    (experiment,) = [e for e in client.search_experiments() if e.name == "demo/digits"]
    (tracked,) = client.search_runs([experiment.experiment_id])
    inputs = {i.dataset.name: json.loads(i.dataset.profile) for i in tracked.inputs.dataset_inputs}
    assert {name: profile["pictures"] for name, profile in inputs.items()} == {"numbers": 1438, "plain": 7}
    assert main(["evaluate", "run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["data"] == "digits"
    Path("noise/0.npy").unlink()
    assert main(["pretrain", "--run", "run", "--resume"]) == 2
    assert "the data has changed since the run began (7 pictures then, 6 now)" in capsys.readouterr().err
