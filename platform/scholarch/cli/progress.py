"""`progress.json`: where a run is, for those who watch it from outside."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from scholarch.storage.local import write_text

PROGRESS_NAME = "progress.json"
APART_SECONDS = 15.0


class Progress:
    """An Observer that keeps `<run>/progress.json` up to date, at most every APART_SECONDS.

    Its keys: `step`, `total`, `loss`, `images_per_second`, `eta_seconds`, `slowest_rank` (the one with the
    most work and waiting for data of its own), `world_size`, `checkpoint` (step of the newest; null: none),
    `mlflow_url` (the run's page, or empty) and `time` (seconds since 1970). What is not known yet is null.

    Args:
        run: the run's folder.
        total: steps of the run.
        world_size: workers.

    Attributes:
        committed: finished steps of the newest checkpoint; None: there is none.
        page: address of the run's page in MLflow; empty while nobody knows.
    """

    def __init__(self, run: Path, total: int, world_size: int) -> None:
        self.run, self.total, self.world_size = run, total, world_size
        self.committed: Callable[[], int | None] = lambda: None
        self.page: Callable[[], str] = lambda: ""
        self._record: Mapping[str, float] = {}
        self._written = -APART_SECONDS

    def recorded(self, record: Mapping[str, float]) -> None:
        self._record = record
        if time.monotonic() - self._written >= APART_SECONDS:
            self.write()

    def warned(self, message: str) -> None:
        """The console's business."""

    def write(self) -> None:
        """Writes the file now, of the last record."""
        record, saved = self._record, self.committed()
        slowest = record.get("slowest_rank")
        content: dict[str, Any] = {
            "step": int(record.get("step", saved or 0)),
            "total": self.total,
            "loss": record.get("loss/total"),
            "images_per_second": record.get("images_per_second"),
            "eta_seconds": record.get("eta_seconds"),
            "slowest_rank": None if slowest is None else int(slowest),
            "world_size": self.world_size,
            "checkpoint": saved,
            "mlflow_url": self.page(),
            "time": time.time(),
        }
        self.publish(content)
        self._written = time.monotonic()

    def publish(self, content: Mapping[str, Any]) -> None:
        """Puts the file's content where those who watch find it."""
        write_text(self.run / PROGRESS_NAME, json.dumps(content))
