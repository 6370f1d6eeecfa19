"""Scenes of `scholarch.data.annotated.scenes` with a label for every patch, and as a folder of pictures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from scholarch.data.annotated.scenes import CLASSES, SIDE, scenes

PATCH = 6
GRID = SIDE // PATCH
_INK = 0.25
"""Share of a patch that ink must cover for the patch to be the digit's."""


@dataclass(frozen=True)
class Scenes:
    """Scenes with their labels.

    Attributes:
        images: [n, 48, 48, 3] uint8.
        patches: [n, 8, 8] int64, numbers within `CLASSES`.
        large: [n] int64, the large digit.
    """

    images: np.ndarray
    patches: np.ndarray
    large: np.ndarray


def compose(count: int, seed: int, *, test: bool) -> Scenes:
    """`count` scenes, the same for the same arguments; those for tests share no digit and no pixel with others."""
    made = scenes(count, seed, test=test)
    rendered = [scene.render() for scene in made]
    return Scenes(
        np.stack([one.image for one in rendered]),
        np.stack([patch_labels(one.mask) for one in rendered]),
        np.array([scene.digit for scene in made], dtype=np.int64),
    )


def write_folder(scenes: Scenes, folder: Path) -> None:
    """PNG files, a folder for each large digit, as `data=FOLDER` reads them."""
    for number, (image, digit) in enumerate(zip(scenes.images, scenes.large, strict=True)):
        place = folder / str(digit)
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"{number:05d}.png")


def patch_labels(owner: np.ndarray) -> np.ndarray:
    """[h, w] classes of pixels to those of patches: the commonest digit where there is ink enough, else background."""
    height, width = owner.shape[0] // PATCH, owner.shape[1] // PATCH
    cells = owner.reshape(height, PATCH, width, PATCH).swapaxes(1, 2).reshape(height, width, -1)
    counts = np.stack([(cells == number).sum(-1) for number in range(len(CLASSES))], axis=-1)
    inked = counts[..., 2:].sum(-1) >= _INK * PATCH**2
    return np.asarray(np.where(inked, 2 + counts[..., 2:].argmax(-1), counts[..., :2].argmax(-1)))
