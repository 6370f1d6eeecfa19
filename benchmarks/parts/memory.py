"""Micro-batches of noise in memory, shaped as a recipe's, so that no data loading is measured."""

from __future__ import annotations

import numpy as np
import torch
from scholarch.config.schema import Recipe
from scholarch.data.batch import MicroBatch
from scholarch.objectives import MASKS
from scholarch.training.assemble import view_sets

POOL = 4
"""Batches in memory."""


def batches(recipe: Recipe, positions: np.ndarray | None = None, count: int = POOL) -> list[MicroBatch]:
    """Some batches; `positions` of the global batch, all by default."""
    (_, views), *_ = view_sets(recipe)
    total = recipe.training.global_batch
    chosen = np.arange(total) if positions is None else positions
    found = []
    for step in range(count):
        drawn = torch.Generator().manual_seed(step)
        pictures = {
            name: torch.randn(view.crops, total, 3, view.size, view.size, generator=drawn)[:, chosen]
            for name, view in views.items()
        }
        masks = {}
        for name, options in recipe.masks.items():
            sampler = MASKS[options.kind](options, 1)
            side, crops = views[name].size // recipe.model.patch, views[name].crops
            cells = [
                np.asarray(sampler.mask(step, view * total + row, crops * total, (side, side))).reshape(-1)
                for view in range(crops)
                for row in chosen.tolist()
            ]
            masks[name] = torch.from_numpy(np.stack(cells)).view(crops, len(chosen), -1)
        places = {name: mask.flatten().nonzero().squeeze(1) for name, mask in masks.items()}
        rows = torch.from_numpy(chosen)
        found.append(MicroBatch(pictures, masks, rows, rows, places=places))
    return found
