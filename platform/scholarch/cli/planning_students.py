"""`scholarch plan distill`: who trains which student, what a step takes, and what that costs."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

from scholarch.config.schema import Recipe
from scholarch.distillation.costs import counted
from scholarch.distillation.groups import tile
from scholarch.distillation.measured import Measured
from scholarch.distillation.planner import Costs, JobPlan, equal, made, plan_job
from scholarch.distillation.simulate import doubled, simulated
from scholarch.distillation.traffic import exchanged, gathered, picture_bytes
from scholarch.errors import UserError
from scholarch.report.theme import write_png
from scholarch.report.timeline import Bar, draw_timelines
from scholarch.storage.local import readable_size
from scholarch.storage.objects import open_objects
from scholarch.training.recipe import student_recipe


def plan_students(recipe: Recipe, gpus: int, picture: Path | None, measured: str = "") -> list[str]:
    """Lines of the plan, with the picture written where one is asked for.

    Args:
        measured: address of a run whose steps say what networks cost; "": counted operations do.

    Raises:
        UserError: if the recipe has no students, or they cannot share so many GPUs, or were not measured.
    """
    recipes, costs = _known(recipe, measured)
    batch = recipe.training.global_batch
    best, simple = plan_job(costs, gpus, batch), equal(costs, gpus, batch)
    plans, fixed = [("planned", best), ("equal groups", simple)], None
    if recipe.groups:
        fixed = plan_groups(costs, recipe.groups, gpus, batch)
        plans.append(("groups of the recipe", fixed))
    if picture is not None:
        shown = [(f"{title}: {p.step:.3g} s a step, {p.idle:.1%} waiting", bars(p)) for title, p in plans]
        write_png(draw_timelines(shown), picture)
    return [
        *_head(recipe, best),
        "",
        *_groups(best, recipes),
        "",
        *_compared(plans),
        "",
        *_costs(recipe, best, fixed),
    ]


def simulate_students(recipe: Recipe, gpus: int, most: int, measured: str = "") -> list[str]:
    """Lines of a table: what the job takes on each doubling of `gpus` up to `most`.

    Raises:
        UserError: as `plan_students`, or if `most` is less than `gpus`.
    """
    if most < gpus:
        raise UserError(f"{most} is less than --gpus {gpus}", where="--to", fix="name the larger one here")
    recipes, costs = _known(recipe, measured)
    rows = [("GPUs", "step", "waiting", "equal groups", "waiting", "received by a GPU", "memory")]
    for count in doubled(gpus, most):
        job = simulated(recipes, costs, count)
        simple = equal(costs, count, recipe.training.global_batch)
        rows.append(
            (
                f"{count:,}",
                f"{job.plan.step:.3g} s",
                f"{job.plan.idle:.1%}",
                f"{simple.step:.3g} s",
                f"{simple.idle:.1%}",
                readable_size(int(job.received)),
                "?" if job.memory is None else readable_size(int(job.memory)),
            )
        )
    return [*_about(recipe, costs), *_aligned(rows)]


def _known(recipe: Recipe, measured: str) -> tuple[dict[str, Recipe], Costs]:
    """The students' recipes, and what they cost."""
    if not recipe.students:
        raise UserError("the recipe has no students", where=recipe.name, fix="use scholarch plan pretrain")
    recipes = {name: _computed(student_recipe(recipe, name)) for name in recipe.students}
    if not measured:
        return recipes, counted(recipes)
    found = Measured.read(open_objects(measured))
    costs = found.costs(list(recipes)) if found else None
    if costs is None:
        raise UserError(
            "no steps of these students were measured in this run",
            where=f"--costs {measured}",
            fix="name a run of scholarch distill with these students that got beyond some checkpoints",
        )
    return recipes, costs


def plan_groups(costs: Costs, groups: Mapping[str, int], gpus: int, batch: int) -> JobPlan:
    """Groups in fixed proportions with equal parts of the teacher, as the source has them."""
    tiling = tile(list(groups), groups, gpus, batch)
    return made(costs, tiling.sizes, batch, parts=[b - a for a, b in itertools.pairwise(tiling.teacher)])


def bars(plan: JobPlan) -> list[Bar]:
    """The busiest process of each group."""
    found = []
    for name, size in plan.tiling.sizes.items():
        teacher = plan.teacher_seconds(name)[1]
        if plan.costs.together:  # all run it in step with the largest part
            teacher = max(plan.teacher_seconds(other)[1] for other in plan.tiling.sizes)
        found.append(Bar(f"{name}, {size}", [("teacher", teacher), ("student", plan.student_seconds(name))]))
    return found


