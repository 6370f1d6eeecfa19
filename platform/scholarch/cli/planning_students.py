"""`scholarch plan distill`: who trains which student, what a step takes, and what that costs."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

from scholarch.config.schema import Recipe
from scholarch.distillation.costs import counted
from scholarch.distillation.groups import tile
from scholarch.distillation.planner import Costs, JobPlan, equal, made, plan_job
from scholarch.distillation.traffic import exchanged, gathered, picture_bytes
from scholarch.errors import UserError
from scholarch.report.theme import write_png
from scholarch.report.timeline import Bar, draw_timelines
from scholarch.storage.local import readable_size
from scholarch.training.recipe import student_recipe


def plan_students(recipe: Recipe, gpus: int, picture: Path | None) -> list[str]:
    """Lines of the plan, with the picture written where one is asked for.

    Raises:
        UserError: if the recipe has no students, or they cannot share so many GPUs.
    """
    if not recipe.students:
        raise UserError("the recipe has no students", where=recipe.name, fix="use scholarch plan pretrain")
    recipes = {name: _computed(student_recipe(recipe, name)) for name in recipe.students}
    costs, batch = counted(recipes), recipe.training.global_batch
    best, simple = plan_job(costs, gpus, batch), equal(costs, gpus, batch)
    plans = [("planned", best), ("equal groups", simple)]
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
        *_costs(recipe, best),
    ]


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
    how = "in shards over all GPUs, run in step" if plan.costs.together else "whole on each GPU"
    batch = recipe.training.global_batch
    return [
        f"{recipe.name}: {len(recipe.students)} students, {recipe.training.steps:,} steps of {batch:,} pictures",
        f"{plan.tiling.world_size} GPUs, the teacher {how}; costs: {plan.costs.source}",
        f"a step takes {plan.step:.3g} s, of which {plan.idle:.1%} of the GPUs' time is waiting",
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


def _costs(recipe: Recipe, plan: JobPlan) -> list[str]:
    """GPU-hours of each student, with its share of the teacher, against training them one at a time."""
    steps, world = recipe.training.steps, plan.tiling.world_size
    teacher = plan.costs.teacher.per_picture * plan.global_batch / len(plan.costs.students)
    rows: list[tuple[str, ...]] = [
        ("student", "GPU-hours here", "GPU-hours by itself", "GPU-seconds a picture")
    ]
    totals = [0.0, 0.0]
    work = {name: plan.costs.students[name].per_picture * plan.global_batch for name in plan.tiling.sizes}
    for name, own in work.items():
        # Waiting is shared out as work is.
        here = (own + teacher) / (sum(work.values()) + teacher * len(work)) * plan.step * world
        single = Costs(plan.costs.teacher, {name: plan.costs.students[name]}, plan.costs.together, "")
        alone = plan_job(single, min(world, plan.global_batch), plan.global_batch)
        by_itself = alone.step * alone.tiling.world_size
        totals = [totals[0] + here, totals[1] + by_itself]
        rows.append(
            (
                name,
                f"{here * steps / 3600:,.0f}",
                f"{by_itself * steps / 3600:,.0f}",
                f"{here / plan.global_batch:.3g}",
            )
        )
    rows.append(
        ("all", *(f"{total * steps / 3600:,.0f}" for total in totals), f"{totals[0] / plan.global_batch:.3g}")
    )
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
