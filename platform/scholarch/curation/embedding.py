"""Pictures as vectors in Parquet: one file for each part of a data set, written by the worker that embeds it."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
import torch

from scholarch.curation.duplicates import difference_hashes
from scholarch.curation.stages import Stage
from scholarch.curation.vectors import FileVectors, spans
from scholarch.curation.workers import Engine
from scholarch.data.evaluation import evaluation_batches
from scholarch.data.manifest import FilePart
from scholarch.data.source import Source
from scholarch.data.views import EvaluationView
from scholarch.errors import UserError
from scholarch.models.features import Backbone, Views
from scholarch.storage.local import atomic
from scholarch.storage.mirror import scratch
from scholarch.storage.objects import Objects, joined, open_objects

COLUMNS = ("number", "bytes", "label", "hash")


@dataclass(frozen=True)
class Embedder:
    """What makes vectors of pictures.

    Attributes:
        name: what the model was found to be.
        digest: SHA-256 of its weights.
        backbone: in evaluation mode, on the CPU.
        view: of each picture.
        precision, stored, batch: as the recipe has them.
    """

    name: str
    digest: str
    backbone: Backbone
    view: EvaluationView
    precision: str
    stored: str
    batch: int


@dataclass(frozen=True)
class _Part:
    """A file of a data set's vectors: pictures start..stop-1."""

    number: int
    start: int
    stop: int

    @property
    def file(self) -> str:
        return f"part-{self.number:06d}.parquet"


class _Worker:
    """Holds the model and embeds one part after the other."""

    def __init__(self, embedder: Embedder, source: Source, target: Objects, folder: str) -> None:
        self.embedder, self.source, self.target, self.folder = embedder, source, target, folder
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.backbone = embedder.backbone.eval().to(self.device)

    @torch.inference_mode()
    def __call__(self, part: _Part) -> dict[str, Any]:
        columns: dict[str, list[np.ndarray]] = {name: [] for name in (*COLUMNS, "vector")}
        broken: list[str] = []
        numbers = np.arange(part.start, part.stop)
        sizes = file_sizes(self.source)
        precision = self.embedder.precision
        half = precision == "bf16" or (precision == "auto" and self.device.type == "cuda")
        for batch in evaluation_batches(self.source, numbers, self.embedder.view, self.embedder.batch):
            broken += batch.broken
            if not len(batch.sample_ids):
                continue
            pictures = batch.pictures.to(self.device)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
                (features,) = self.backbone([Views(pictures)])
            vectors = features.cls.float().cpu().numpy()
            fine = np.isfinite(vectors).all(axis=1)
            ids = batch.sample_ids.numpy()
            broken += [f"{self.source.name(i)}: its features are not finite" for i in ids[~fine].tolist()]
            ids = ids[fine]
            columns["number"].append(ids)
            columns["bytes"].append(sizes[ids] if sizes is not None else np.zeros(len(ids), np.int64))
            columns["label"].append(batch.labels.numpy()[fine])
            columns["hash"].append(difference_hashes(batch.pictures)[fine])
            columns["vector"].append(vectors[fine])
        data = _parquet(columns, self.embedder)
        self.target.write(f"{self.folder}/{part.file}", data)
        told = {"broken": broken, "rows": sum(map(len, columns["number"])), "bytes": len(data)}
        return {"part": part.number, "sha256": hashlib.sha256(data).hexdigest(), **told}


def _parquet(columns: dict[str, list[np.ndarray]], embedder: Embedder) -> bytes:
    kinds = {"number": np.int64, "bytes": np.int64, "label": np.int32, "hash": np.uint64}
    table = {
        name: pa.array(np.concatenate([np.empty(0, kind), *columns[name]]).astype(kind))
        for name, kind in kinds.items()
    }
    width = embedder.backbone.width
    values = np.concatenate([np.empty((0, width)), *columns["vector"]]).astype(embedder.stored)
    table["vector"] = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), width)
    file = io.BytesIO()
    pq.write_table(pa.table(table), file, compression="zstd", use_dictionary=False)
    return file.getvalue()


def file_sizes(source: Source) -> np.ndarray | None:
    """Bytes of each picture's file, where the source knows."""
    found: np.ndarray | None = getattr(source, "sizes", None)
    return found


