"""`scholarch register`: a finished run's backbone into the registry, for a run that could not reach it."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from scholarch.errors import EXIT_DONE


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument("run", type=Path, help="a run's folder; its newest whole checkpoint is registered")


def run(arguments: argparse.Namespace) -> int:
    """Registers; a repeat finds the version that is there."""
    from scholarch.cli.handover import register
    from scholarch.cli.plan import STATE
    from scholarch.cli.sources import open_run
    from scholarch.registry.outbox import Data
    from scholarch.storage.records import RECORDS_NAME, read_records

    folder: Path = arguments.run
    opened = open_run(folder)
    state = json.loads((folder / STATE).read_text())
    records = [r for r in read_records(folder / RECORDS_NAME) if r["step"] <= opened.step]
    data = [Data(**entry) for entry in state["data_sets"]]
    done = register(folder, opened.recipe, opened.model, data, opened.step, records[-1] if records else {})
    print(
        f"{done.name} version {done.version}, alias candidate{'' if done.created else ' (was there before)'}"
    )
    return EXIT_DONE
