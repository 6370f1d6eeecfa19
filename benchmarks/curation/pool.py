"""A long-tailed pool of handwritten digits with known near-duplicates, and curations of it in this process."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import yaml
from PIL import Image, ImageEnhance, ImageOps
from scholarch.cli import main
from scholarch.cli.curating import embedder
from scholarch.curation.pipeline import Curation, Outcome
from scholarch.curation.recipe import load_curation
from scholarch.curation.workers import Here
from scholarch.data.catalog import open_source
from scholarch.storage.objects import open_objects

KINDS = ("crop", "recompression", "flip", "colour")
_SKIPPED, _HEAD, _TAIL = 50, 128, 0.7
_RECIPE = {
    "deduplicate": {"hash_bits": None, "neighbours": {"k": 16}, "keep": "first"},
    "cluster": {
        "levels": [
            {"clusters": 60, "iterations": 20, "rounds": 4, "sample": 2},
            {"clusters": 12, "iterations": 20, "rounds": 4, "sample": 3},
        ]
    },
    "mix": {"digits": {"of": "sample"}},
}


def changed(picture: Image.Image, kind: str, rng: np.random.Generator) -> Image.Image:
    """A near-duplicate of one kind."""
    side = picture.width
    if kind == "crop":  # 7/8 of each side
        left, top = rng.integers(0, side // 8 + 1, 2)
        cut = side - side // 8
        box = (left, top, left + cut, top + cut)
        return picture.crop(box).resize((side, side), Image.Resampling.BICUBIC)
    if kind == "recompression":
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=25)
        return Image.open(file).copy()
    if kind == "flip":
        return ImageOps.mirror(picture)
    return ImageEnhance.Contrast(ImageEnhance.Brightness(picture).enhance(0.8)).enhance(0.8)


def make(folder: Path) -> None:
    """`pool` in folders of their class; every fourth picture has a copy of each kind.

    Of digit d the pool has 128 x 0.7^d different pictures.
    """
    from sklearn.datasets import load_digits

    digits, rng = load_digits(), np.random.default_rng(0)
    for digit in range(10):
        place = folder / "pool" / str(digit)
        place.mkdir(parents=True, exist_ok=True)
        numbers = np.flatnonzero(digits.target == digit)[_SKIPPED:][: round(_HEAD * _TAIL**digit)]
        for turn, number in enumerate(numbers.tolist()):
            values = (digits.images[number] * 255 / 16).astype(np.uint8)
            picture = Image.fromarray(values).resize((32, 32), Image.Resampling.BICUBIC)
            picture.save(place / f"{number:04d}.png")
            for kind in KINDS if turn % 4 == 0 else ():
                changed(picture, kind, rng).save(place / f"{number:04d}-{kind}.png")


def train(run: Path) -> Path:
    """A backbone by `demo/digits`."""
    code = main(["pretrain", "--recipe", "demo/digits", "--run", str(run)])
    if code:
        sys.exit(code)
    return run


def steps_of(run: Path) -> int:
    """That a run was trained for."""
    steps: int = yaml.safe_load((run / "recipe.yaml").read_text())["training"]["steps"]
    return steps


def curated(work: Path, model: Path, *overrides: str) -> Outcome:
    """Carries out the recipe; steps that are done are not done again."""
    pool = str(work / "pool")
    plain = {"pool": {"digits": pool}, "embed": {"model": str(model)}, "sample": {"pictures": 1}, **_RECIPE}
    (work / "recipe.yaml").write_text(yaml.safe_dump(plain))
    recipe = load_curation(str(work / "recipe.yaml"), list(overrides))
    embedders = {str(model): embedder(str(model), recipe)}
    opened, run = open_source(pool), open_objects(str(work / "run"))
    return Curation(recipe, run, Here(), lambda _: opened, embedders, lambda _: None).carry_out()


def names_of(found: Outcome, rows: Sequence[int] | np.ndarray) -> list[tuple[int, str, str]]:
    """Of rows of the pool: the digit, the picture that it comes from, the kind of copy or nothing."""
    source = found.rows.sets[0].source
    parts = []
    for row in rows:
        path = Path(source.name(int(found.rows.numbers[row])))
        origin, _, kind = path.stem.partition("-")
        parts.append((int(path.parent.name), origin, kind))
    return parts
