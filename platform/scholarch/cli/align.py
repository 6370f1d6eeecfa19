"""`scholarch align`: a locked backbone and a text tower, which learns to name what the backbone sees."""

from __future__ import annotations

import argparse
import json

from scholarch.cli import pretrain

DEFAULT_RECIPE = "dinov3/text"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    pretrain.add_arguments(parser, default=DEFAULT_RECIPE)
    parser.add_argument(
        "--backbone",
        metavar="MODEL",
        help="what is aligned: a run, an export or a file of weights (also under s3://), or models:/NAME@ALIAS; "
        "the same as init_from.checkpoint=MODEL",
    )


def run(arguments: argparse.Namespace) -> int:
    """Trains; gives the exit code."""
    if arguments.backbone is not None:
        arguments.overrides = [
            f"init_from={json.dumps({'checkpoint': arguments.backbone, 'what': ['backbone']})}",
            *arguments.overrides,
        ]
    if not arguments.recipe and not arguments.resume:
        arguments.recipe = [DEFAULT_RECIPE]
    return pretrain.run(arguments)
