"""A job of several tiny students on digits, put together as `scholarch distill` does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from scholarch.config.load import overridden, read_recipe
from scholarch.config.schema import Recipe
from scholarch.data.catalog import open_source
from scholarch.distillation.exchange import Exchange
from scholarch.distillation.groups import Tiling, part_of
from scholarch.distillation.together import Place, build_student, check_together, masks_differ
from scholarch.training import autos
from scholarch.training.networks import Network, whole_state
from scholarch.training.preflight import check_batch
from scholarch.training.recipe import recipe_from, student_recipe
from scholarch.training.trainer import Trainer
from tiny_training import TINY, Kept, gloo_world
from torch import Tensor
from torch.distributed import ProcessGroup

LIMIT = timedelta(seconds=100)
TEACHER = (
    "masks.global.hide=false",
    "teachers.teacher.weights=frozen",
    "teachers.teacher.checkpoint=drawn",
    "teachers.teacher.model={size: null, embed_dim: 32, depth: 2, heads: 2, ffn: mlp, ffn_ratio: 2, patch: 4}",
    "terms.dino.teacher=teacher",
    "terms.ibot.teacher=teacher",
    "terms.koleo.group=5",
    "training.global_batch=10",
    "training.checkpoint_every=1000",
    "training.workers=0",
    "evaluation.every=1000",
)
STUDENTS: Mapping[str, Any] = {
    "small": {"model": {"embed_dim": 16}},
    "middle": {"model": {"embed_dim": 24}, "optimizer": {"lr": 2.0e-3}},
    "large": {"model": {"embed_dim": 32, "depth": 3}, "training": {"micro_batch": 5}},
}


def job_data(*overrides: str, students: Mapping[str, Any] = STUDENTS) -> dict[str, Any]:
    """demo/digits made small, with a frozen teacher whose weights are drawn, and students; as plain data."""
    data = overridden(read_recipe("demo/digits"), [*TINY, *TEACHER])
    return overridden({**data, "students": dict(students)}, overrides)


def job_recipe(data: Mapping[str, Any]) -> Recipe:
    """The same as a recipe, which cannot be sent to another process."""
    return recipe_from(data, where="job")


def resolved(recipe: Recipe, name: str, size: int) -> Recipe:
    """A student's own recipe on so many processes."""
    own = student_recipe(recipe, name)
    look = autos.look_at(own, open_source("digits"))
    return autos.resolve(own, look, world_size=size, local_size=size)


def trainer_of(
    group: ProcessGroup,
    data: Mapping[str, Any],
    sizes: Mapping[str, int],
    teacher: Sequence[int],
    folder: Path,
) -> tuple[Trainer, Exchange, Kept, str]:
    """This rank's trainer in the job."""
    world, recipe = gloo_world(group), job_recipe(data)
    tiling = Tiling(sizes, teacher)
    part, everywhere = part_of(world, tiling, LIMIT)
    recipes = {name: resolved(recipe, name, size) for name, size in sizes.items()}
    check_together(recipes)
    name = tiling.student(world.rank)
    place = Place(world, part, everywhere, tiling, masks_differ(list(recipes.values())))
    kept, own = Kept(), recipes[name]
    layout = check_batch(own, part.size)
    trainer, exchange = build_student(place, own, open_source("digits"), layout, str(folder / name), [kept])
    return trainer, exchange, kept, name


def student_state(trainer: Trainer) -> dict[str, Tensor]:
    """Whole weights of the student and of its moving average; all ranks of the group take part."""
    found = {}
    for part, network in (("student", trainer.learner.student), ("ema", trainer.learner.teachers["ema"])):
        assert isinstance(network, Network)
        found |= {f"{part}.{name}": tensor for name, tensor in whole_state(network).items()}
    return found


def curve(records: Sequence[Mapping[str, float]]) -> list[float]:
    """Total losses, by step."""
    return [record["loss/total"] for record in records if "loss/total" in record]


def distance(state: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """The largest difference of a tensor, relative to its own norm."""
    norm = torch.linalg.vector_norm
    return max(
        float(norm((state[name] - whole).double()) / (norm(whole.double()) + 1e-12))
        for name, whole in other.items()
        if whole.is_floating_point()
    )
