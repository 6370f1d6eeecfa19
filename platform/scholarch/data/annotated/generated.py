"""Data sets of generated scenes: stills, the same thing seen twice, and videos."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from scholarch.data.annotated.face import Annotated, Frame, Kind, Match, Relevance, SplitName
from scholarch.data.annotated.scenes import CLASSES, SIDE, Rendered, Scene, scenes
from scholarch.data.source import listing_fingerprint
from scholarch.draws import generator

COUNTS: dict[SplitName, int] = {"train": 400, "test": 200}
INSTANCES = 30
VIDEOS, FRAMES = 8, 12
SEED = 0
POINTS = 6
"""Of each object, in two frames of a video, at most."""


class Pictures:
    """Pictures in memory: a Source.

    Args:
        images: [H, W, 3] uint8 each.
        name: of the data set.
    """

    def __init__(self, images: Sequence[np.ndarray], name: str) -> None:
        self.images, self._name = list(images), name

    @property
    def classes(self) -> list[str] | None:
        return None

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int) -> Tensor:
        return torch.from_numpy(self.images[index]).permute(2, 0, 1)

    def label(self, index: int) -> int | None:  # noqa: ARG002
        return None

    def name(self, index: int) -> str:
        return f"{self._name}/{index:05d}"

    def fingerprint(self) -> str:
        return listing_fingerprint((image.tobytes(), len(image)) for image in self.images)


def stills(address: str) -> dict[SplitName, Annotated]:  # noqa: ARG001 - generated data has no place
    """Scenes with class (the large digit), mask (background and digit), depth and boxes."""
    return {split: _stills(split) for split in COUNTS}


@cache
def _stills(split: SplitName) -> Annotated:
    made = scenes(COUNTS[split], SEED, test=split == "test")
    rendered = [scene.render() for scene in made]
    known: dict[Kind, Callable[[int], Any]] = {
        "class": lambda index: made[index].digit,
        "mask": lambda index: np.minimum(rendered[index].mask, 2),
        "depth": lambda index: rendered[index].depth,
        "boxes": lambda index: rendered[index].boxes(),
    }
    return Annotated(
        Pictures([r.image for r in rendered], f"scenes/{split}"),
        known,
        {"class": [str(digit) for digit in range(10)], "mask": [*CLASSES[:2], "digit"]},
    )


def instances(address: str) -> dict[SplitName, Annotated]:  # noqa: ARG001
    """For each scene a query, two easy views (another light), two hard ones (a part, enlarged) and one of junk.

    A `test` split alone: nothing is learnt.
    """
    return {"test": _instances()}


@cache
def _instances() -> Annotated:
    images, views = list[np.ndarray](), ("query", "easy", "easy", "hard", "hard", "junk")
    for number, scene in enumerate(scenes(INSTANCES, SEED, test=True)):
        for place, view in enumerate(views):
            images.append(_view(scene.render().image, view, generator(SEED, "instance", number, place)))
    each = len(views)

    def relevance(index: int) -> Relevance | None:
        if index % each:
            return None
        numbers = index + np.arange(1, each, dtype=np.int64)
        return Relevance(easy=numbers[:2], hard=numbers[2:4], junk=numbers[4:])

    return Annotated(Pictures(images, "scenes-instances"), {"relevance": relevance})


def _view(image: np.ndarray, view: str, draws: np.random.Generator) -> np.ndarray:
    share = {"query": 1.0, "easy": 1.0, "hard": 0.75, "junk": 0.4}[view]
    side = round(SIDE * share)
    top, left = (int(draws.integers(SIDE - side + 1)) for _ in range(2))
    box = (left, top, left + side, top + side)
    part = Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BICUBIC, box=box)
    gain = draws.uniform(0.7, 1.2) if view != "query" else 1.0
    return np.clip(np.asarray(part) * gain, 0, 255).round().astype(np.uint8)


def videos(address: str) -> dict[SplitName, Annotated]:  # noqa: ARG001
    """Videos in which digits move: objects of every frame, and points of the first that are in the last.

    A `test` split alone: nothing is learnt.
    """
    return {"test": _videos()}


@cache
def _videos() -> Annotated:
    made = scenes(VIDEOS, SEED, test=True)
    frames = [scene.render(number) for scene in made for number in range(FRAMES)]

    def objects(index: int) -> Frame:
        return Frame(f"{index // FRAMES:02d}", frames[index].objects)

    def matches(index: int) -> list[Match]:
        video, number = divmod(index, FRAMES)
        if number:
            return []
        last = index + FRAMES - 1
        draws = generator(SEED, "matches", video)
        return _matches(made[video], frames[index], frames[last], last, draws)

    pictures = Pictures([frame.image for frame in frames], "scenes-videos")
    return Annotated(pictures, {"objects": objects, "matches": matches})


def _matches(
    scene: Scene, here: Rendered, there: Rendered, other: int, draws: np.random.Generator
) -> list[Match]:
    found = []
    for number, sprite in enumerate(scene.sprites, start=1):
        move = np.subtract(sprite.corner(FRAMES - 1), sprite.corner(0))
        before = np.argwhere(here.objects == number)
        after = before + move
        seen = there.objects[after[:, 0], after[:, 1]] == number
        chosen = np.sort(draws.permutation(int(seen.sum()))[:POINTS])
        if len(chosen):
            # Points are centres of pixels: row and column to x and y.
            points = [(p[seen][chosen][:, ::-1] + 0.5).astype(np.float32) for p in (before, after)]
            found.append(Match(other, points[0], points[1], float(len(sprite.ink))))
    return found
