"""`scholarch plan`: what a recipe takes on a cluster that need not be here; allocates nothing."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scholarch.config.schema import Recipe
    from scholarch.training.layout import Layout

USABLE = 0.9
"""Share of a GPU's memory; the rest is the CUDA context, NCCL's buffers and what lies between blocks."""
GIB = 2**30


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument("what", choices=("pretrain", "distill", "curate"), help="the verb that is planned")
    parser.add_argument("--recipe", required=True, metavar="NAME", help="a recipe's name or a YAML file")
    parser.add_argument(
        "--gpus",
        type=int,
        default=0,
        metavar="COUNT",
        help="of pretrain and distill: processes, one for each GPU",
    )
    parser.add_argument(
        "--gpu-memory", type=float, metavar="GIB", help="of pretrain: memory of one GPU in GiB, such as 80"
    )
    parser.add_argument(
        "--picture", type=Path, metavar="FILE", help="of distill: draw each group's step into a PNG file"
    )
    parser.add_argument(
        "--to",
        type=int,
        metavar="COUNT",
        help="of distill: a row for each doubling of --gpus up to this number",
    )
    parser.add_argument(
        "--costs",
        default="",
        metavar="RUN",
        help="of distill: a run whose steps were measured, in place of counted operations",
    )
    parser.add_argument("--pictures", type=int, default=0, metavar="COUNT", help="of curate: in the pool")
    parser.add_argument("--width", type=int, default=0, metavar="D", help="of curate: numbers of a feature")
    parser.add_argument("--cores", type=int, default=0, metavar="COUNT", help="of curate: of all workers")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="as of the verb")


def run(arguments: argparse.Namespace) -> int:
    """Prints the table; gives 0 where it fits.

    Raises:
        UserError: if the recipe cannot work on so many GPUs, or does not fit into their memory.
    """
    if arguments.what == "curate":
        from scholarch.cli.planning_curation import plan_curation

        print("\n".join(plan_curation(arguments)))
        return 0
    from scholarch.cli.origins import of_teachers
    from scholarch.errors import EXIT_DONE, UserError
    from scholarch.training.recipe import load_recipe

    if arguments.what == "distill" and arguments.gpus > 0:
        from scholarch.cli.planning_students import plan_students, simulate_students

        recipe, missing = of_teachers(load_recipe(arguments.recipe, arguments.overrides))
        if arguments.to is not None:
            lines = simulate_students(recipe, arguments.gpus, arguments.to, arguments.costs)
        else:
            lines = plan_students(recipe, arguments.gpus, arguments.picture, arguments.costs)
        print("\n".join(lines))
        return EXIT_DONE
    if arguments.gpus < 1 or not arguments.gpu_memory or arguments.gpu_memory <= 0:
        raise UserError(
            "must be above 0", where="--gpus, --gpu-memory", fix="such as --gpus 8 --gpu-memory 80"
        )
    recipe, missing = of_teachers(load_recipe(arguments.recipe, arguments.overrides))
    lines, needed = table(recipe, arguments.gpus, int(arguments.gpu_memory * GIB))
    lines += [f"note: {name}.checkpoint is not here; it is counted as the recipe says" for name in missing]
    print("\n".join(lines))
    if needed > USABLE * arguments.gpu_memory * GIB:
        raise UserError(
            f"{needed / GIB:.1f} GiB on a GPU do not fit into {USABLE:.0%} of {arguments.gpu_memory:g}",
            where=recipe.name,
            fix="use more GPUs, training.activation_checkpointing=full or a smaller training.micro_batch",
        )
    return EXIT_DONE


def table(recipe: Recipe, gpus: int, gpu_memory: int) -> tuple[list[str], int]:
    """Lines of the plan, and the bytes needed on one GPU.

    Raises:
        UserError: as `preflight.check_views` and `check_batch`.
    """
    from scholarch.storage.local import readable_size
    from scholarch.training.assemble import build_networks, build_terms
    from scholarch.training.estimate import checkpoint_bytes, memory, numel, term_parameters, traffic
    from scholarch.training.preflight import check_patches, check_views, saved_teachers

    precision = "bf16" if recipe.training.precision == "auto" else recipe.training.precision
    recipe = recipe.model_copy(
        update={"training": recipe.training.model_copy(update={"precision": precision})}
    )
    check_views(recipe)
    terms = build_terms(recipe)
    student, networks = build_networks(recipe, terms)
    check_patches(recipe, terms, networks)
    own = term_parameters(recipe, terms, student, networks)
    teachers = list(networks.values())

    def needs(layout: Layout) -> int:
        return sum(memory(recipe, student, networks, terms, layout, gpus).values())

    layout = _layout(recipe, gpus, lambda found: needs(found) <= USABLE * gpu_memory)
    parts = memory(recipe, student, networks, terms, layout, gpus)
    moved = traffic(recipe, student, teachers, layout, gpus)
    saved = saved_teachers(recipe, networks)
    share = layout.largest_share(gpus)
    steps, batch = recipe.training.steps, recipe.training.global_batch
    rows = [
        ("recipe", f"{recipe.name}, {precision}"),
        ("steps", f"{steps:,} of {batch:,} pictures: {steps * batch:,} pictures seen"),
        ("GPUs", f"{gpus} of {readable_size(gpu_memory)}"),
        ("batch", f"{layout.micro_batches} x {share} pictures a GPU (training.micro_batch={share})"),
        ("", ""),
        ("parameters", ""),
        *((f"  student {name}", f"{numel(part):,}") for name, part in student.parts().items()),
        *((f"  teacher {name}", f"{numel(network):,}") for name, network in networks.items()),
        *([("  terms", f"{own:,}")] if own else []),
        ("", ""),
        ("memory on a GPU", f"about {readable_size(sum(parts.values()))}"),
        *((f"  {name}", readable_size(size)) for name, size in parts.items()),
        ("", ""),
        ("received by a GPU in a step", f"about {readable_size(moved.total)}"),
        ("  student's weights", readable_size(moved.gathered)),
        ("  teachers' weights", readable_size(moved.teachers)),
        ("  gradients", readable_size(moved.reduced)),
        ("", ""),
        ("checkpoint", readable_size(checkpoint_bytes(recipe, student, saved, own))),
    ]
    width = max(len(name) for name, _ in rows)
    return [f"{name:<{width}}  {value}".rstrip() for name, value in rows], sum(parts.values())


def _layout(recipe: Recipe, gpus: int, fits: Callable[[Layout], bool]) -> Layout:
    """As the recipe says; where it leaves it open, the fewest micro-batches that fit, or the most there are."""
    from scholarch.errors import UserError
    from scholarch.training.preflight import check_batch

    def cut(share: int) -> Layout:
        training = recipe.training.model_copy(update={"micro_batch": share})
        return check_batch(recipe.model_copy(update={"training": training}), gpus)

    if isinstance(recipe.training.micro_batch, int):
        return cut(recipe.training.micro_batch)
    share = -(-recipe.training.global_batch // gpus)
    layout = cut(share)
    while share > 1 and not fits(layout):
        share = (share + 1) // 2
        try:
            layout = cut(share)
        except UserError:  # groups of a term cannot be kept whole
            break
    return layout
