"""`scholarch pretrain`: from a recipe and pictures to a registered model and a report."""

from __future__ import annotations

import argparse
import os

DEFAULT_RECIPE = "demo/pictures"


def add_arguments(parser: argparse.ArgumentParser, *, default: str = DEFAULT_RECIPE) -> None:
    """Arguments of the verb.

    Args:
        default: recipe that is carried out when none is named.
    """
    parser.add_argument(
        "--recipe",
        metavar="NAME",
        action="append",
        default=[],
        help=f"a name of `scholarch recipes` or a YAML file (default: {default}); given several times: "
        "stages, each of which begins from the last checkpoint of the one before",
    )
    parser.add_argument(
        "--run",
        default="",
        metavar="FOLDER",
        help="where everything of the run goes: a folder, or s3://BUCKET/PREFIX (default: runs/NAME-TIME)",
    )
    parser.add_argument(
        "--scale",
        choices=("full", "tiny"),
        default="full",
        help="tiny: shrink everything, so that each phase of the recipe runs on two cores in under a minute",
    )
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in --run")
    parser.add_argument(
        "overrides", nargs="*", metavar="key.path=value", help="such as data=FOLDER or training.steps=1000"
    )


def run(arguments: argparse.Namespace) -> int:
    """Trains; gives the exit code."""
    from scholarch.cli.plan import Request
    from scholarch.cli.remote import at_hand
    from scholarch.cli.session import Session
    from scholarch.cli.stages import is_chain, run_stages
    from scholarch.training.distributed import world

    # An elastic restart goes on where the last commit was.
    restarted = os.environ.get("SCHOLARCH_RESTART") == "1"
    request = Request(
        recipe=arguments.recipe[0] if len(arguments.recipe) == 1 else None,
        overrides=tuple(arguments.overrides),
        address=arguments.run,
        resume=arguments.resume,
        restarted=restarted,
        scale=arguments.scale,
    )
    with world() as processes, at_hand(request, processes) as request:
        if len(arguments.recipe) > 1 or is_chain(request.run):
            return run_stages(arguments.recipe, request, processes)
        return Session(request, processes).run()
