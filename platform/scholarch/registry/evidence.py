"""Results of evaluations in MLflow, where `scholarch evaluate --suite` puts them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from scholarch.errors import UserError
from scholarch.registry.card import DESCRIPTION_LENGTH, with_suite
from scholarch.registry.client import connect, reason
from scholarch.storage.results import RESULT_NAME, SAMPLES_NAME, Result, read_result

EXPERIMENT = "evaluations"
SUITE_TAG, MODEL_TAG = "scholarch.suite", "scholarch.model"
_WRITES = 3


def put_on_card(uri: str, result: Result, page: str) -> str:
    """Adds a result to the card of the registered version that it is of, in place of the suite's last one.

    Args:
        uri: of the tracking server.
        page: where the result's pictures are.

    Returns:
        why it is not there, in words; empty where it is, or the result is of no registered version.
    """
    found = re.fullmatch(r"models:/([^/]+)/(\d+)", result.model.address)
    if found is None:
        return ""
    name, version = found.groups()
    try:
        client = connect(uri)
        # Two suites may end at once, and the server knows no comparison: look again after a write.
        for _ in range(_WRITES):
            card = client.get_model_version(name, version).description or ""
            wanted = with_suite(card, result.suite, result.metrics, page)[:DESCRIPTION_LENGTH]
            if wanted == card:
                return ""
            client.update_model_version(name, version, wanted)
    except Exception as error:
        return reason(error)
    return ""


def find_results(client: Any, name: str, version: str, suites: Sequence[str]) -> dict[str, Result]:
    """The newest whole result of each suite for a version, by suite; those that there are.

    Args:
        client: an MlflowClient.
        name: registered model.
    """
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        return {}
    found = {}
    for suite in suites:
        wanted = f"tags.`{MODEL_TAG}` = 'models:/{name}/{version}' and tags.`{SUITE_TAG}` = '{suite}'"
        runs = client.search_runs(
            [experiment.experiment_id],
            f"{wanted} and attributes.status = 'FINISHED'",
            order_by=["attributes.start_time DESC"],
            max_results=10,
        )
        for run in runs:
            result = _read(client, run.info.run_id)
            if result is not None:
                found[suite] = result
                break
    return found


def _read(client: Any, run_id: str) -> Result | None:
    """A run's result; None where its files are not whole."""
    names = {file.path for file in client.list_artifacts(run_id)}
    if not {RESULT_NAME, SAMPLES_NAME} <= names:
        return None
    with TemporaryDirectory(prefix="scholarch-") as folder:
        for name in (RESULT_NAME, SAMPLES_NAME):
            client.download_artifacts(run_id, name, folder)
        try:
            return read_result(str(Path(folder)))
        except UserError:
            return None
