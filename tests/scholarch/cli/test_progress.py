"""`progress.json`, from which the operator knows where a run is."""

import json
from pathlib import Path

import pytest
from scholarch.cli import progress
from scholarch.cli.progress import PROGRESS_NAME, Progress

KEYS = [
    "step", "total", "loss", "images_per_second", "eta_seconds", "slowest_rank", "world_size", "checkpoint",
    "mlflow_url", "time",
]  # fmt: skip


def record(step: int) -> dict[str, float]:
    speed = {"images_per_second": 12.0, "eta_seconds": 30.0, "slowest_rank": 1.0}
    return {"step": step, "time": 0.0, "loss/total": 7.5, **speed}


def test_not_more_often_than_every_15_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    observer, path = Progress(tmp_path, 20, 3), tmp_path / PROGRESS_NAME
    steps = []
    for step in range(12):
        observer.recorded(record(step))
        steps.append(json.loads(path.read_text())["step"])
        now += 4.0
    assert steps == [0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8]
    observer.committed = lambda: 10
    observer.page = lambda: "http://mlflow/#/experiments/1/runs/a"
    observer.write()
    found = json.loads(path.read_text())
    assert list(found) == KEYS
    assert (found["step"], found["total"], found["loss"], found["slowest_rank"]) == (11, 20, 7.5, 1)
    assert (found["world_size"], found["checkpoint"]) == (3, 10)
    assert found["mlflow_url"].endswith("runs/a")


def test_before_the_first_step(tmp_path: Path) -> None:
    observer = Progress(tmp_path, 20, 1)
    observer.recorded({"step": 0, "time": 0.0})
    found = json.loads((tmp_path / PROGRESS_NAME).read_text())
    assert (found["step"], found["loss"], found["slowest_rank"], found["checkpoint"]) == (0, None, None, None)
