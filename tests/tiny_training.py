"""A learner small enough for a test, on random pictures, without torch.distributed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.distributed as dist
from scholarch.config.schema import Recipe
from scholarch.data.catalog import open_source
from scholarch.draws import torch_generator
from scholarch.training import autos
from scholarch.training.assemble import _width, build_networks, build_terms, build_trainer
from scholarch.training.checkpoint import newest_whole
from scholarch.training.distributed import World
from scholarch.training.learner import Learner
from scholarch.training.networks import Execution, materialise
from scholarch.training.observe import Observer
from scholarch.training.preflight import check_batch
from scholarch.training.recipe import load_recipe
from scholarch.training.trainer import Trainer
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import init_device_mesh

TINY = (
    "model.channels=1",
    "model.embed_dim=24",
    "model.depth=2",
    "model.heads=2",
    "model.layer_scale=1.0",
    "model.stochastic_depth=0.3",
    "model.rope.rescale=2.0",
    "heads.dino.prototypes=12",
    "heads.dino.hidden=16",
    "heads.dino.bottleneck=8",
    "heads.ibot.prototypes=10",
    "heads.ibot.hidden=16",
    "heads.ibot.bottleneck=8",
    "views.global.size=16",
    "views.global.blur_kernel=3",
    "views.local.size=8",
    "views.local.count=2",
    "views.local.blur_kernel=3",
    "training.global_batch=8",
    "training.steps=6",
    "terms.koleo.group=4",
)


def tiny_recipe(*overrides: str) -> Recipe:
    """demo/digits with everything made small."""
    return load_recipe("demo/digits", [*TINY, *overrides])


@dataclass
class Pictures:
    """What the learner reads of a micro-batch."""

    views: dict[str, Tensor]
    masks: dict[str, Tensor]
    positions: Tensor = field(default_factory=lambda: torch.arange(8))

    def rows(self, positions: Sequence[int]) -> Pictures:
        """The samples at some positions."""
        chosen = torch.tensor(list(positions), dtype=torch.int64)
        return Pictures(
            {name: views[:, chosen] for name, views in self.views.items()},
            {name: masks[:, chosen] for name, masks in self.masks.items()},
            self.positions[chosen],
        )


def random_pictures(step: int = 0, batch: int = 8, dtype: torch.dtype = torch.float64) -> Pictures:
    """A global batch of noise, with masks on some pictures and none on others."""
    draws = torch_generator(5, "pictures", step)
    views = {
        "global": torch.randn(2, batch, 1, 16, 16, generator=draws, dtype=dtype),
        "local": torch.randn(2, batch, 1, 8, 8, generator=draws, dtype=dtype),
    }
    masks = torch.rand(2, batch, 16, generator=draws) < 0.4
    masks[0, ::3] = False
    return Pictures(views, {"global": masks}, torch.arange(batch))


def tiny_learner(recipe: Recipe, group: ProcessGroup | None = None, precision: str = "fp64") -> Learner:
    """As `assemble.build_learner`, unsharded and on the CPU."""
    terms = build_terms(recipe)
    student, teachers = build_networks(recipe, terms)
    how = Execution(device=torch.device("cpu"), precision=precision)
    materialise(student, how, recipe.seed, trained=True)
    for teacher in teachers.values():
        materialise(teacher, how, recipe.seed, trained=False)
    for term in terms.values():
        outputs = [*term.student_outputs(), *term.teacher_outputs()]
        term.allocate({output: _width(recipe, student, output) for output in outputs}, recipe.seed)
    sees = {name: options.sees for name, options in recipe.teachers.items()}
    return Learner(student, teachers, sees, terms, seed=recipe.seed, group=group)


class Kept:
    """An observer that keeps the records."""

    def __init__(self) -> None:
        self.records: list[dict[str, float]] = []

    def recorded(self, record: Mapping[str, float]) -> None:
        self.records.append(dict(record))

    def warned(self, message: str) -> None:
        raise AssertionError(message)


def tiny_trainer(
    world: World, folder: Path, overrides: Sequence[str], *observers: Observer
) -> tuple[Trainer, Recipe]:
    """A trainer of the tiny recipe on digits, put together as `scholarch pretrain` does."""
    source = open_source("digits")
    recipe = autos.resolve(tiny_recipe(*overrides), source, world_size=world.size, local_size=world.size)
    return build_trainer(recipe, source, check_batch(recipe, world.size), world, folder, observers), recipe


def train(world: World, folder: Path, overrides: Sequence[str]) -> list[dict[str, float]]:
    """Trains the tiny recipe and gives rank 0's records.

    Goes on from the newest checkpoint in `folder` where there is one.
    """
    kept = Kept()
    trainer, _ = tiny_trainer(world, folder, overrides, kept)
    found = newest_whole(folder)
    trainer.run(trainer.resume(found) if found else 0)
    return kept.records


def gloo_world(group: ProcessGroup | None) -> World:
    """The world of a process that `run_ranks` started, or of this process alone."""
    rank = dist.get_rank(group)
    size = dist.get_world_size(group)
    mesh = init_device_mesh("cpu", (size,))
    return World(rank, size, rank, size, torch.device("cpu"), mesh, group if size > 1 else None)
