"""One thread for each test process: two cores are shared by xdist workers and gloo ranks."""

import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("MPLBACKEND", "Agg")
# Else each MLflow server starts seven more processes, for jobs of language models.
os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
# Else Ray's workers give way to all that runs beside them, such as the other worker of xdist.
os.environ.setdefault("RAY_worker_niceness", "0")

import multiprocessing.forkserver
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from minio_server import MinioServer, find_minio


def _environment(server: MinioServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    # Loader workers have the environment of the server that forks them: it starts anew with this one.
    # Its end is not waited for: a process that another test has left would hold it up.
    forker: Any = multiprocessing.forkserver._forkserver  # type: ignore[attr-defined]
    if forker._forkserver_alive_fd is not None:
        os.close(forker._forkserver_alive_fd)
        forker._forkserver_alive_fd = forker._forkserver_address = forker._forkserver_pid = None


def _minio(folder: Path) -> MinioServer:
    if find_minio() is None:
        pytest.skip("no MinIO server on this machine: .ci/bring_minio builds one")
    return MinioServer(folder)


@pytest.fixture(scope="session")
def minio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MinioServer]:
    """A MinIO that tests share; those that stop it take `own_minio`."""
    with _minio(tmp_path_factory.mktemp("minio")) as server:
        yield server


@pytest.fixture
def bucket(minio: MinioServer, monkeypatch: pytest.MonkeyPatch) -> str:
    """Address of a new bucket, with the environment that reaches it."""
    _environment(minio, monkeypatch)
    return minio.make_bucket(f"test-{uuid.uuid4().hex[:12]}")


@pytest.fixture
def own_minio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MinioServer]:
    """A MinIO of this test alone, with the environment that reaches it."""
    with _minio(tmp_path / "minio") as server:
        _environment(server, monkeypatch)
        yield server
