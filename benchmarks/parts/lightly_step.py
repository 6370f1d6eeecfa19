"""Worker: steps of lightly-train's DINOv2 on pictures in memory, in an environment of its own.

lightly-train is AGPL: it is called here as a program of its own that prints times; nothing of it is
part of Scholarch. Its trainer (Lightning) runs with logging, progress bar and checkpoints off.
Settings: see step.py.
"""

from __future__ import annotations

import json
import logging
import sys
import warnings
from typing import Any

import torch
from lightly_train._methods.dinov2.dinov2 import DINOv2, DINOv2AdamWViTArgs, DINOv2Args
from lightly_train._models import package_helpers
from lightly_train._models.dinov2_vit.dinov2_vit_src.models.vision_transformer import DinoVisionTransformer
from lightly_train._models.embedding_model import EmbeddingModel
from pytorch_lightning import Callback, Trainer
from torch.utils.data import DataLoader, Dataset
from turns import Clock, wait_for_turn

POOL = 4
"""Batches in memory."""


class Pool(Dataset[dict[str, Any]]):
    """Batches of noise as the method reads them."""

    def __init__(self, settings: dict[str, Any]) -> None:
        drawn = torch.Generator().manual_seed(0)
        sizes = [settings["global_size"]] * 2 + [settings["local_size"]] * settings["local_crops"]
        batch = settings["batch"]
        self.batches = [
            {
                "views": [torch.randn(batch, 3, size, size, generator=drawn) for size in sizes],
                "filename": ["noise"] * batch,
            }
            for _ in range(POOL)
        ]

    def __len__(self) -> int:
        return 100_000

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.batches[index % POOL]


class Turns(Callback):
    """A step is from the start of a batch to the start of the next, so that all hooks are in it."""

    clock: Clock | None = None

    def on_train_batch_start(self, *_: Any, **__: Any) -> None:
        if self.clock is not None:
            self.clock.report()
        wait_for_turn()
        self.clock = Clock()


def main() -> None:
    """Serves steps until nobody asks any more."""
    settings = json.loads(sys.argv[1])
    torch.set_num_threads(settings["threads"])
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    backbone = DinoVisionTransformer(
        img_size=settings["global_size"],
        patch_size=14,
        embed_dim=settings["embed_dim"],
        depth=settings["depth"],
        num_heads=settings["heads"],
        mlp_ratio=4,
        init_values=1e-5,
        block_chunks=0,
        drop_path_rate=settings["stochastic_depth"],
        drop_path_uniform=True,
    )
    wrapped = package_helpers.get_wrapped_model(backbone, num_input_channels=3)
    method = DINOv2(
        method_args=DINOv2Args(
            ibot_separate_head=True,
            output_dim=settings["prototypes"],
            center_method="sinkhorn_knopp",
            student_freeze_last_layer_steps=0,
            weight_decay_start=0.04,
        ),
        optimizer_args=DINOv2AdamWViTArgs(),
        embedding_model=EmbeddingModel(wrapped_model=wrapped),
        global_batch_size=settings["batch"],
        num_input_channels=3,
    )
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        precision="32-true",
        max_epochs=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        callbacks=[Turns()],
    )
    trainer.fit(method, DataLoader(Pool(settings), batch_size=None))


if __name__ == "__main__":
    main()
