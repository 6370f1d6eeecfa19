"""`scholarch export`: a backbone for use outside."""

from __future__ import annotations

import argparse
from pathlib import Path

from scholarch.errors import EXIT_DONE


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument("model", help="a run's folder, an export folder, or models:/NAME@ALIAS")
    parser.add_argument("--to", type=Path, required=True, metavar="FOLDER", help="an empty or new folder")


def run(arguments: argparse.Namespace) -> int:
    """Writes the files and says how to load them."""
    from scholarch.cli.handover import how_to_load, write_export
    from scholarch.cli.sources import open_model
    from scholarch.errors import UserError
    from scholarch.storage.local import check_writable

    folder: Path = arguments.to
    model = open_model(arguments.model)
    check_writable(folder)
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError("is not empty", where=str(folder), fix="name a new folder with --to")
    write_export(model, folder)
    print(how_to_load(folder))
    return EXIT_DONE
