"""What an evaluation found, as a document that people, gates and MLflow read.

    result.json   model, suite, data, metrics; written last: without it there is no result
    samples.npz   by name of the metric, its value for each sample [n] float64
    pictures/     PNG files

A metric that has samples is their mean: a paired bootstrap over samples of two models may draw from them.
Two results are of the same data if `data` is equal; samples of the same metric then stand in the same order.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from scholarch.errors import UserError
from scholarch.storage.objects import open_objects

FORMAT = 1
RESULT_NAME = "result.json"
SAMPLES_NAME = "samples.npz"
PICTURES = "pictures"


@dataclass(frozen=True, kw_only=True)
class EvaluatedModel:
    """What was evaluated.

    Attributes:
        address: what it was found to be: `models:/NAME/VERSION`, a checkpoint, an export or a file.
        origin: the same in words.
        sha256: of its weights' file, or of the manifest of its checkpoint.
    """

    address: str
    origin: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class EvaluatedData:
    """What it was evaluated on.

    Attributes:
        address: as the suite, or who called it, has it.
        fingerprint: digest over both splits of the names and sizes of all files, annotations among them
            (generated data: of the pixels). Equal when samples and their order are.
        samples: that were read, by split.
        broken: that could not be read and were left out, by split.
    """

    address: str
    fingerprint: str
    samples: Mapping[str, int]
    broken: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class Result:
    """One model, one suite.

    Attributes:
        model: what was evaluated.
        suite: its name.
        evaluations: of the suite as it was resolved, by name, with all options.
        data: by the suite's name for it.
        metrics: by `EVALUATION/METRIC`; NaN where a metric has no value.
        samples: by the same names, [n] float64; not every metric has them.
        pictures: PNG files by name, such as `knn-confusion.png`.
        code: version of scholarch.
    """

    model: EvaluatedModel
    suite: str
    evaluations: Mapping[str, Mapping[str, Any]]
    data: Mapping[str, EvaluatedData]
    metrics: Mapping[str, float]
    samples: Mapping[str, np.ndarray] = field(default_factory=dict)
    pictures: Mapping[str, bytes] = field(default_factory=dict)
    code: str


def write_result(address: str, result: Result) -> None:
    """Writes a result into a folder or under an `s3://` address; whole or not at all.

    Raises:
        UserError, Unreachable: if it cannot be written.
    """
    objects = open_objects(address)
    objects.remove(RESULT_NAME)
    for name, data in result.pictures.items():
        objects.write(f"{PICTURES}/{name}", data)
    file = io.BytesIO()
    np.savez_compressed(file, **{n: np.asarray(v, dtype=np.float64) for n, v in result.samples.items()})  # type: ignore[arg-type]
    objects.write(SAMPLES_NAME, file.getvalue())
    document = {
        "format": FORMAT,
        "model": asdict(result.model),
        "suite": result.suite,
        "evaluations": {name: dict(options) for name, options in result.evaluations.items()},
        "data": {name: asdict(data) for name, data in result.data.items()},
        # NaN is no JSON: null stands for it.
        "metrics": {n: None if math.isnan(v) else float(v) for n, v in result.metrics.items()},
        "samples": {"sha256": hashlib.sha256(file.getvalue()).hexdigest(), "metrics": sorted(result.samples)},
        "pictures": sorted(result.pictures),
        "code": result.code,
    }
    objects.write(RESULT_NAME, (json.dumps(document, indent=1) + "\n").encode())


def read_result(address: str, *, pictures: bool = False) -> Result:
    """The result in a folder or under an `s3://` address.

    Args:
        address: what `write_result` was given.
        pictures: whether the pictures are read too.

    Raises:
        UserError: if there is none, or it is damaged or of a newer format.
        Unreachable: if the store does not answer.
    """
    objects = open_objects(address)
    try:
        document = json.loads(objects.read(RESULT_NAME))
        if document["format"] != FORMAT:
            raise UserError(
                f"is of format {document['format']}, this version reads {FORMAT}",
                where=f"{address}/{RESULT_NAME}",
                fix="install a newer scholarch",
            )
        arrays = objects.read(SAMPLES_NAME)
        if hashlib.sha256(arrays).hexdigest() != document["samples"]["sha256"]:
            raise UserError(
                "is not what was written with result.json",
                where=f"{address}/{SAMPLES_NAME}",
                fix="evaluate again",
            )
        shown = {n: objects.read(f"{PICTURES}/{n}") for n in document["pictures"]} if pictures else {}
    except FileNotFoundError:
        raise UserError(
            "holds no result", where=address, fix="run `scholarch evaluate MODEL --suite NAME --to` it"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"is no result: {error!r}", where=f"{address}/{RESULT_NAME}", fix="evaluate again"
        ) from error
    with np.load(io.BytesIO(arrays), allow_pickle=False) as loaded:
        samples = {name: loaded[name] for name in loaded.files}
    return Result(
        model=EvaluatedModel(**document["model"]),
        suite=document["suite"],
        evaluations=document["evaluations"],
        data={name: EvaluatedData(**data) for name, data in document["data"].items()},
        metrics={n: math.nan if v is None else v for n, v in document["metrics"].items()},
        samples=samples,
        pictures=shown,
        code=document["code"],
    )
