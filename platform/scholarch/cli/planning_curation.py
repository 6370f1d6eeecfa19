"""What `scholarch plan curate` says: memory, disk, traffic and hours of clustering."""

from __future__ import annotations

import argparse


def plan_curation(arguments: argparse.Namespace) -> list[str]:
    """Lines of the plan.

    Raises:
        UserError: if a count is missing, or the recipe has no clusters, or more of them than pictures.
    """
    from scholarch.cli.console import duration
    from scholarch.curation.estimate import estimate
    from scholarch.curation.recipe import load_curation
    from scholarch.errors import UserError
    from scholarch.storage.local import readable_size

    pictures, width, cores = arguments.pictures, arguments.width, arguments.cores
    if min(pictures, width, cores) < 1:
        raise UserError(
            "must be above 0",
            where="--pictures, --width, --cores",
            fix="such as --pictures 10000000 --width 384 --cores 16",
        )
    recipe = load_curation(arguments.recipe, arguments.overrides)
    if recipe.cluster is None:
        raise UserError(
            "has no `cluster`, which is what the plan is of", where=f"recipe {arguments.recipe}", fix="add it"
        )
    levels = recipe.cluster.levels
    try:
        told = estimate(pictures, width, levels, cores, recipe.embed.stored)
    except ValueError as error:
        raise UserError(str(error), where="cluster.levels", fix="fewer clusters") from None
    rows = [
        ("pictures", f"{pictures:,}, vectors of {width} as {recipe.embed.stored}"),
        ("clusters", ", ".join(f"{level.clusters:,}" for level in levels)),
        ("cores of workers", f"{cores:,}"),
        ("disk, in the store and on each machine", readable_size(told.disk)),
        ("memory of the process that leads", f"about {readable_size(told.leader)}"),
        ("memory of each core's worker", f"about {readable_size(told.worker)}"),
        ("traffic between them", f"at most {readable_size(told.traffic)}"),
        ("time", f"at most about {duration(told.seconds(cores))}"),
        ("  of it seeding, in one process", f"about {duration(told.seeding_seconds)}"),
    ]
    wide = max(len(name) for name, _ in rows)
    return [f"{name:<{wide}}  {value}" for name, value in rows]
