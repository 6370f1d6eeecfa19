"""Generated shapes with captions: training pictures, and test pictures of combinations that those never show."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from scholarch.data.annotated.face import Annotated, Kind, SplitName
from scholarch.data.shapes import COLOURS, SHAPES, ShapesSource

CLASSES = tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)
"""All combinations, of which a test picture is one that was never seen."""
BACKGROUND = "dark background"


def shapes(address: str) -> dict[SplitName, Annotated]:  # noqa: ARG001 - generated data has no place
    """Class (the large thing, of all combinations), mask (background and shapes) and captions."""
    return {"train": _split(ShapesSource()), "test": _split(ShapesSource(kept_apart=True))}


def _split(source: ShapesSource) -> Annotated:
    def mask(index: int) -> np.ndarray:
        numbers = [0, *(1 + SHAPES.index(thing.shape) for thing in source.things(index))]
        return np.asarray(np.array(numbers, dtype=np.int64)[source.mask(index)])

    known: dict[Kind, Callable[[int], Any]] = {
        "class": lambda index: CLASSES.index(source.things(index)[0].words),
        "mask": mask,
        "captions": source.captions,
    }
    return Annotated(source, known, {"class": CLASSES, "mask": (BACKGROUND, *SHAPES)})
