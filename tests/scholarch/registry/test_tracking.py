"""A run in a real MLflow on SQLite: what arrives, once, and what a resumed run adds."""

from __future__ import annotations

import json
import logging
import math
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from scholarch.errors import UserError
from scholarch.registry.client import connect
from scholarch.registry.tracking import Data, Tracker, known_run, local_uri, tracking_uri
from scholarch.storage.records import append_record, keep_records

History = Callable[[str, str | None, str], list[tuple[int, float]]]

RECIPE = {
    "name": "demo/digits",
    "data": {"source": "s3://key:hunter2@bucket/digits", "token": "hunter2"},
    "optimizer": {"lr": [{"shape": "cosine", "end": 1e-6}]},
    "training": {"steps": 30},
}


def write(folder: Path, first: int, last: int, **extra: float) -> None:
    for step in range(first, last + 1):
        record = {"step": step, "time": 1000.0 + step, "loss/total": 1 / step, "loss/dino/global": 2 / step}
        append_record(folder / "metrics.jsonl", {**record, **extra})


def start(folder: Path, resume_id: str | None = None) -> Tracker:
    return Tracker.start(folder, "digits", "first", resume_id, every=0.1, sample_every=0.1)


def stored(folder: Path, run_id: str | None) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(local_uri(folder)).get_run(str(run_id))


def expected(first: int, last: int, factor: float = 1.0) -> list[tuple[int, float]]:
    return [(step, factor / step) for step in range(first, last + 1)]


def test_a_run_arrives_whole(run_folder: Path, history: History) -> None:
    from mlflow import MlflowClient

    (run_folder / "report").mkdir()
    (run_folder / "report" / "losses.png").write_bytes(b"picture")
    tracker = start(run_folder)
    tracker.recipe(RECIPE)
    tracker.tags({"world_size": 2, "note": "x" * 9000})
    tracker.data(
        Data(name="digits", source="builtin:digits", fingerprint="f" * 64, counts={"pictures": 1797})
    )
    tracker.file(run_folder / "report" / "losses.png", "report")
    write(run_folder, 1, 30)
    append_record(run_folder / "metrics.jsonl", {"step": 30, "time": 1031.0, "evaluation/knn": 0.9})

    assert tracker.finish("FINISHED", timeout=60) == ""

    run = stored(run_folder, tracker.run_id)
    client = MlflowClient(local_uri(run_folder))
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "first"
    assert history(tracker.uri, tracker.run_id, "loss/total") == expected(1, 30)
    assert history(tracker.uri, tracker.run_id, "loss/dino/global") == expected(1, 30, 2)
    assert history(tracker.uri, tracker.run_id, "evaluation/knn") == [(30, 0.9)]
    assert client.get_metric_history(run.info.run_id, "loss/total")[0].timestamp == 1001000
    assert run.data.params["training.steps"] == "30"
    assert json.loads(run.data.params["optimizer.lr"]) == [{"shape": "cosine", "end": 1e-6}]
    assert run.data.tags["world_size"] == "2"
    assert len(run.data.tags["note"]) == 8000
    assert run.data.metrics["system/cpu_utilization_percentage"] >= 0
    assert run.data.metrics["system/process_memory_megabytes"] > 1
    (used,) = run.inputs.dataset_inputs
    assert (used.dataset.name, used.dataset.digest) == ("digits", "f" * 36)
    assert json.loads(used.dataset.profile) == {"pictures": 1797}
    assert [artifact.path for artifact in client.list_artifacts(run.info.run_id, "report")] == [
        "report/losses.png"
    ]
    assert (run_folder / "mlflow" / "artifacts" / run.info.run_id).is_dir()
    assert known_run(run_folder) == run.info.run_id


