"""A run and its model against a real MLflow server, which dies and comes back."""

from __future__ import annotations

import io
import logging
import random
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from mlflow_server import MlflowServer
from PIL import Image
from scholarch.models import build_backbone
from scholarch.models.initialise import initialise
from scholarch.models.vit import ViTOptions
from scholarch.registry.backbone import Preprocessing
from scholarch.registry.card import Card
from scholarch.registry.models import Trained, register_backbone
from scholarch.registry.tracking import Tracker
from scholarch.storage.records import append_record

pytestmark = pytest.mark.service
History = Callable[[str, str | None, str], list[tuple[int, float]]]


class LosingProxy:
    """Passes connections on to a server; of some requests the answer is lost after they were served."""

    def __init__(self, port: int, share: float) -> None:
        self._target, self._share, self._random = port, share, random.Random(0)
        self.lost = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.uri = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, socket.create_connection(("127.0.0.1", self._target)) as upstream:
            threading.Thread(target=self._copy, args=(client, upstream), daemon=True).start()
            while answer := upstream.recv(1 << 20):
                if answer.startswith(b"HTTP/") and self._random.random() < self._share:
                    self.lost += 1
                    client.shutdown(socket.SHUT_RDWR)
                    return
                client.sendall(answer)

    @staticmethod
    def _copy(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 20):
                target.sendall(data)


def train(folder: Path, first: int, last: int, pause: float = 0.002) -> None:
    for step in range(first, last):
        numbers = {f"loss/{name}": step + 0.5 for name in ("total", "dino", "ibot")}
        append_record(folder / "metrics.jsonl", {"step": step, "time": time.time(), **numbers})
        time.sleep(pause)


def check_every_point_once(read: History, uri: str, run_id: str | None, steps: int) -> None:
    for name in ("total", "dino", "ibot"):
        points = read(uri, run_id, f"loss/{name}")
        assert Counter(points) == Counter((step, step + 0.5) for step in range(steps))


def test_a_server_that_is_late_and_dies_loses_and_doubles_no_point(
    server: MlflowServer,
    tmp_path: Path,
    history: History,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    tracker = Tracker.start(tmp_path, "outage", "first", every=0.02)
    tracker.recipe({"training": {"steps": 1500}})
    train(tmp_path, 0, 100)
    while "cannot be reached" not in caplog.text:
        time.sleep(0.1)
    assert (tracker.run_id, tracker.page) == (None, "")

    server.start()
    train(tmp_path, 100, 200)
    assert tracker.wait(120)
    assert re.fullmatch(rf"{server.uri}/#/experiments/\d+/runs/{tracker.run_id}", tracker.page)
    train(tmp_path, 200, 600)  # killed while requests are on their way
    server.kill()
    train(tmp_path, 600, 700)
    (tmp_path / "picture.png").write_bytes(b"picture")
    tracker.file(tmp_path / "picture.png", "pictures")
    while caplog.text.count("cannot be reached") < 2:
        time.sleep(0.1)
    server.start()
    train(tmp_path, 700, 1000)

    assert tracker.finish("FINISHED", timeout=120) == ""
    check_every_point_once(history, server.uri, tracker.run_id, 1000)
    assert [path.name for path in (server.folder / "artifacts").rglob("*.png")] == ["picture.png"]
    assert caplog.text.count("is back;") == 2


def test_lost_answers_double_nothing(
    server: MlflowServer, tmp_path: Path, history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    server.start()
    proxy = LosingProxy(server.port, share=0.3)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", proxy.uri)
    try:
        tracker = Tracker.start(tmp_path, "lost", "first", every=0.02, sample_every=0.05)
        tracker.recipe({"training": {"steps": 100}})
        steps = 0
        while proxy.lost < 5:
            train(tmp_path, steps, steps + 50)
            steps += 50
        assert tracker.finish("FINISHED", timeout=120) == ""
    finally:
        proxy.close()

    client = MlflowClient(server.uri)
    experiment = client.get_experiment_by_name("lost")
    assert len(client.search_runs([experiment.experiment_id])) == 1
    check_every_point_once(history, server.uri, tracker.run_id, steps)
    samples = [step for step, _ in history(server.uri, tracker.run_id, "system/disk_usage_percentage")]
    assert samples == list(range(len(samples)))
    run = client.get_run(tracker.run_id)
    assert (run.info.status, run.data.params) == ("FINISHED", {"training.steps": "100"})


def test_a_model_goes_through_the_server_and_back(
    server: MlflowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow
    import pandas as pd
    from mlflow import MlflowClient

    server.start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    monkeypatch.setattr(mlflow.tracking._tracking_service.utils, "_tracking_uri", None)
    tracker = Tracker.start(tmp_path, "models", "first", every=0.02)
    assert tracker.finish("FINISHED", timeout=120) == ""
    options = ViTOptions(size=None, embed_dim=16, depth=1, heads=2, ffn="mlp", ffn_ratio=2, patch=4)
    backbone = build_backbone(options)
    initialise(backbone, seed=0)
    picture = io.BytesIO()
    Image.new("RGB", (20, 30), "teal").save(picture, format="JPEG")

    registered = register_backbone(
        tmp_path,
        "served",
        Trained(
            options=options,
            weights=backbone.state_dict(),
            preprocessing=Preprocessing(size=8, mean=(0.5,) * 3, std=(0.2,) * 3),
            step=1,
            card=Card(recipe="demo/digits"),
            tags={},
        ),
    )

    client = MlflowClient(server.uri)
    loaded = mlflow.pyfunc.load_model("models:/served@candidate")
    assert registered.uri == "models:/served/1"
    assert loaded.predict(pd.DataFrame({"image": [picture.getvalue()]})).shape == (1, 16)
    assert client.get_model_version("served", "1").run_id == tracker.run_id
