"""What can be said of the thin part without an API server; the rest is the cluster tests' matter."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import kopf
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from scholarch.cli.progress import Progress as Writer
from scholarch.config.training_run import TrainingRunSpec
from scholarch.storage.objects import open_objects
from scholarch_operator.metrics import RunCollector
from scholarch_operator.progress import ProgressReader, places
from training_runs import SPEC


def test_no_handler_needs_a_finalizer() -> None:
    """A finalizer of a stopped operator would hold up everybody's deletion."""
    from scholarch_operator import handlers

    registry = kopf.get_default_registry()
    assert handlers.runs is not None
    assert not list(registry._spawning.get_all_handlers())
    assert not list(registry._changing.get_all_handlers())
    assert {str(handler.id) for handler in registry._indexing.get_all_handlers()} == {
        "runs",
        "jobs",
        "pods",
        "promotions",
        "policies",
        "evaluations",
    }


def test_operator_imports_no_torch() -> None:
    code = "import sys, scholarch_operator.handlers; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0


def test_without_a_way_to_a_cluster() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "scholarch_operator"],
        env={**os.environ, "KUBECONFIG": "/nonexistent"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode != 0
    assert "no way to the API server" in done.stderr


def test_metrics_follow_the_runs() -> None:
    status = {"progress": {"step": 7, "loss": 4.5}, "nodes": 2}
    bodies = [{"metadata": {"namespace": "vision", "name": "digits"}, "status": status}]
    registry = CollectorRegistry()
    registry.register(RunCollector(lambda: bodies))
    text = generate_latest(registry).decode()
    assert 'scholarch_run_step{namespace="vision",run="digits"} 7.0' in text
    assert 'scholarch_run_eta_seconds{namespace="vision"' not in text
    # Of a newer operator: its condition is not ours to count, and the other runs' numbers still come.
    newer = {
        "type": "Mirrored",
        "status": "True",
        "reason": "Done",
        "lastTransitionTime": "2026-11-22T12:00:00Z",
    }
    bodies.append({"metadata": {"namespace": "vision", "name": "new"}, "status": {"conditions": [newer]}})
    text = generate_latest(registry).decode()
    assert 'scholarch_run_step{namespace="vision",run="digits"} 7.0' in text
    assert 'run="new"' in text
    assert "Mirrored" not in text
    bodies.clear()
    assert "digits" not in generate_latest(registry).decode()


def test_stages_keep_a_progress_of_their_own() -> None:
    stages = [{"recipe": "demo/digits"}, {"recipe": "/data/high.yaml"}, {"inline": "a: 1"}]
    assert places(TrainingRunSpec.parse(SPEC)) == ["progress.json"]
    assert places(TrainingRunSpec.parse(SPEC | {"stages": stages})) == [
        "stages/3-stage-3/progress.json",
        "stages/2-high/progress.json",
        "stages/1-demo-digits/progress.json",
    ]


def test_a_store_that_does_not_answer_is_no_stall(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    reader = ProgressReader()
    assert reader.read(TrainingRunSpec.parse(SPEC)) == (None, False)
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    assert reader.read(TrainingRunSpec.parse(SPEC)) == (None, False), "not even asked again at once"


@pytest.mark.service
def test_progress_is_read_as_it_was_written(bucket: str, tmp_path: Path) -> None:
    run = TrainingRunSpec.parse(SPEC | {"run": f"{bucket}/runs/digits"})
    reader = ProgressReader()
    assert reader.read(run) == (None, True), "the store answers that there is none"
    writer = Writer(tmp_path, total=100, world_size=2)
    writer.committed = lambda: 5
    writer.page = lambda: "http://mlflow/#/experiments/1/runs/a"
    writer.recorded({"step": 7, "loss/total": 4.5})
    open_objects(run.run).write("progress.json", (tmp_path / "progress.json").read_bytes())
    progress, known = reader.read(run)
    assert known
    assert progress is not None
    assert (progress.step, progress.total, progress.loss, progress.world_size) == (7, 100, 4.5, 2)
    assert progress.checkpoint == "checkpoints/step-000000005"
    assert progress.mlflow_url.endswith("runs/a")
    assert abs((datetime.now(UTC) - progress.aware_time).total_seconds()) < 600
