"""What a job takes on so many GPUs, which need not be there: time, waiting, traffic and memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from scholarch.config.schema import Recipe, settled
from scholarch.distillation.planner import Costs, JobPlan, plan_job
from scholarch.distillation.together import frozen
from scholarch.distillation.traffic import PictureBytes, exchanged, held, picture_bytes
from scholarch.errors import UserError
from scholarch.training.assemble import build_networks, build_terms, view_sets
from scholarch.training.estimate import BYTES, COMPUTED, memory, numel, passing, term_parameters, unit_sizes
from scholarch.training.preflight import check_batch


@dataclass(frozen=True)
class Simulated:
    """A job on so many GPUs.

    Attributes:
        plan: groups, parts, seconds and waiting.
        received: bytes of rows that come in over the link of the GPU with the most, in a step.
        memory: bytes on the GPU with the most; None: a student's batch cannot be cut for its group.
    """

    plan: JobPlan
    received: float
    memory: float | None


def simulated(recipes: Mapping[str, Recipe], costs: Costs, gpus: int) -> Simulated:
    """The planned job.

    Args:
        recipes: of the students, without `auto` but for the micro-batch.

    Raises:
        UserError: if the students cannot share so many GPUs.
    """
    batch = next(iter(recipes.values())).training.global_batch
    plan = plan_job(costs, gpus, batch)
    sizes = {name: picture_bytes(recipe) for name, recipe in recipes.items()}
    received = max(
        exchanged(sizes[name], batch, len(plan.tiling.ranks(name)), _overlap(plan, rank))
        for name in recipes
        for rank in plan.tiling.ranks(name)
    )
    try:
        needs = max(_memory(recipe, name, plan, sizes[name]) for name, recipe in recipes.items())
    except UserError:
        return Simulated(plan, received, None)
    return Simulated(plan, received, needs)


def doubled(least: int, most: int) -> Iterator[int]:
    """Numbers from one to the other, each twice the one before; the last one in any case."""
    while least < most:
        yield least
        least *= 2
    yield most


def _overlap(plan: JobPlan, rank: int) -> float:
    """Pictures of its student's that a process runs the teacher on itself, and which need no link."""
    ranks = plan.tiling.ranks(plan.tiling.student(rank))
    place = rank - ranks.start
    begin, end = (plan.global_batch * n / len(ranks) for n in (place, place + 1))
    return max(min(plan.tiling.teacher[rank + 1], end) - max(plan.tiling.teacher[rank], begin), 0.0)


def _memory(recipe: Recipe, name: str, plan: JobPlan, sizes: PictureBytes) -> float:
    """Of a process of a student: its own networks in its group, the teacher's share, and rows and pictures."""
    group = plan.tiling.sizes[name]
    terms = build_terms(recipe)
    student, teachers = build_networks(recipe, terms)
    term_parameters(recipe, terms, student, teachers)
    training = recipe.training.model_copy(update={"micro_batch": -(-plan.global_batch // group)})
    if recipe.training.micro_batch != "auto":
        training = recipe.training
    layout = check_batch(recipe.model_copy(update={"training": training}), group)
    own = {n: teacher for n, teacher in teachers.items() if n not in frozen(recipe)}
    total = float(sum(memory(recipe, student, own, terms, layout, group).values()))
    most = max(plan.part(rank) for rank in plan.tiling.ranks(name))
    at_once = min(most, settled(training.micro_batch))
    item, computed = BYTES[recipe.training.precision], COMPUTED[recipe.training.precision]
    sets = [views for _, views in view_sets(recipe)]
    for one in frozen(recipe):
        shared = recipe.teachers[one].sharded == "all"
        total += numel(teachers[one]) * item / (plan.tiling.world_size if shared else 1)
        total += 2 * unit_sizes(teachers[one])[0] * computed * shared
        total += passing(recipe, one, teachers[one], sets, at_once) * computed
    return total + held(sizes, plan.global_batch, group, most, len(plan.tiling.sizes))
