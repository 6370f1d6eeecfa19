"""`scholarch distill`: many students from one frozen teacher, side by side."""

from __future__ import annotations

import argparse
import os


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument(
        "--recipe", metavar="NAME", help="a name of `scholarch recipes` or a YAML file, with `students`"
    )
    parser.add_argument(
        "--run",
        default="",
        metavar="FOLDER",
        help="where everything goes, each student in students/NAME: a folder, or s3://BUCKET/PREFIX "
        "(default: runs/NAME-TIME)",
    )
    parser.add_argument(
        "--student",
        action="append",
        default=[],
        metavar="NAME",
        help="train only this one of the students, and leave the others as they are; may be given several times",
    )
    parser.add_argument(
        "--costs",
        default="",
        metavar="RUN",
        help="begin with the plan that the measured steps of another run give, on the same hardware",
    )
    parser.add_argument(
        "--scale",
        choices=("full", "tiny"),
        default="full",
        help="tiny: shrink everything, so that each phase of the recipe runs on two cores in under a minute",
    )
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoints in --run")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key.path=value",
        help="such as data=FOLDER, teachers.teacher.checkpoint=RUN or students.NAME.optimizer.lr=1e-4",
    )


def run(arguments: argparse.Namespace) -> int:
    """Trains; gives the exit code."""
    from scholarch.cli.students import Job, distil
    from scholarch.training.distributed import world

    restarted = os.environ.get("SCHOLARCH_RESTART") == "1"
    job = Job(
        recipe=arguments.recipe or "",
        overrides=tuple(arguments.overrides),
        scale=arguments.scale,
        address=arguments.run,
        only=tuple(arguments.student),
        costs=arguments.costs,
        resume=arguments.resume,
        restarted=restarted,
    )
    with world() as processes:
        return distil(job, processes)
