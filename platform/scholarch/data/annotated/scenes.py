"""Small pictures of which everything is known, composed of the real ones that scikit-learn ships.

A scene is 48 x 48 pixels: a straight border at a random angle parts a crop of one photograph from a
crop of the other, and on it lie one large handwritten digit and two small ones, which may move. Class,
mask, depth, boxes and motion of every pixel are exact. Nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from scholarch.data.builtin import DigitsSource, PhotosSource
from scholarch.draws import generator

SIDE = 48
CLASSES = ("temple", "flower", *(f"digit {digit}" for digit in range(10)))
_LARGE, _SMALL = 24, 16
_TEST_DIGITS, _TEST_PHOTO = 0.25, 0.25
"""Shares of the digits, and of each photograph's width, that only test scenes are made of."""
_METRES = (8.0, 6.0, 2.0, 4.0, 4.0)
"""Distance of the top of temple and flower, which come nearer by 2 m downwards, and of each digit."""
_SLOPE = 2.0


@dataclass(frozen=True)
class Sprite:
    """A digit that lies on the background.

    Attributes:
        ink: [s, s] in [0, 1].
        digit: 0 to 9.
        top, left: of its square at first.
        colour: [3], 0 to 255.
        speed: pixels down and to the right from one frame to the next.
    """

    ink: np.ndarray
    digit: int
    top: int
    left: int
    colour: np.ndarray
    speed: tuple[int, int] = (0, 0)

    def corner(self, frame: int) -> tuple[int, int]:
        """Top and left in a frame; it turns back where the picture ends."""
        room = SIDE - len(self.ink)
        there = []
        for start, speed in zip((self.top, self.left), self.speed, strict=True):
            place = (start + speed * frame) % (2 * room)
            there.append(min(place, 2 * room - place))
        return there[0], there[1]


@dataclass(frozen=True)
class Rendered:
    """A scene at one moment.

    Attributes:
        image: [48, 48, 3] uint8.
        mask: [48, 48] int64, numbers within `CLASSES`.
        objects: [48, 48] uint8, 1 for the large digit, 2 and 3 for the small ones, 0 elsewhere.
        depth: [48, 48] float32, metres.
    """

    image: np.ndarray
    mask: np.ndarray
    objects: np.ndarray
    depth: np.ndarray

    def boxes(self) -> np.ndarray:
        """[k, 4] float32, left, top, right, bottom of each digit that is seen."""
        found = []
        for number in np.unique(self.objects[self.objects > 0]):
            rows, columns = np.nonzero(self.objects == number)
            found.append((columns.min(), rows.min(), columns.max() + 1, rows.max() + 1))
        return np.array(found, dtype=np.float32).reshape(-1, 4)


@dataclass(frozen=True)
class Scene:
    """What a scene is made of.

    Attributes:
        background: [48, 48, 3] float64, 0 to 255.
        second: [48, 48] bool, where it shows the flower.
        sprites: the large digit first; later ones lie on earlier ones.
    """

    background: np.ndarray
    second: np.ndarray
    sprites: Sequence[Sprite]

    @property
    def digit(self) -> int:
        """The large one."""
        return self.sprites[0].digit

    def render(self, frame: int = 0) -> Rendered:
        """The scene at a moment."""
        canvas, mask = self.background.copy(), self.second.astype(np.int64)
        objects = np.zeros((SIDE, SIDE), dtype=np.uint8)
        for number, sprite in enumerate(self.sprites, start=1):
            side, (top, left) = len(sprite.ink), sprite.corner(frame)
            window = slice(top, top + side), slice(left, left + side)
            ink = sprite.ink
            canvas[window] = (1 - ink[..., None]) * canvas[window] + ink[..., None] * sprite.colour
            mask[window] = np.where(ink > 0.5, 2 + sprite.digit, mask[window])
            objects[window] = np.where(ink > 0.5, number, objects[window])
        far = np.where(self.second, _METRES[1], _METRES[0]) - _SLOPE * np.linspace(0, 1, SIDE)[:, None]
        depth = np.where(objects > 0, np.array((0.0, *_METRES[2:]))[objects], far).astype(np.float32)
        return Rendered(canvas.round().astype(np.uint8), mask, objects, depth)


def scenes(count: int, seed: int, *, test: bool) -> list[Scene]:
    """`count` scenes, the same for the same arguments; those for tests share no digit and no pixel with others."""
    photos, digits = _photos(test), _digits(test)
    return [_scene(photos, digits, generator(seed, "scene", int(test), number)) for number in range(count)]


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
) -> Scene:
    rows, columns = np.mgrid[:SIDE, :SIDE] - (SIDE - 1) / 2
    angle, shift = draws.uniform(0, 2 * np.pi), draws.uniform(-SIDE / 6, SIDE / 6)
    second = rows * np.sin(angle) + columns * np.cos(angle) > shift
    first_crop, second_crop = (_crop(photo, draws) for photo in photos)
    background = np.where(second[..., None], second_crop, first_crop)
    canvas, free = background.copy(), np.ones((SIDE, SIDE), dtype=bool)
    sprites = list[Sprite]()
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
        sprites.append(Sprite(ink, digit, top, left, colour))
    speeds = [(int(down), int(right)) for down, right in draws.integers(-3, 4, (len(sprites), 2))]
    moving = [
        Sprite(s.ink, s.digit, s.top, s.left, s.colour, v) for s, v in zip(sprites, speeds, strict=True)
    ]
    return Scene(background, second, moving)


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
