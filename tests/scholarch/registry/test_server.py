"""A run and its model against a real MLflow server, which dies and comes back."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from scholarch.registry.tracking import Tracker
from scholarch.storage.records import append_record

pytestmark = pytest.mark.service
History = Callable[[str, str | None, str], list[tuple[int, float]]]


class Server:
    """`mlflow server` on a port of loopback, with SQLite and a local artifact folder behind it."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.folder = folder
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--backend-store-uri", f"sqlite:///{self.folder / 'mlflow.db'}", "--workers", "1"]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        deadline = time.monotonic() + 90
        while not self._healthy():
            if time.monotonic() > deadline or self.process.poll() is not None:
                self.kill()
                pytest.fail(
                    f"mlflow server did not start:\n{(self.folder / 'server.log').read_text()[-3000:]}"
                )
            time.sleep(0.2)

    def kill(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(10)
            self.process = None

    def _healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False


@pytest.fixture
def server(tmp_path: Path, fresh_database: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    shutil.copy(fresh_database, tmp_path / "mlflow.db")
    server = Server(tmp_path)
    server.start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    try:
        yield server
    finally:
        server.kill()


def test_an_outage_loses_and_doubles_no_point(
    server: Server, tmp_path: Path, history: History, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    folder = tmp_path / "run"
    folder.mkdir()
    tracker = Tracker.start(folder, "outage", "first", every=0.02)

    def train(first: int, last: int) -> None:
        for step in range(first, last):
            numbers = {f"loss/{name}": step + 0.5 for name in ("total", "dino", "ibot")}
            append_record(folder / "metrics.jsonl", {"step": step, "time": time.time(), **numbers})
            time.sleep(0.002)

    step = 0
    for _ in range(2):
        train(step, step + 300)  # killed while requests are on their way
        server.kill()
        train(step + 300, step + 400)
        while not tracker.trouble:
            time.sleep(0.05)
        time.sleep(4)
        (folder / "picture.png").write_bytes(b"picture")
        tracker.file(folder / "picture.png", "pictures")
        server.start()
        train(step + 400, step + 500)
        assert tracker.wait(120)
        step += 500
    assert tracker.finish("FINISHED", timeout=60) == ""

    for name in ("total", "dino", "ibot"):
        points = history(server.uri, tracker.run_id, f"loss/{name}")
        assert Counter(points) == Counter((step, step + 0.5) for step in range(1000))
    assert (server.folder / "artifacts").rglob("picture.png")
    assert any("cannot be reached" in message for message in caplog.messages)
    assert any("is back" in message for message in caplog.messages)


def test_a_server_that_comes_late_gets_everything(server: Server, tmp_path: Path, history: History) -> None:
    server.kill()
    folder = tmp_path / "run"
    folder.mkdir()
    tracker = Tracker.start(folder, "late", "first", every=0.02)
    tracker.recipe({"training": {"steps": 5}})
    for step in range(1, 6):
        append_record(folder / "metrics.jsonl", {"step": step, "time": 1.0 * step, "loss/total": 1.0})
    assert not tracker.wait(1)
    assert tracker.run_id is None

    server.start()

    assert tracker.wait(120)
    assert tracker.finish("FINISHED", timeout=60) == ""
    assert history(server.uri, tracker.run_id, "loss/total") == [(step, 1.0) for step in range(1, 6)]