def _computed(recipe: Recipe) -> Recipe:
    precision = "bf16" if recipe.training.precision == "auto" else recipe.training.precision
    return recipe.model_copy(update={"training": recipe.training.model_copy(update={"precision": precision})})


def _head(recipe: Recipe, plan: JobPlan) -> list[str]:
    return [
        *_about(recipe, plan.costs),
        f"{plan.tiling.world_size} GPUs: a step takes {plan.step:.3g} s, and {plan.idle:.1%} of their time is waiting",
    ]


def _about(recipe: Recipe, costs: Costs) -> list[str]:
    how = "in shards over all GPUs, run in step" if costs.together else "whole on each GPU"
    batch = recipe.training.global_batch
    return [
        f"{recipe.name}: {len(recipe.students)} students, {recipe.training.steps:,} steps of {batch:,} pictures",
        f"the teacher {how}; costs: {costs.source}",
    ]


def _groups(plan: JobPlan, recipes: Mapping[str, Recipe]) -> list[str]:
    rows = [("student", "GPUs", "its pictures", "teacher's", "seconds of both", "waiting", "received")]
    for name, size in plan.tiling.sizes.items():
        parts = [plan.part(rank) for rank in plan.tiling.ranks(name)]
        student, teacher = plan.student_seconds(name), plan.teacher_seconds(name)[1]
        sizes = picture_bytes(recipes[name])
        own = plan.global_batch / size
        rows.append(
            (
                name,
                str(size),
                f"{own:.3g}",
                f"{min(parts)} to {max(parts)}",
                f"{student:.3g} + {teacher:.3g}",
                f"{1 - sum(plan.busy[r] for r in plan.tiling.ranks(name)) / size / plan.step:.1%}",
                readable_size(int(exchanged(sizes, plan.global_batch, size, 0.0))),
            )
        )
    whole = readable_size(
        int(
            max(
                gathered(picture_bytes(r), plan.global_batch, plan.tiling.world_size)
                for r in recipes.values()
            )
        )
    )
    return [*_aligned(rows), f"received by a GPU where everything goes to everyone: {whole}"]


def _compared(plans: list[tuple[str, JobPlan]]) -> list[str]:
    rows = [("", "step", "waiting")]
    rows += [(title, f"{plan.step:.3g} s", f"{plan.idle:.1%}") for title, plan in plans]
    return _aligned(rows)


def _costs(recipe: Recipe, plan: JobPlan, fixed: JobPlan | None) -> list[str]:
    """GPU-hours of each student, with its share of the teacher, against training them one at a time, and against
    groups that the recipe fixes."""
    steps, world = recipe.training.steps, plan.tiling.world_size
    teacher = plan.costs.teacher.per_picture * plan.global_batch / len(plan.costs.students)
    rows: list[tuple[str, ...]] = [
        (
            "student",
            "GPU-hours here",
            "GPU-hours by itself",
            "by the recipe's groups",
            "GPU-seconds a picture",
        )
    ]
    totals = [0.0, 0.0, 0.0]
    work = {name: plan.costs.students[name].per_picture * plan.global_batch for name in plan.tiling.sizes}
    for name, own in work.items():
        # Waiting is shared out as work is.
        here = (own + teacher) / (sum(work.values()) + teacher * len(work)) * plan.step * world
        single = Costs(plan.costs.teacher, {name: plan.costs.students[name]}, plan.costs.together, "")
        alone = plan_job(single, min(world, plan.global_batch), plan.global_batch)
        by_itself = alone.step * alone.tiling.world_size
        by_groups = here * fixed.step / plan.step if fixed else 0.0
        seconds = [here, by_itself, by_groups]
        totals = [total + more for total, more in zip(totals, seconds, strict=True)]
        rows.append((name, *(f"{s * steps / 3600:,.0f}" for s in seconds), f"{here / plan.global_batch:.3g}"))
    rows.append(
        ("all", *(f"{s * steps / 3600:,.0f}" for s in totals), f"{totals[0] / plan.global_batch:.3g}")
    )
    if fixed is None:
        rows = [(*row[:3], *row[4:]) for row in rows]
    return [*_aligned(rows), f"one after another takes {totals[1] / totals[0]:.2f} times as much"]


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if number == 0 else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
