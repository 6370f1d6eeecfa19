"""`scholarch export`: a backbone for use outside."""

from __future__ import annotations

import argparse
from pathlib import Path

from scholarch.errors import EXIT_DONE


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument(
        "model", help="a run, an export folder (both also under s3://), or models:/NAME@ALIAS"
    )
    parser.add_argument("--to", type=Path, required=True, metavar="FOLDER", help="an empty or new folder")


def run(arguments: argparse.Namespace) -> int:
    """Writes the files and says how to load them."""
    from scholarch.cli.handover import export_to
    from scholarch.cli.sources import open_model

    print(export_to(open_model(arguments.model), arguments.to))
    return EXIT_DONE
