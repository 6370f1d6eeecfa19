"""`scholarch align`: a locked backbone and a text tower, which learns to name what the backbone sees."""

from __future__ import annotations

import argparse

from scholarch.cli import pretrain
from scholarch.config.command import ALIGN_RECIPE, backbone_override


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    pretrain.add_arguments(parser, default=ALIGN_RECIPE)
    parser.add_argument(
        "--backbone",
        metavar="MODEL",
        help="what is aligned: a run, an export or a file of weights (also under s3://), or models:/NAME@ALIAS; "
        "the same as init_from.checkpoint=MODEL",
    )


def run(arguments: argparse.Namespace) -> int:
    """Trains; gives the exit code."""
    if arguments.backbone is not None:
        arguments.overrides = [backbone_override(arguments.backbone), *arguments.overrides]
    if not arguments.recipe and not arguments.resume:
        arguments.recipe = [ALIGN_RECIPE]
    return pretrain.run(arguments)
