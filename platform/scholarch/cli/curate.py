"""`scholarch curate`: from pools of pictures to a training set, step by step."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument("--recipe", required=True, metavar="FILE", help="a YAML file: see docs/curation.md")
    parser.add_argument(
        "--run",
        default="",
        metavar="FOLDER",
        help="where results go, and are found again: a folder, or s3://BUCKET/PREFIX (default: runs/NAME)",
    )
    parser.add_argument(
        "--ray", default="", metavar="ADDRESS", help="of a Ray cluster, or auto (default: begin one here)"
    )
    parser.add_argument(
        "--workers", type=int, metavar="N", help="cores of one that begins here (default: all)"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="key.path=value", help="such as sample.pictures=10000"
    )


def run(arguments: argparse.Namespace) -> int:
    """Curates; what a former call has finished is not done again."""
    from scholarch.cli.curating import carry_out
    from scholarch.curation.recipe import load_curation
    from scholarch.errors import EXIT_DONE, UserError

    if arguments.workers is not None and arguments.workers < 1:
        raise UserError(f"{arguments.workers} workers cannot work", where="--workers", fix="1 or more")
    recipe = load_curation(arguments.recipe, arguments.overrides)
    mixture = carry_out(recipe, arguments.run or f"runs/{recipe.name}", arguments.ray, arguments.workers)
    print(f"next: scholarch pretrain data={mixture}")
    return EXIT_DONE
