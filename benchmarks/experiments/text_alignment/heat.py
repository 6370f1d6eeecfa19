"""Whether the heat map of a phrase points at the thing that it names.

Legend: B pictures, h x w patches.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from scholarch.cli.sources import open_model
from scholarch.data.shapes import COUNTS, SIDE, ShapesSource
from scholarch.data.views import WholeView
from scholarch.data.words import Words
from scholarch.registry.backbone import assemble
from scholarch.report.pictures import GAP, PIXELS, Canvas
from scholarch.report.theme import LIGHT

UNSEEN = ShapesSource(kept_apart=True)
THINGS = ("large", "small")
WINDOW = 18
"""Pixels: three patches, more than a small thing and less than a large one."""


def phrases(index: int) -> list[str]:
    """What is looked for in a picture: its large thing and its small one, without their places."""
    return [f"a {thing.words}" for thing in UNSEEN.things(index)]


def heat(run: Path, indices: Sequence[int]) -> np.ndarray:
    """[B, 2, h, w] how well windows fit the phrase of each thing, as `scholarch inspect --text --window` draws it."""
    model = open_model(str(run))
    seen = model.preprocessing
    backbone = assemble(model.options, model.weights, seen.merges).float()
    words, view = Words(backbone), WholeView(SIDE, backbone.patch, seen.mean, seen.std)
    maps = [words.where_by_windows(view(UNSEEN.read(i)), phrases(i), WINDOW) for i in indices]
    return torch.stack(maps).numpy()


def pointing(run: Path) -> dict[str, float]:
    """Over all pictures of unseen combinations, for the phrase of the large thing and of the small one.

    `points_at`: the patch of the largest value shows the thing; `chance`: the share of patches that show it.
    `not_at_the_other`: the largest value on the thing exceeds the largest on the other one; chance is a half.
    """
    maps = heat(run, range(COUNTS[True]))
    found = {}
    for number, name in enumerate(THINGS):
        hits, chances, preferred = [], [], []
        for index, own in enumerate(maps[:, number]):
            there, other = (_patches_of(index, 1 + which, own.shape[0]) for which in (number, 1 - number))
            if not there.any() or not other.any():  # hidden behind the large one
                continue
            hits.append(there.flat[own.argmax()])
            chances.append(there.mean())
            preferred.append(own[there].max() > own[other].max())
        found |= {
            f"{name}/points_at": float(np.mean(hits)),
            f"{name}/chance": float(np.mean(chances)),
            f"{name}/not_at_the_other": float(np.mean(preferred)),
        }
    return found


def _patches_of(index: int, thing: int, side: int) -> np.ndarray:
    """[h, w] bool: patches with a pixel of it."""
    each = SIDE // side
    return np.asarray(
        (UNSEEN.mask(index) == thing).reshape(side, each, side, each).any(axis=(1, 3)), dtype=bool
    )


def draw(run: Path, rows: int = 4, across: int = 2) -> Figure:
    """The first pictures, each beside the maps of both phrases, every map over its own range."""
    indices = range(rows * across)
    maps = heat(run, indices)
    cell, line = (PIXELS - GAP * 3 * across) // (3 * across), 16
    canvas, colours = Canvas(LIGHT, rows * (cell + line)), colormaps["magma"]
    for index in indices:
        row, block = divmod(index, across)
        top, left = row * (cell + line), block * 3 * (cell + GAP)
        canvas.place(UNSEEN.read(index).permute(1, 2, 0).numpy() / 255, left, top, cell)
        for number, text in enumerate(phrases(index), 1):
            own = maps[index, number - 1]
            canvas.place(
                colours((own - own.min()) / max(float(np.ptp(own)), 1e-12))[..., :3],
                left + number * (cell + GAP),
                top,
                cell,
            )
            canvas.label(text, left + number * (cell + GAP), top + cell + 2)
    return canvas.figure()
