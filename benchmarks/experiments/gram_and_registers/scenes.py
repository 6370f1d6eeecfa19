"""Small pictures with a label for every patch, composed of the real ones that scikit-learn ships.

A scene is 48 x 48 pixels: a straight border at a random angle parts a crop of one photograph from a
crop of the other, and on it lie one large handwritten digit and two small ones. Nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from scholarch.data.builtin import DigitsSource, PhotosSource
from scholarch.draws import generator

SIDE = 48
PATCH = 6
GRID = SIDE // PATCH
CLASSES = ("temple", "flower", *(f"digit {digit}" for digit in range(10)))
_INK = 0.25
"""Share of a patch that ink must cover for the patch to be the digit's."""
_LARGE, _SMALL = 24, 16
_TEST_DIGITS, _TEST_PHOTO = 0.25, 0.25
"""Shares of the digits, and of each photograph's width, that only test scenes are made of."""


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
    photos, digits = _photos(test), _digits(test)
    made = [_scene(photos, digits, generator(seed, "scene", int(test), number)) for number in range(count)]
    images, patches, large = zip(*made, strict=True)
    return Scenes(np.stack(images), np.stack(patches), np.array(large, dtype=np.int64))


def write_folder(scenes: Scenes, folder: Path) -> None:
    """PNG files, a folder for each large digit, as `data=FOLDER` reads them."""
    for number, (image, digit) in enumerate(zip(scenes.images, scenes.large, strict=True)):
        place = folder / str(digit)
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"{number:05d}.png")


def _photos(test: bool) -> list[Image.Image]:
    source, found = PhotosSource(), []
    for number in range(len(source)):
        pixels = source.read(number).permute(1, 2, 0).numpy()
        border = round(pixels.shape[1] * (1 - _TEST_PHOTO))
        found.append(Image.fromarray(pixels[:, border:] if test else pixels[:, :border]))
    return found


def _digits(test: bool) -> list[tuple[np.ndarray, int]]:
    """([8, 8] uint8, digit), in an order of the file's, whose writers differ from its start to its end."""
    source = DigitsSource()
    border = round(len(source) * (1 - _TEST_DIGITS))
    chosen = range(border, len(source)) if test else range(border)
    return [(source.read(index)[0].numpy(), source.label(index) or 0) for index in chosen]


def _scene(
    photos: Sequence[Image.Image], digits: Sequence[tuple[np.ndarray, int]], draws: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, int]:
    rows, columns = np.mgrid[:SIDE, :SIDE] - (SIDE - 1) / 2
    angle, shift = draws.uniform(0, 2 * np.pi), draws.uniform(-SIDE / 6, SIDE / 6)
    second = rows * np.sin(angle) + columns * np.cos(angle) > shift
    first_crop, second_crop = (_crop(photo, draws) for photo in photos)
    canvas = np.where(second[..., None], second_crop, first_crop)
    owner = second.astype(np.int64)
    free, large = np.ones((SIDE, SIDE), dtype=bool), -1
    for side in (_LARGE, _SMALL, _SMALL):
        pixels, digit = digits[int(draws.integers(len(digits)))]
        top, left = _place(free, side, draws)
        window = slice(top, top + side), slice(left, left + side)
        free[window] = False
        shape = Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC)
        ink = np.asarray(shape, dtype=np.float64) / 255
        below = canvas[window]
        extreme = 255.0 if below.mean() < 128 else 0.0  # so that ink is seen on any background
        colour = 0.7 * extreme + 0.3 * draws.uniform(0, 255, 3)
        canvas[window] = (1 - ink[..., None]) * below + ink[..., None] * colour
        owner[window] = np.where(ink > 0.5, 2 + digit, owner[window])
        large = digit if large < 0 else large
    return canvas.round().astype(np.uint8), patch_labels(owner), large


def _crop(photo: Image.Image, draws: np.random.Generator) -> np.ndarray:
    side = int(draws.integers(SIDE, 3 * SIDE))
    side = min(side, *photo.size)
    left, top = (int(draws.integers(length - side + 1)) for length in photo.size)
    crop = photo.resize((SIDE, SIDE), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
    return np.asarray(crop, dtype=np.float64)


def _place(free: np.ndarray, side: int, draws: np.random.Generator) -> tuple[int, int]:
    """A corner where the square covers least of what is taken, of 20 tries."""
    tries = draws.integers(0, SIDE - side + 1, (20, 2))
    taken = [int((~free[top : top + side, left : left + side]).sum()) for top, left in tries]
    top, left = tries[int(np.argmin(taken))]
    return int(top), int(left)


def patch_labels(owner: np.ndarray) -> np.ndarray:
    """[h, w] classes of pixels to those of patches: the commonest digit where there is ink enough, else background."""
    height, width = owner.shape[0] // PATCH, owner.shape[1] // PATCH
    cells = owner.reshape(height, PATCH, width, PATCH).swapaxes(1, 2).reshape(height, width, -1)
    counts = np.stack([(cells == number).sum(-1) for number in range(len(CLASSES))], axis=-1)
    inked = counts[..., 2:].sum(-1) >= _INK * PATCH**2
    return np.asarray(np.where(inked, 2 + counts[..., 2:].argmax(-1), counts[..., :2].argmax(-1)))
