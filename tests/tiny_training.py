"""A learner small enough for a test, on random pictures, without torch.distributed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.distributed as dist
from scholarch.config.load import overridden, parse_yaml
from scholarch.config.schema import Recipe
from scholarch.data.catalog import open_source
from scholarch.data.source import captions
from scholarch.data.tokenizer import Tokenizer
from scholarch.draws import torch_generator
from scholarch.objectives.term import Output
from scholarch.training import autos
from scholarch.training.assemble import build_learner, build_trainer
from scholarch.training.checkpoint import newest_whole
from scholarch.training.distributed import World
from scholarch.training.learner import Learner
from scholarch.training.networks import Execution
from scholarch.training.observe import Observer
from scholarch.training.preflight import check_batch
from scholarch.training.recipe import load_recipe, recipe_from
from scholarch.training.trainer import Trainer
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import init_device_mesh

TINY = (
    "model.channels=1",
    "optimizer.freeze_prototypes=0",
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

CAPI = """
name: tiny-capi
data: {source: digits, channels: 1}
model: {kind: capi, size: null, embed_dim: 24, depth: 2, heads: 2, predictor_depth: 2, ffn_ratio: 2.0, patch: 4,
  channels: 1, registers: 4, stochastic_depth: 0.3}
heads:
  capi: {layers: 0, prototypes: 12, weight_norm: trainable}
views:
  global: {count: 1, size: 16, scale: [0.6, 1.0], flip: 0.0, distortions: none}
masks:
  global: {kind: inverse_block, ratio: 0.65, predicted: 0.3}
teachers:
  ema: {momentum: 0.9}
terms:
  capi: {learning_rate: [{shape: linear, steps: 0.5, start: 0.0, end: 5.0e-3}]}
optimizer: {lr: 1.0e-3, clip: null, norm_decay: 0.1, betas: [0.9, 0.95]}
training: {global_batch: 8, steps: 6}
"""


def tiny_recipe(*overrides: str) -> Recipe:
    """demo/digits with everything made small."""
    return load_recipe("demo/digits", [*TINY, *overrides])


@dataclass
class Pictures:
    """What the learner reads of a micro-batch."""

    views: dict[str, Tensor]
    masks: dict[str, Tensor]
    positions: Tensor = field(default_factory=lambda: torch.arange(8))
    places: dict[str, Tensor] = field(default_factory=dict)
    bottlenecks: dict[str, dict[Output, Tensor]] = field(default_factory=dict)

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
    """Unsharded and on the CPU, where torch.distributed is not needed."""
    return build_learner(recipe, Execution(device=torch.device("cpu"), precision=precision), group)


class Kept:
    """An observer that keeps the records."""

    def __init__(self) -> None:
        self.records: list[dict[str, float]] = []

    def recorded(self, record: Mapping[str, float]) -> None:
        self.records.append(dict(record))

    def warned(self, message: str) -> None:
        raise AssertionError(message)


def tiny_capi(*overrides: str) -> Recipe:
    """CAPI on digits with everything made small, from nothing."""
    return recipe_from(overridden(parse_yaml(CAPI), overrides), where="tiny-capi")


def tiny_trainer(
    world: World, folder: Path | str, recipe: Recipe, *observers: Observer
) -> tuple[Trainer, Recipe]:
    """A trainer of a recipe on digits, put together as `scholarch pretrain` does; and the resolved recipe.

    One that reads captions is trained on shapes.
    """
    source = open_source("digits" if recipe.captions is None else "shapes")
    tokenizer = None
    if recipe.captions is not None:
        said = (text for index in range(100) for text in captions(source, index))
        tokenizer = Tokenizer.learned(said, recipe.model.text.vocabulary)
    recipe = autos.resolve(
        recipe, autos.look_at(recipe, source), world_size=world.size, local_size=world.size
    )
    layout = check_batch(recipe, world.size)
    return build_trainer(recipe, source, layout, world, folder, observers, tokenizer), recipe


def train(
    world: World, folder: Path | str, overrides: Sequence[str], recipe: Recipe | None = None
) -> list[dict[str, float]]:
    """Trains a recipe, by default the tiny one, and gives rank 0's records.

    Goes on from the newest checkpoint in `folder` where there is one.
    """
    kept = Kept()
    trainer, _ = tiny_trainer(world, folder, recipe or tiny_recipe(*overrides), kept)
    found = newest_whole(folder)
    trainer.run(trainer.resume(found) if found else trainer.begin())
    return kept.records


def gloo_world(group: ProcessGroup | None) -> World:
    """The world of a process that `run_ranks` started, or of this process alone."""
    rank = dist.get_rank(group)
    size = dist.get_world_size(group)
    mesh = init_device_mesh("cpu", (size,))
    return World(rank, size, rank, size, torch.device("cpu"), mesh, group if size > 1 else None)
