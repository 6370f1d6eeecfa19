"""Worker: steps of our trainer on pictures in memory. Settings: see step.py."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import torch
from memory import POOL, batches
from scholarch.config.schema import Recipe
from scholarch.data.batch import MicroBatch
from scholarch.data.catalog import open_source
from scholarch.draws import Draws
from scholarch.models.features import Backbone, Features, Views
from scholarch.training.assemble import build_trainer
from scholarch.training.distributed import world
from scholarch.training.layout import plan_layout
from scholarch.training.recipe import load_recipe
from turns import Clock, wait_for_turn


def recipe_for(settings: dict[str, Any]) -> Recipe:
    """dinov2/vitl14 with the settings' backbone, crops, batch and prototypes."""
    heads = [
        f"heads.{name}.{key}={value}"
        for name in ("dino", "ibot")
        for key, value in {"prototypes": settings["prototypes"], "bottleneck": 256, "hidden": 2048}.items()
    ]
    return load_recipe(
        "dinov2/vitl14",
        [
            "data.source=digits",
            "data.channels=3",
            "data.mean=[0.485, 0.456, 0.406]",
            "data.std=[0.229, 0.224, 0.225]",
            f"training.micro_batch={settings['batch']}",
            "model.size=null",
            f"model.embed_dim={settings['embed_dim']}",
            f"model.depth={settings['depth']}",
            f"model.heads={settings['heads']}",
            "model.ffn=mlp",
            "model.ffn_ratio=4.0",
            f"model.stochastic_depth={settings['stochastic_depth']}",
            f"views.global.size={settings['global_size']}",
            f"views.local.size={settings['local_size']}",
            f"views.local.count={settings['local_crops']}",
            f"model.learned.grid={settings['global_size'] // 14}",
            f"terms.koleo.group={settings['batch']}",
            f"training.global_batch={settings['batch']}",
            "training.precision=fp32",
            "training.steps=100000",
            "training.workers=0",
            "training.checkpoint_every=100000",
            "training.log_every=1000",
            "evaluation.every=100000",
            *heads,
        ],
    )


def unpack(backbone: Backbone) -> None:
    """Has each size of crops run through the backbone on its own."""
    packed = backbone.forward

    def one_by_one(views: list[Views], draws: Draws | None = None) -> list[Features]:
        return [packed([group], draws)[0] for group in views]

    backbone.forward = one_by_one  # type: ignore[method-assign]


def main() -> None:
    """Serves steps until nobody asks any more."""
    settings = json.loads(sys.argv[1])
    torch.set_num_threads(settings["threads"])
    recipe = recipe_for(settings)
    pool = batches(recipe)

    def load(start: int) -> Generator[Sequence[MicroBatch], None, None]:
        step = start
        while True:
            wait_for_turn()
            clock = Clock()
            yield [pool[step % POOL]]
            clock.report()
            step += 1

    with world() as here, tempfile.TemporaryDirectory() as folder:
        layout = plan_layout(settings["batch"], here.size, None, ())
        # The source is only counted: the pictures are the pool's.
        trainer = build_trainer(recipe, open_source("digits"), layout, here, Path(folder))
        trainer.loader = load
        if not settings["packed"]:
            unpack(trainer.learner.student.backbone)
        trainer.run(0)


if __name__ == "__main__":
    main()
