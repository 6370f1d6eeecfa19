"""Brings a run's numbers and files to MLflow, so that a step can be repeated after any failure.

Every step here may be cut off by a server that dies, before or after it did what was asked. So a run
is created under a key of our own by which it is found again, and of each metric the last step that
the server holds is read from it before anything is sent again: no point is lost or doubled.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

from scholarch.registry.client import artifacts_of, connect, missing, reason, refused
from scholarch.registry.machine import MachineSampler
from scholarch.registry.outbox import Data, Outbox
from scholarch.registry.redaction import redact_text
from scholarch.storage.local import write_text
from scholarch.storage.records import RECORDS_NAME, Follower, Record

KEY_TAG = "scholarch.key"
KNOWN_FILE = "mlflow/run.json"
_POINTS_AT_ONCE = 1000  # MLflow's limit for one request
_LINES_AT_ONCE = 500

T = TypeVar("T")


class Target(NamedTuple):
    """Where a run is tracked.

    Attributes:
        uri: tracking URI, with its password if it has one.
        experiment: name of the experiment, made when it is missing.
        run_name: name of the run.
        resume_id: the run to go on with, or None for a new one.
    """

    uri: str
    experiment: str
    run_name: str
    resume_id: str | None


class Delivery:
    """One run's way to MLflow; used by one thread."""

    def __init__(self, folder: Path, target: Target, outbox: Outbox, samples: MachineSampler) -> None:
        self._folder, self._target, self._outbox, self._samples = folder, target, outbox, samples
        self._records = Follower(folder / RECORDS_NAME)
        self._client: Any = None
        self._read = False  # whether the next two are what the server holds
        self._opened = False
        self._marks: dict[str, int] = {}  # last step by metric
        self._params: dict[str, str] = {}
        self._key = uuid.uuid4().hex
        self.run_id: str | None = target.resume_id
        self.page = ""
        self.refused: list[str] = []

    def send(self) -> None:
        """Send all that waits; raises whatever MLflow raises when it cannot be reached."""
        if self._client is None:
            self._client = connect(self._target.uri)
        if self.run_id is None:
            self.run_id = self._create_run()
        if not self._read:
            self._read_run()
        self._send_values()
        self._send_records()
        self._send_samples()
        self._send_files()
        self._send_status()

    @property
    def records_waiting(self) -> bool:
        """Whether `metrics.jsonl` has lines that were not sent."""
        return not self._records.at_end

    def _create_run(self) -> str:
        from mlflow.tracking.context.registry import resolve_tags

        experiment = self._experiment()
        # A creation whose answer was lost is found by its key.
        found = self._client.search_runs([experiment], f"tags.`{KEY_TAG}` = '{self._key}'", max_results=1)
        if found:
            run_id = str(found[0].info.run_id)
        else:
            tags = {**resolve_tags(), KEY_TAG: self._key}
            run = self._client.create_run(experiment, run_name=self._target.run_name, tags=tags)
            run_id = str(run.info.run_id)
        known = {"run_id": run_id, "tracking_uri": redact_text(self._target.uri)}
        (self._folder / KNOWN_FILE).parent.mkdir(exist_ok=True)
        write_text(self._folder / KNOWN_FILE, json.dumps(known, indent=2) + "\n")
        return run_id

    def _experiment(self) -> str:
        name = self._target.experiment
        experiment = self._client.get_experiment_by_name(name)
        if experiment is not None:
            return str(experiment.experiment_id)
        place = artifacts_of(self._target.uri)
        # Its page then opens with training runs, not with what language models need.
        kind = {"mlflow.experimentKind": "custom_model_development"}
        return str(self._client.create_experiment(name, artifact_location=place, tags=kind))

    def _read_run(self) -> None:
        try:
            run = self._client.get_run(self.run_id)
        except Exception as error:
            if not missing(error):
                raise
            run = None
        if run is None or run.info.lifecycle_stage == "deleted":
            # Another server than before, or a run that somebody removed: metrics.jsonl has it all.
            self.run_id = self._create_run()
            run = self._client.get_run(self.run_id)
        self.page = _page(self._target.uri, run.info)
        self._params = dict(run.data.params)
        # The latest value of a metric, as MLflow means it, is the one with the highest step.
        self._marks = {metric.key: metric.step for metric in run.data.to_proto().metrics}
        if not self._opened and run.info.status != "RUNNING":
            self._client.update_run(self.run_id, status="RUNNING")
        self._read = self._opened = True

    def _send_values(self) -> None:
        from mlflow.entities import Param, RunTag

        params = _taken(self._outbox, self._outbox.params)
        # Parameters are written once: what a resumed run has changed becomes a tag.
        changed = {f"changed.{k}"[:250]: v for k, v in params.items() if self._params.get(k, v) != v}
        new = [Param(key, value) for key, value in params.items() if key not in self._params]
        for start in range(0, len(new), 100):
            self._unless_refused("parameters", self._log, params=new[start : start + 100])
        self._params |= {param.key: param.value for param in new}
        _forget(self._outbox, self._outbox.params, params)
        tags = _taken(self._outbox, self._outbox.tags)
        every = [RunTag(key, value) for key, value in {**changed, **tags}.items()]
        for start in range(0, len(every), 100):
            self._unless_refused("tags", self._log, tags=every[start : start + 100])
        _forget(self._outbox, self._outbox.tags, tags)
        while self._outbox.data:
            self._unless_refused("the data set", self._log_data, self._outbox.data[0])
            self._outbox.data.pop(0)

    def _log(self, **what: Any) -> None:
        self._client.log_batch(self.run_id, synchronous=True, **what)

    def _log_data(self, data: Data) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        kind, source = _source(data.source)
        entity = Dataset(
            name=data.name,
            digest=data.fingerprint[:36],
            source_type=kind,
            source=json.dumps(source),
            profile=json.dumps(data.counts),
        )
        tags = [InputTag("mlflow.data.context", data.context)]
        self._client.log_inputs(self.run_id, datasets=[DatasetInput(entity, tags)])

    def _send_records(self) -> None:
        while records := self._records.read(_LINES_AT_ONCE):
            for batch in _batches(map(self._points, records)):
                self._send_points(batch)
            self._records.advance()
        self._records.advance()

    def _send_samples(self) -> None:
        steps = (step for key, step in self._marks.items() if key.startswith("system/"))
        number = 1 + max(steps, default=-1)
        while self._samples.pending:
            sample = self._samples.pending[0]
            self._send_points(self._points({**sample.values, "step": number, "time": sample.time}))
            self._samples.pending.popleft()
            number += 1

    def _points(self, record: Record) -> list[Any]:
        """A record's metrics, less those the server holds or is about to be sent."""
        from mlflow.entities import Metric

        step, points = record["step"], []
        timestamp = int(1000 * record.get("time", time.time()))
        for key, value in record.items():
            name = metric_name(key)
            if key in ("step", "time") or not isinstance(value, (int, float)):
                continue
            if step > self._marks.get(name, -1):
                self._marks[name] = step
                points.append(Metric(name, float(value), timestamp, step))
        return points

    def _send_points(self, points: list[Any]) -> None:
        try:
            for start in range(0, len(points), _POINTS_AT_ONCE):
                part = points[start : start + _POINTS_AT_ONCE]
                self._unless_refused("metrics", self._log, metrics=part)
        except Exception:
            self._read = False  # nobody knows what the server took: ask it
            raise

    def _send_files(self) -> None:
        for name, text in _taken(self._outbox, self._outbox.texts).items():
            self._unless_refused(name, self._client.log_text, self.run_id, text, name)
            _forget(self._outbox, self._outbox.texts, {name: text})
        for name, path in _taken(self._outbox, self._outbox.files).items():
            self._unless_refused(name, self._log_file, name, path)
            _forget(self._outbox, self._outbox.files, {name: path})

    def _log_file(self, name: str, path: Path) -> None:
        folder = str(Path(name).parent)
        self._client.log_artifact(self.run_id, str(path), None if folder == "." else folder)

    def _send_status(self) -> None:
        if self._outbox.status is not None:
            self._client.set_terminated(self.run_id, self._outbox.status)
            self._outbox.status = None

    def _unless_refused(self, what: str, operation: Callable[..., None], *args: Any, **named: Any) -> None:
        """Do it; a request that can never succeed is noted and passed over."""
        try:
            operation(*args, **named)
        except FileNotFoundError as error:
            self.refused.append(f"{what}: no such file {error.filename}")
        except Exception as error:
            if not refused(error):
                raise
            self.refused.append(f"{what}: {reason(error)}")


