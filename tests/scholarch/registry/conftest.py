"""One migrated MLflow database, copied for each test: making one takes seconds."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mlflow_server import MlflowServer


@pytest.fixture(scope="session")
def fresh_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database with nothing in it."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def run_folder(tmp_path: Path, fresh_database: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run folder whose MLflow database exists already."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = tmp_path / "runs" / "first"
    (folder / "mlflow").mkdir(parents=True)
    shutil.copy(fresh_database, folder / "mlflow" / "mlflow.db")
    return folder


@pytest.fixture
def history() -> Callable[[str, str | None, str], list[tuple[int, float]]]:
    """(step, value) of every stored point of a metric, in step order."""

    def read(uri: str, run_id: str | None, key: str) -> list[tuple[int, float]]:
        from mlflow import MlflowClient

        points = MlflowClient(uri).get_metric_history(str(run_id), key)
        return sorted((point.step, point.value) for point in points)

    return read


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, fresh_database: Path) -> Iterator[MlflowServer]:
    """A server that was not started yet."""
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(fresh_database, folder / "mlflow.db")
    server = MlflowServer(folder)
    try:
        yield server
    finally:
        server.kill()
