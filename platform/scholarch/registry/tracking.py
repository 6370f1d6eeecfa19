"""A run's record in MLflow, kept by a thread that training never waits for.

The trainer writes `metrics.jsonl` and says what else there is; the thread reads the file behind it
and sends both. A server that is down costs one warning: numbers stay in the file, the rest in memory,
and all of it is sent when the server is back, or when the run is resumed.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scholarch.registry.client import local_uri, reason, tracking_uri
from scholarch.registry.delivery import Delivery, Target, known_run
from scholarch.registry.machine import MachineSampler
from scholarch.registry.outbox import KEY_LENGTH, Data, Outbox, Status, cut
from scholarch.registry.redaction import redact, redact_text

__all__ = ["Data", "Status", "Tracker", "known_run", "local_uri", "tracking_uri"]

_logger = logging.getLogger(__name__)
_TAG_LENGTH = 8000  # MLflow's limit (mlflow/utils/validation.py)
_LONGEST_WAIT = 60.0


class Tracker:
    """One run in MLflow. Make it on rank 0 alone; every method but `wait` and `finish` returns at once."""

    def __init__(self, delivery: Delivery, outbox: Outbox, samples: MachineSampler, uri: str, every: float):
        self._delivery, self._outbox, self._samples = delivery, outbox, samples
        self._every = every
        self.uri = redact_text(uri)
        self._wake = threading.Event()
        self._passes = threading.Condition()
        self._begun = 0  # passes of the thread over what waits
        self._delivered = -1  # the latest pass that left nothing behind
        self._deadline: float | None = None
        self._trouble = ""
        self._warned = False
        self._thread = threading.Thread(target=self._work, name="tracker", daemon=True)

    @classmethod
    def start(
        cls,
        run_folder: Path,
        experiment: str,
        run_name: str,
        resume_id: str | None = None,
        *,
        every: float = 5.0,
        sample_every: float = 10.0,
    ) -> Tracker:
        """Begin to track a run.

        Args:
            run_folder: where `metrics.jsonl` is written; gets a folder `mlflow`.
            experiment: MLflow experiment, made when it is missing.
            run_name: name of the run.
            resume_id: the run to go on with (`known_run(run_folder)`); None: a new one.
            every: seconds between two looks at what there is to send.
            sample_every: seconds between two readings of the machine's load.

        Raises:
            UserError: if `MLFLOW_TRACKING_URI` is no address.
        """
        uri = tracking_uri(run_folder)
        outbox, samples = Outbox(), MachineSampler(run_folder, sample_every)
        delivery = Delivery(run_folder, Target(uri, experiment, run_name, resume_id), outbox, samples)
        tracker = cls(delivery, outbox, samples, uri, every)
        tracker._thread.start()
        return tracker

    @property
    def run_id(self) -> str | None:
        """Id of the MLflow run; None until the server has made it."""
        return self._delivery.run_id

    @property
    def page(self) -> str:
        """Address of the run's page, without credentials; empty until the server has answered, or without one."""
        return self._delivery.page

    @property
    def trouble(self) -> str:
        """Why nothing can be sent at the moment; empty when all is well."""
        return self._trouble

    def recipe(self, resolved: Mapping[str, Any]) -> None:
        """Log the resolved recipe: parameters (once for each run) and `recipe.yaml`; without secrets."""
        self._outbox.recipe(resolved)

    def tags(self, values: Mapping[str, Any]) -> None:
        """Set tags; a later value replaces an earlier one."""
        with self._outbox.lock:
            for key, value in redact(values).items():
                self._outbox.tags[str(key)[:KEY_LENGTH]] = cut(str(value), _TAG_LENGTH)

    def data(self, data: Data) -> None:
        """Log a data set as an input of the run."""
        with self._outbox.lock:
            self._outbox.data.append(data)

    def file(self, path: Path, folder: str = "") -> None:
        """Log a file under its own name in an artifact folder; the newest content when it is sent."""
        with self._outbox.lock:
            self._outbox.files[f"{folder}/{path.name}".lstrip("/")] = path

    def wait(self, timeout: float) -> bool:
        """Send now; whether everything said before this call has arrived within `timeout` seconds."""
        with self._passes:
            wanted = self._begun
            self._wake.set()
            return self._passes.wait_for(lambda: self._delivered > wanted, timeout)

    def finish(self, status: Status, timeout: float = 30.0) -> str:
        """End the run. Returns what could not be logged, in words; empty when all of it was."""
        with self._outbox.lock:
            self._outbox.status = status
        self._deadline = time.monotonic() + timeout
        self._wake.set()
        self._thread.join(timeout + 1)
        message = self._left_behind()
        if message:
            _logger.warning(message)
        return message

    def _left_behind(self) -> str:
        left = self._outbox.summary()
        if self._delivery.records_waiting:
            left.insert(0, "the last metrics")
        parts = []
        if left:
            reason = f": {self._trouble}" if self._trouble else ""
            parts.append(
                f"MLflow at {self.uri} did not take {', '.join(left)}{reason}. "
                "All of it is in the run folder; resuming the run, or `scholarch register` with it, sends it."
            )
        if self._delivery.refused:
            parts.append(f"MLflow at {self.uri} refused {'; '.join(self._delivery.refused[:3])}")
        return " ".join(parts)

    def _work(self) -> None:
        failures = 0
        while True:
            with self._passes:
                self._begun += 1
                current = self._begun
            self._wake.clear()
            closing = self._deadline is not None
            if not closing:
                self._samples.sample()
            try:
                self._delivery.send()
            except Exception as error:
                failures += 1
                self._note_trouble(error, failures)
            else:
                failures = 0
                self._note_success()
                with self._passes:
                    self._delivered = current
                    self._passes.notify_all()
                if closing:
                    return
            if self._deadline is not None and time.monotonic() > self._deadline:
                return
            self._wake.wait(self._pause(failures))

    def _pause(self, failures: int) -> float:
        if not failures:
            return self._every
        pause = min(2.0 ** (failures - 1), _LONGEST_WAIT)
        return pause if self._deadline is None else min(pause, 1.0)

    def _note_trouble(self, error: Exception, failures: int) -> None:
        self._trouble = reason(error)
        if failures == 3 and not self._warned:
            self._warned = True
            _logger.warning(
                "MLflow at %s cannot be reached; training goes on, and what is to be logged is sent "
                "when it is back. %s",
                self.uri,
                self._trouble,
            )

    def _note_success(self) -> None:
        self._trouble = ""
        if self._warned:
            self._warned = False
            _logger.warning("MLflow at %s is back; what had waited was sent", self.uri)