def _batches(records: Iterable[list[Any]]) -> Iterator[list[Any]]:
    # A record is not split over requests, so that its points arrive together.
    batch: list[Any] = []
    for points in records:
        if batch and len(batch) + len(points) > _POINTS_AT_ONCE:
            yield batch
            batch = []
        batch = batch + points
    if batch:
        yield batch


def known_run(folder: Path) -> str | None:
    """Id of the MLflow run that a run folder was tracked under, or None."""
    path = folder / KNOWN_FILE
    return str(json.loads(path.read_text())["run_id"]) if path.exists() else None


def _page(uri: str, info: Any) -> str:
    """Where a browser shows the run; empty where no server does."""
    if not uri.startswith(("http://", "https://")):
        return ""
    where = urlsplit(uri)
    server = where._replace(netloc=where.netloc.rpartition("@")[2]).geturl().rstrip("/")
    return f"{server}/#/experiments/{info.experiment_id}/runs/{info.run_id}"


def metric_name(key: str) -> str:
    """`key` with characters that MLflow does not take replaced by an underscore."""
    return "".join(c if c.isalnum() or c in "_-. :/" else "_" for c in key)


def _source(address: str) -> tuple[str, dict[str, Any]]:
    """Kind and JSON of an address, as `mlflow.data.get_source` understands them."""
    scheme, separator, _ = address.partition("://")
    if address.startswith("builtin:"):
        return "code", {"tags": {"mlflow.source.name": address}}
    if not separator:
        return "local", {"uri": str(Path(address).absolute())}
    if scheme in ("http", "https"):
        return "http", {"url": redact_text(address)}
    return scheme, {"uri": redact_text(address)}


def _taken(outbox: Outbox, waiting: dict[str, T]) -> dict[str, T]:
    with outbox.lock:
        return dict(waiting)


def _forget(outbox: Outbox, waiting: dict[str, T], sent: dict[str, T]) -> None:
    with outbox.lock:
        for name, value in sent.items():
            if waiting.get(name) is value:  # not replaced meanwhile
                del waiting[name]
