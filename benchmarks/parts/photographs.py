"""Generated pictures that are as large as photographs, and about as hard to decode."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image


def jpeg(number: int, height: int, width: int) -> bytes:
    """A JPEG of quality 90 with coarse shapes and fine noise, about as large as a photograph's."""
    drawn = np.random.default_rng(number)
    coarse = Image.fromarray((drawn.random((height // 16 + 2, width // 16 + 2, 3)) * 255).astype(np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(np.float32)
    pixels = np.clip(smooth + drawn.normal(0, 6, smooth.shape), 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def write_photographs(folder: Path, count: int, height: int, width: int) -> None:
    """As files in a folder, which is made."""
    folder.mkdir(parents=True)
    for number in range(count):
        (folder / f"{number:05d}.jpg").write_bytes(jpeg(number, height, width))
