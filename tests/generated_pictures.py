"""Small JPEGs, drawn from a seed, quickly made."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image


def picture_files(count: int, side: int = 48, seed: int = 0, classes: int = 0) -> Iterator[tuple[str, bytes]]:
    """(name, JPEG) of `count` pictures, in folders of 1,000 or of one class each."""
    grids = np.random.default_rng(seed).integers(0, 256, (512, 6, 6, 3), dtype=np.uint8)
    for number in range(count):
        picture = Image.fromarray(grids[number % 512]).resize((side, side), Image.Resampling.BICUBIC)
        # Its own number, so that no two are equal.
        picture.paste((number % 256, number // 256 % 256, number // 65536), (0, 0, 16, 16))
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=85)
        folder = f"class-{number % classes}" if classes else f"{number // 1000:04d}"
        yield f"{folder}/{number:07d}.jpg", file.getvalue()


def write_pictures(folder: Path, count: int, side: int = 48, seed: int = 0, classes: int = 0) -> None:
    """The same as files below a folder."""
    for name, data in picture_files(count, side, seed, classes):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
