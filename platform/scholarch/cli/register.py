"""`scholarch register`: brings a run to MLflow that ended while it could not be reached: record, report, version."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from scholarch.errors import EXIT_DONE

if TYPE_CHECKING:
    from scholarch.cli.sources import OpenRun
    from scholarch.registry.outbox import Data


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument(
        "run",
        help="a run, on this machine or under s3://; what MLflow lacks of it is sent, and its newest whole "
        "checkpoint registered",
    )


def run(arguments: argparse.Namespace) -> int:
    """Sends and registers; a repeat doubles nothing."""
    from scholarch.errors import UserError
    from scholarch.storage.mirror import copied
    from scholarch.storage.objects import is_s3

    if not is_s3(arguments.run):
        return _register(arguments.run, Path(arguments.run))
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        raise UserError(
            "a run in S3 is registered with an MLflow server",
            where="MLFLOW_TRACKING_URI",
            fix="set it to the server's address",
        )
    with tempfile.TemporaryDirectory(prefix="scholarch-") as folder:
        return _register(arguments.run, copied(arguments.run, Path(folder)))


def _register(address: str, folder: Path) -> int:
    from scholarch.cli.handover import register
    from scholarch.cli.plan import STATE
    from scholarch.cli.sources import open_run
    from scholarch.registry.outbox import Data
    from scholarch.storage.records import RECORDS_NAME, read_records

    opened = open_run(address)
    state = json.loads((folder / STATE).read_text())
    records = [r for r in read_records(folder / RECORDS_NAME) if r["step"] <= opened.step]
    data = [Data(**entry) for entry in state["data_sets"]]
    _send(address, folder, opened, data)
    done = register(folder, opened.recipe, opened.model, data, opened.step, records[-1] if records else {})
    print(
        f"{done.name} version {done.version}, alias candidate{'' if done.created else ' (was there before)'}"
    )
    return EXIT_DONE


def _send(address: str, folder: Path, opened: OpenRun, data: list[Data]) -> None:
    """The record and the report, as far as MLflow lacks them."""
    from scholarch.config.load import plain
    from scholarch.registry.delivery import KNOWN_FILE
    from scholarch.registry.late import send_record
    from scholarch.registry.outbox import Outbox
    from scholarch.storage.objects import is_s3, open_objects

    outbox, report = Outbox(data=list(data)), folder / "report"
    outbox.recipe(plain(opened.recipe))
    outbox.files = {f"report/{path.name}": path for path in sorted(report.glob("*")) if path.is_file()}
    outbox.status = "FINISHED" if opened.step >= opened.recipe.training.steps else "KILLED"

    def kept() -> None:
        """A repeat goes on with the same run of MLflow."""
        if is_s3(address):
            open_objects(address).write(KNOWN_FILE, (folder / KNOWN_FILE).read_bytes())

    experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME") or opened.recipe.name
    if refused := send_record(folder, experiment, outbox, kept):
        print(f"warning: MLflow refused {refused}", file=sys.stderr)