def embed(
    run: Objects, step: str, source: Source, embedder: Embedder, part: int, engine: Engine
) -> tuple[Stage, bool]:
    """Embeds all pictures of a data set, or what is left of them; gives the stage, and whether it was done before.

    Raises:
        UserError: if no picture can be read.
    """
    parameters = {
        "model": embedder.digest,
        "size": embedder.view.size,
        "precision": embedder.precision,
        "stored": embedder.stored,
        "part": part,
    }
    stage = Stage(run, step, {"data": source.fingerprint()}, parameters)
    if stage.finished() is not None:
        return stage, True
    parts = [_Part(number, *span) for number, span in enumerate(spans(len(source), part))]
    done: dict[int, dict[str, Any]] = {}
    for one in parts:
        if (kept := stage.kept(f"part-{one.number:06d}")) is not None:
            done[one.number] = {key: value.tolist() for key, value in kept.items()}
    todo = [one for one in parts if one.number not in done]
    options = {"embedder": embedder, "source": source, "target": run, "folder": stage.folder}
    for told in engine.stream(_Worker, options, todo):
        done[told["part"]] = told
        stage.keep(f"part-{told['part']:06d}", **{key: np.array(value) for key, value in told.items()})
    broken = [entry for number in sorted(done) for entry in done[number]["broken"]]
    rows = sum(told["rows"] for told in done.values())
    if not rows:
        raise UserError(f"none of {len(source):,} pictures can be read: {'; '.join(broken[:3])}", where=step)
    for one in parts:
        told = done[one.number]
        stage.add(FilePart(name=one.file, bytes=told["bytes"], sha256=told["sha256"]))
    stage.save(
        "parts", rows=np.array([done[one.number]["rows"] for one in parts]), width=embedder.backbone.width
    )
    stage.commit({"pictures in": len(source), "broken": len(broken), "pictures out": rows}, broken)
    return stage, False


@dataclass(frozen=True)
class StoredVectors:
    """Vectors of some data sets, one after the other, in Parquet files under an address.

    Whoever reads them brings the files to its machine once, and maps them there.

    Attributes:
        run: address of the run.
        files: (name, SHA-256) of each.
        rows: of each file.
        width: d.
    """

    run: str
    files: tuple[tuple[str, str], ...]
    rows: tuple[int, ...]
    width: int

    @classmethod
    def of(cls, run: Objects, stages: Sequence[Stage]) -> StoredVectors:
        """The vectors that finished stages hold."""
        files: list[tuple[str, str]] = []
        rows: list[int] = []
        width = 0
        for stage in stages:
            result, told = stage.finished(), stage.load("parts")
            assert result is not None
            embedded = [part for part in result.files if part.name.endswith(".parquet")]
            files += [(f"{stage.folder}/{part.name}", part.sha256) for part in embedded]
            rows += told["rows"].tolist()
            width = int(told["width"])
        return cls(run.address, tuple(files), tuple(rows), width)

    @property
    def shape(self) -> tuple[int, int]:
        return sum(self.rows), self.width

    def read(self, start: int, stop: int) -> np.ndarray:
        return self._mapped.read(start, stop)

    def take(self, numbers: np.ndarray) -> np.ndarray:
        return self._mapped.take(numbers)

    def columns(self) -> dict[str, np.ndarray]:
        """The other columns, of all rows."""
        tables = [self._table(name, digest, COLUMNS) for name, digest in self.files]
        return {name: np.concatenate([table[name].to_numpy() for table in tables]) for name in COLUMNS}

    @cached_property
    def _mapped(self) -> FileVectors:
        paths = [self._local(name, digest) for name, digest in self.files]
        return FileVectors.of(paths)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_mapped"}

    def _local(self, name: str, digest: str) -> Path:
        path = scratch(self.run) / "vectors" / f"{digest}.npy"
        if not path.exists():
            values = self._table(name, digest, ("vector",))["vector"].combine_chunks()
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic(path) as file:
                np.save(file, values.flatten().to_numpy(zero_copy_only=False).reshape(-1, self.width))
        return path

    def _table(self, name: str, digest: str, columns: Sequence[str]) -> pa.Table:
        data = open_objects(self.run).read(name)
        if hashlib.sha256(data).hexdigest() != digest:
            raise UserError(
                "is not what was written",
                where=joined(self.run, name),
                fix="remove its folder and give the command again",
            )
        return pq.read_table(io.BytesIO(data), columns=list(columns))
