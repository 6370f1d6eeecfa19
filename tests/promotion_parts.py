"""Policies and results for tests of promotion."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from scholarch.config.promotion import PolicySpec
from scholarch.registry.decision import Contender
from scholarch.registry.evidence import EXPERIMENT, MODEL_TAG, SUITE_TAG
from scholarch.storage.results import EvaluatedData, EvaluatedModel, Result, write_result

FINGERPRINT = "ab" * 16
SUITES = [{"name": "digits", "data": {"digits": FINGERPRINT}}]
GATE = {"suite": "digits", "metric": "knn/top1"}


def a_policy(*gates: dict[str, Any], model: str = "dino", **more: Any) -> PolicySpec:
    found = [{**GATE, **gate} for gate in gates or ({"bound": 0.8},)]
    return PolicySpec.read({"model": model, "suites": SUITES, "gates": found, **more}, "test")


def data(fingerprint: str = FINGERPRINT) -> EvaluatedData:
    return EvaluatedData(address="builtin:digits", fingerprint=fingerprint, samples={"test": 4}, broken={})


def a_result(version: str, value: float | np.ndarray, name: str = "dino", **changes: Any) -> Result:
    """A number alone has no samples."""
    samples = {"knn/top1": value} if isinstance(value, np.ndarray) else {}
    address = f"models:/{name}/{version}"
    found = {
        "model": EvaluatedModel(address=address, origin=address, sha256="0" * 64),
        "suite": "digits",
        "evaluations": {"knn": {"neighbours": 20}},
        "data": {"digits": data()},
        "metrics": {"knn/top1": float(np.mean(value))},
        "samples": samples,
        "code": "0",
    }
    return Result(**found | changes)  # type: ignore[arg-type]


def contender(version: str, value: float | np.ndarray = 0.9, **changes: Any) -> Contender:
    known = {key: changes.pop(key) for key in ("approved", "withdrawn") if key in changes}
    return Contender(version, {"digits": a_result(version, value, **changes)}, **known)


def send_result(client: Any, folder: Path, result: Result) -> None:
    """What `scholarch evaluate --suite` leaves in MLflow."""
    write_result(str(folder), result)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    place = experiment.experiment_id if experiment else client.create_experiment(EXPERIMENT)
    run_id = client.create_run(
        place, tags={MODEL_TAG: result.model.address, SUITE_TAG: result.suite}
    ).info.run_id
    client.log_artifacts(run_id, str(folder))
    client.set_terminated(run_id)
