"""Pools of handwritten digits with known near-duplicates and a long tail, and curations of them in this process.

The digits are cut into two halves, so that what is chosen on one can be scored on the other.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image, ImageEnhance, ImageOps
from scholarch.cli import main
from scholarch.cli.curating import embedder
from scholarch.curation.pipeline import Curation, Outcome
from scholarch.curation.recipe import load_curation
from scholarch.curation.workers import Here
from scholarch.data.builtin import DigitsSource
from scholarch.data.catalog import open_source
from scholarch.storage.objects import open_objects

SIDE = 32
KINDS = ("crop", "recompression", "flip", "colour")


@cache
def _digits() -> tuple[list[Image.Image], np.ndarray]:
    source = DigitsSource()
    pictures = [Image.fromarray(source.read(number)[0].numpy()) for number in range(len(source))]
    large = [picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC) for picture in pictures]
    return large, np.array([source.label(number) for number in range(len(source))])


def half_of(digit: int, half: int) -> list[int]:
    """Numbers of a digit's pictures in a half: every second one of them."""
    found: list[int] = np.flatnonzero(_digits()[1] == digit)[half::2].tolist()
    return found


def picture_of(number: int) -> Image.Image:
    """A digit, enlarged."""
    return _digits()[0][number]


def recompressed(picture: Image.Image, quality: int) -> Image.Image:
    """The same after JPEG."""
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality)
    return Image.open(file).copy()


def changed(picture: Image.Image, kind: str, rng: np.random.Generator) -> Image.Image:
    """A near-duplicate of one kind."""
    side = picture.width
    if kind == "crop":  # 7/8 of each side
        left, top = rng.integers(0, side // 8 + 1, 2)
        cut = side - side // 8
        box = (left, top, left + cut, top + cut)
        return picture.crop(box).resize((side, side), Image.Resampling.BICUBIC)
    if kind == "recompression":
        return recompressed(picture, 25)
    if kind == "flip":
        return ImageOps.mirror(picture)
    return ImageEnhance.Contrast(ImageEnhance.Brightness(picture).enhance(0.8)).enhance(0.8)


def train(run: Path, data: Path, *overrides: str) -> Path:
    """A backbone by `demo/digits` on the pictures of a folder or a selection, all of them and without their labels."""
    if not (run / "export").is_dir():
        again = ["--resume"] if (run / "checkpoints").is_dir() else []
        what = [f"data={data}", "data.labels=none", "training.workers=0", *overrides]
        code = main(["pretrain", "--recipe", "demo/digits", "--run", str(run), *again, *what])
        if code:
            sys.exit(code)
    return run


def curated(run: Path, pool: Path, model: Path, recipe: dict[str, Any], *overrides: str) -> Outcome:
    """Carries out a recipe over a pool; steps that are done are not done again."""
    plain = {
        "pool": {"digits": {"source": str(pool), "labels": "none"}},
        "embed": {"model": str(model)},
        **recipe,
    }
    run.mkdir(parents=True, exist_ok=True)
    (run / "recipe.yaml").write_text(yaml.safe_dump(plain))
    read = load_curation(str(run / "recipe.yaml"), list(overrides))
    embedders = {str(model): embedder(str(model), read)}
    opened = open_source(str(pool), "none")
    return Curation(
        read, open_objects(str(run)), Here(), lambda _: opened, embedders, lambda _: None
    ).carry_out()


def names_of(found: Outcome, rows: Sequence[int] | np.ndarray) -> list[tuple[int, str, str]]:
    """Of rows of the pool: the digit, the picture that it comes from, the kind of copy or nothing."""
    source = found.rows.sets[0].source
    parts = []
    for row in rows:
        path = Path(source.name(int(found.rows.numbers[row])))
        origin, _, kind = path.stem.partition("-")
        parts.append((int(path.parent.name), origin, kind))
    return parts