def test_no_secret_is_stored_anywhere(run_folder: Path) -> None:
    tracker = start(run_folder)
    tracker.recipe(RECIPE)
    tracker.tags({"password": "hunter2", "address": "http://ann:hunter2@host"})
    for number, source in enumerate(
        ["https://ann:hunter2@host/d?token=hunter2", "s3://key:hunter2@bucket/d"]
    ):
        tracker.data(Data(name="d", source=source, fingerprint=str(number), counts={}))
    assert tracker.finish("FINISHED", timeout=60) == ""

    files = [path for path in run_folder.rglob("*") if path.is_file()]
    assert any(path.name == "recipe.yaml" for path in files)
    assert [path.name for path in files if b"hunter2" in path.read_bytes()] == []


def test_a_resumed_run_doubles_nothing_and_fills_what_was_not_sent(
    run_folder: Path, history: History
) -> None:
    tracker = start(run_folder)
    tracker.recipe(RECIPE)
    write(run_folder, 1, 20)
    assert tracker.finish("KILLED", timeout=60) == ""
    assert stored(run_folder, tracker.run_id).info.status == "KILLED"
    write(run_folder, 21, 25)  # written, but the process died before they were sent

    keep_records(run_folder / "metrics.jsonl", 23)  # the checkpoint was at 23
    first_id = tracker.run_id
    resumed = start(run_folder, known_run(run_folder))
    resumed.recipe({**RECIPE, "training": {"steps": 40}, "new": 1})
    assert resumed.wait(60)
    assert stored(run_folder, first_id).info.status == "RUNNING"
    write(run_folder, 24, 30)
    assert resumed.finish("FINISHED", timeout=60) == ""

    run = stored(run_folder, resumed.run_id)
    assert resumed.run_id == first_id
    assert history(resumed.uri, first_id, "loss/total") == expected(1, 30)
    assert run.data.params["training.steps"] == "30"  # written once
    assert run.data.tags["changed.training.steps"] == "40"
    assert run.data.params["new"] == "1"
    assert run.info.status == "FINISHED"
    steps = [step for step, _ in history(resumed.uri, first_id, "system/disk_usage_percentage")]
    assert steps == list(range(len(steps)))


def test_steps_done_again_after_an_older_checkpoint_are_not_logged_twice(
    run_folder: Path, history: History
) -> None:
    tracker = start(run_folder)
    write(run_folder, 1, 20)
    assert tracker.finish("FAILED", timeout=60) == ""

    keep_records(run_folder / "metrics.jsonl", 10)
    resumed = start(run_folder, known_run(run_folder))
    # The same steps, at another time; an evaluation that the first attempt did not reach.
    for step in range(11, 23):
        append_record(
            run_folder / "metrics.jsonl",
            {"step": step, "time": 9000.0 + step, "loss/total": 1 / step, "evaluation/knn": 0.5},
        )
    assert resumed.finish("FINISHED", timeout=60) == ""

    assert history(resumed.uri, resumed.run_id, "loss/total") == expected(1, 22)
    assert history(resumed.uri, resumed.run_id, "evaluation/knn") == [(step, 0.5) for step in range(11, 23)]


def test_a_run_that_was_deleted_is_made_again_from_the_file(run_folder: Path, history: History) -> None:
    from mlflow import MlflowClient

    tracker = start(run_folder)
    write(run_folder, 1, 5)
    assert tracker.finish("KILLED", timeout=60) == ""
    MlflowClient(local_uri(run_folder)).delete_run(str(tracker.run_id))

    resumed = start(run_folder, known_run(run_folder))
    assert resumed.finish("FINISHED", timeout=60) == ""

    assert resumed.run_id not in (None, tracker.run_id)
    assert history(resumed.uri, resumed.run_id, "loss/total") == expected(1, 5)
    assert known_run(run_folder) == resumed.run_id


def test_numbers_that_are_not_finite_and_odd_names_arrive(run_folder: Path) -> None:
    append_record(run_folder / "metrics.jsonl", {"step": 1, "time": 1.0, "loss/π(x)": 3, "note": "text"})
    write(run_folder, 2, 2, **{"loss/koleo": math.nan})
    tracker = start(run_folder)
    assert tracker.finish("FAILED", timeout=60) == ""

    metrics: Mapping[str, float] = stored(run_folder, tracker.run_id).data.metrics
    assert metrics["loss/π_x_"] == 3
    assert math.isnan(metrics["loss/koleo"])
    assert "note" not in metrics


