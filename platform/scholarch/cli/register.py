"""`scholarch register`: a finished run's backbone into the registry, for a run that could not reach it."""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path

from scholarch.errors import EXIT_DONE


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument(
        "run", help="a run, on this machine or under s3://; its newest whole checkpoint is registered"
    )


def run(arguments: argparse.Namespace) -> int:
    """Registers; a repeat finds the version that is there."""
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
    done = register(folder, opened.recipe, opened.model, data, opened.step, records[-1] if records else {})
    print(
        f"{done.name} version {done.version}, alias candidate{'' if done.created else ' (was there before)'}"
    )
    return EXIT_DONE
