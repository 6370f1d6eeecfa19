"""Generated pictures with captions: a large coloured shape and a small one, each at a named place.

A picture is 48 x 48 pixels with a dark ground. Some combinations of colour and shape are kept apart: `shapes`
never shows a large one of them, and `shapes-unseen` shows no other. Nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from scholarch.data.source import Labels, listing_fingerprint
from scholarch.draws import generator

SIDE, CELL = 48, 16
COLOURS = {
    "red": (255, 80, 80),
    "green": (30, 190, 60),
    "blue": (90, 130, 255),
    "yellow": (165, 145, 20),
    "purple": (205, 80, 225),
    "grey": (132, 132, 132),
}
"""About equally bright: in grey, colours are not told apart, and what is left is shape."""
SHAPES = ("circle", "square", "triangle", "cross", "ring", "bar")
PLACES = {
    "top left": (0, 0), "top": (0, 1), "top right": (0, 2),
    "left": (1, 0), "right": (1, 2),
    "bottom left": (2, 0), "bottom": (2, 1), "bottom right": (2, 2),
}  # fmt: skip
"""Row and column of three."""
APART = tuple(
    (one, two)
    for (one, a), (two, b) in product(PLACES.items(), repeat=2)
    if max(abs(a[0] - b[0]), abs(a[1] - b[1])) == 2
)
"""Places of the large thing and the small one: on different sides, so that neither hides the other."""
LARGE, SMALL = 14.0, 6.0
"""Half of a shape's extent in pixels."""
COUNTS = {False: 4096, True: 512}
"""Pictures of combinations that are seen, and of those that are not."""
EVERY = 6
"""One in so many combinations is kept apart: one of each colour, and one of each shape."""

_PIXELS = np.mgrid[:SIDE, :SIDE] + 0.5
"""[2, 48, 48] middle of each pixel."""


def unseen(colour: str, shape: str) -> bool:
    """Whether a combination is kept apart."""
    return (list(COLOURS).index(colour) + SHAPES.index(shape)) % EVERY == 0


def combinations(kept_apart: bool) -> list[tuple[str, str]]:
    """(colour, shape) of those that are kept apart, or of the others."""
    return [(c, s) for c in COLOURS for s in SHAPES if unseen(c, s) == kept_apart]


class Thing(NamedTuple):
    """A shape in a picture."""

    colour: str
    shape: str
    place: str
    half: float

    @property
    def words(self) -> str:
        """Such as `red circle`."""
        return f"{self.colour} {self.shape}"


class ShapesSource:
    """See the module; labelled by the large thing, with eight captions each.

    Args:
        kept_apart: the combinations that the other source never shows.
        seed: of all draws.
    """

    def __init__(self, labels: Labels = "auto", *, kept_apart: bool = False, seed: int = 0) -> None:
        self.labelled, self.kept_apart, self.seed = labels != "none", kept_apart, seed
        self.pairs = combinations(kept_apart)

    @property
    def classes(self) -> list[str] | None:
        return [f"{colour} {shape}" for colour, shape in self.pairs] if self.labelled else None

    def __len__(self) -> int:
        return COUNTS[self.kept_apart]

    def things(self, index: int) -> tuple[Thing, Thing]:
        """The large one and the small one."""
        draws = self._draws(index, "things")
        colour, shape = self.pairs[index % len(self.pairs)]
        first, second = APART[int(draws.integers(len(APART)))]
        others = [pair for pair in combinations(False) if colour != pair[0] and shape != pair[1]]
        other = others[int(draws.integers(len(others)))]
        return Thing(colour, shape, first, LARGE), Thing(*other, second, SMALL)

    def read(self, index: int) -> Tensor:
        return torch.from_numpy(self._painted(index)[0]).permute(2, 0, 1)

    def mask(self, index: int) -> np.ndarray:
        """[48, 48] int64: 0 background, 1 the large thing, 2 the small one."""
        return self._painted(index)[1]

    def _painted(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        draws = self._draws(index, "pixels")
        # One grey, and noise: a ground that tells pictures apart would be what self-supervision learns.
        canvas = draws.uniform(20, 60) + draws.normal(0, 6, (SIDE, SIDE, 3))
        owner = np.zeros((SIDE, SIDE), dtype=np.int64)
        # The small one is painted first: what is named first is never hidden.
        for number, thing in reversed(list(enumerate(self.things(index), 1))):
            centre = np.array(PLACES[thing.place]) * CELL + CELL / 2 + draws.uniform(-2, 2, 2)
            centre = centre.clip(thing.half, SIDE - thing.half)
            inside = _inside(thing.shape, *(_PIXELS - centre[:, None, None]) / thing.half)
            canvas[inside] = COLOURS[thing.colour] + draws.normal(0, 12, 3)
            owner[inside] = number
        return canvas.clip(0, 255).round().astype(np.uint8), owner

    def captions(self, index: int) -> Sequence[str]:
        """What a person might say of a picture: both things, one of them alone, colours or shapes alone."""
        large, small = self.things(index)
        return (
            f"a large {large.words} in the {large.place} and a small {small.words} in the {small.place}",
            f"a little {small.words} at the {small.place}, a {large.words} at the {large.place}",
            f"a picture of a {large.words} with a little {small.words}",
            f"a {large.words}",
            f"a small {small.words}",
            f"a {large.shape} in the {large.place}",
            f"something {large.colour} in the {large.place}",
            f"a {large.shape} and a small {small.shape}",
        )

    def label(self, index: int) -> int | None:
        return index % len(self.pairs) if self.labelled else None

    def name(self, index: int) -> str:
        return f"{'shapes-unseen' if self.kept_apart else 'shapes'}/{index:05d}"

    def fingerprint(self) -> str:
        told = f"{self.seed} {self.pairs} {self.labelled} {LARGE} {SMALL}".encode()
        shown = b"".join(self._painted(index)[0].tobytes() for index in range(2))
        said = "\n".join(self.captions(0)).encode()
        return listing_fingerprint([(told, len(self)), (shown, 2), (said, 1)])

    def _draws(self, index: int, what: str) -> np.random.Generator:
        return generator(self.seed, "shapes", int(self.kept_apart), index, what)


def _inside(shape: str, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Where a shape is, by places from -1 to 1."""
    if shape == "square":
        return np.asarray(np.maximum(abs(rows), abs(columns)) <= 0.85)
    if shape == "triangle":
        return np.asarray((abs(rows) <= 0.9) & (abs(columns) <= (rows + 0.9) / 1.8))
    if shape == "bar":
        return np.asarray((abs(columns) <= 1) & (abs(rows) <= 0.4))
    if shape == "cross":
        tall, wide = abs(rows), abs(columns)
        return np.asarray((np.maximum(tall, wide) <= 1) & (np.minimum(tall, wide) <= 0.32))
    distance = np.hypot(rows, columns)
    return np.asarray((distance <= 1) & (distance >= (0.5 if shape == "ring" else 0)))