def test_many_points_and_parameters_go_in_several_requests(run_folder: Path) -> None:
    append_record(
        run_folder / "metrics.jsonl", {"step": 1, "time": 1.0, **{f"many/{i}": i for i in range(2500)}}
    )
    tracker = start(run_folder)
    tracker.recipe({f"key{i}": "v" * 7000 for i in range(250)})
    assert tracker.finish("FINISHED", timeout=60) == ""

    data = stored(run_folder, tracker.run_id).data
    assert sum(key.startswith("many/") for key in data.metrics) == 2500
    assert len(data.params) == 250
    assert {len(value) for value in data.params.values()} == {6000}


def test_what_cannot_be_logged_is_said_and_costs_nothing_else(
    run_folder: Path, history: History, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = start(run_folder)
    tracker.file(run_folder / "report" / "gone.png", "report")
    write(run_folder, 1, 3)

    message = tracker.finish("FINISHED", timeout=60)

    assert "report/gone.png" in message
    assert message in caplog.messages
    assert history(tracker.uri, tracker.run_id, "loss/total") == expected(1, 3)
    assert stored(run_folder, tracker.run_id).info.status == "FINISHED"


def test_a_server_that_never_answers_costs_one_warning_and_a_bounded_wait(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ann:hunter2@127.0.0.1:9")  # discard: nobody listens
    caplog.set_level(logging.INFO)
    tracker = start(run_folder)
    write(run_folder, 1, 3)
    assert not tracker.wait(4)

    message = tracker.finish("KILLED", timeout=1)

    assert "did not take the last metrics, its end status (KILLED)" in message
    assert "`scholarch register` with it, sends it" in message
    assert sum("cannot be reached" in text for text in caplog.messages) == 1
    assert "hunter2" not in caplog.text
    assert tracker.run_id is None
    assert known_run(run_folder) is None


@pytest.mark.parametrize("address", ["htp://mlflow:5000", "localhost:5000"])
def test_an_address_that_is_none_is_refused_at_once(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    with pytest.raises(UserError, match="is no tracking address"):
        tracking_uri(run_folder)


def test_the_data_set_can_be_found_again(run_folder: Path) -> None:
    import mlflow.data

    pictures = run_folder / "pictures"
    pictures.mkdir()
    tracker = start(run_folder)
    for name, source in {"local": str(pictures), "bucket": "s3://b/x", "code": "builtin:digits"}.items():
        tracker.data(Data(name=name, source=source, fingerprint=name, counts={}))
    assert tracker.finish("FINISHED", timeout=60) == ""

    inputs = stored(run_folder, tracker.run_id).inputs.dataset_inputs
    sources = {item.dataset.name: mlflow.data.get_source(item.dataset) for item in inputs}
    assert sources["local"].uri == str(pictures)
    assert sources["bucket"].uri == "s3://b/x"
    assert "builtin:digits" in sources["code"].to_json()


def test_a_file_is_whole_though_its_maker_was_killed(tmp_path: Path) -> None:
    """MLflow makes its tables in many steps, and opens no file in which some are missing."""
    uri = local_uri(tmp_path)
    file = tmp_path / "mlflow" / "mlflow.db"
    command = (
        "import sys; from scholarch.registry.client import connect; connect(sys.argv[1]).search_experiments()"
    )
    with subprocess.Popen([sys.executable, "-c", command, uri]) as process:
        limit = time.monotonic() + 60
        while not any(path.stat().st_size for path in file.parent.rglob("*.db")):
            assert time.monotonic() < limit
            time.sleep(0.01)
        time.sleep(0.2)
        process.kill()
    assert not file.exists(), "killed before it was done"
    assert connect(uri).search_experiments()
