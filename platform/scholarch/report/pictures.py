"""Pictures of what the model sees and of its features.

Legend: V views, B pictures, C channels, H x W pixels, h x w patches, N = h * w, D width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from scholarch.objectives.monitors import usual_norms
from scholarch.report.theme import DPI, LIGHT, WIDTH, Theme, new_figure

PIXELS = int(WIDTH * DPI)
GAP = 6
_BLOCK_GAP = 24
_LARGEST_CELL = 480
_COVER = "#6b7484"


class Crops(NamedTuple):
    """Views of one name, as they enter the network.

    Attributes:
        name: such as "global".
        images: [V, B, C, H, W], normalised.
        masks: [V, B, N] bool, True = masked; None: nothing is.
        patch: side of a patch in pixels.
    """

    name: str
    images: Tensor
    masks: Tensor | None = None
    patch: int = 1


def to_rgb_images(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """Normalised pictures [..., C, H, W] as [..., H, W, 3] in [0, 1].

    One channel becomes grey; of more than three the first three are shown.
    """
    pixels = images.detach().float().cpu().numpy()
    shape = (-1, 1, 1)
    pixels = pixels * np.asarray(std).reshape(shape) + np.asarray(mean).reshape(shape)
    channels = pixels.shape[-3]
    if channels < 3:
        pixels = np.repeat(pixels[..., :1, :, :], 3, axis=-3)
    return np.asarray(np.moveaxis(pixels[..., :3, :, :], -3, -1).clip(0, 1))


def pca_colours(patches: Tensor) -> np.ndarray:
    """The three main directions of patch features as colours (reference.md 9.11, without its classifier).

    Whitened principal components x of all pictures together, shown as sigmoid(2x). Tokens whose
    norm stands far out (reference.md 9.9) are coloured but do not choose the directions, and each
    direction's sign is fixed, so that colours can be compared from one time to the next.

    Args:
        patches: [B, N, D].

    Returns:
        [B, N, 3] in (0, 1); directions without spread are 0.5.
    """
    features = patches.detach().double().cpu().numpy()
    tokens = features.reshape(-1, features.shape[-1])  # [B N, D]
    norms = np.linalg.norm(tokens, axis=1)
    low, high = usual_norms(norms)
    usual = tokens[(low <= norms) & (norms <= high)]
    centre = usual.mean(axis=0)
    _, sizes, directions = np.linalg.svd(usual - centre, full_matrices=False)
    deviations = sizes / math.sqrt(max(len(usual) - 1, 1))
    colours = np.full((len(tokens), 3), 0.5)
    smallest = 1e-6 * max(float(np.abs(usual).max()), 1e-12)
    for number in range(min(3, len(deviations))):
        if deviations[number] <= smallest:
            break
        direction = directions[number]
        direction = direction * np.sign(direction[np.abs(direction).argmax()])
        projected = (tokens - centre) @ direction / deviations[number]
        colours[:, number] = 1 / (1 + np.exp(-2 * projected.clip(-50, 50)))
    return colours.reshape(*features.shape[:2], 3)


def attention_maps(attention: Tensor, registers: int, grid: tuple[int, int]) -> np.ndarray:
    """How CLS attends to patches (reference.md 9.9).

    Args:
        attention: [B, heads, 1 + R + N], softmax row of CLS.
        registers: R, whose columns are dropped with that of CLS.
        grid: (h, w).

    Returns:
        [B, heads, h, w].
    """
    patches = attention.detach().float().cpu().numpy()[..., 1 + registers :]
    return np.asarray(patches.reshape(*patches.shape[:2], *grid))


def draw_crops(
    crops: Sequence[Crops], mean: Sequence[float], std: Sequence[float], theme: Theme = LIGHT, rows: int = 3
) -> Figure:
    """Crops of the first samples, one sample in a row, in their true sizes to each other.

    Masked patches are covered, as the student does not see them.
    """
    largest = max(view.images.shape[-1] for view in crops)
    # Small crops are stacked beside large ones.
    stacks = [max(1, largest // view.images.shape[-1]) for view in crops]
    columns = [math.ceil(len(view.images) / stack) for view, stack in zip(crops, stacks, strict=True)]
    units = sum(count * view.images.shape[-1] for count, view in zip(columns, crops, strict=True))
    gaps = GAP * sum(count - 1 for count in columns) + _BLOCK_GAP * (len(crops) - 1)
    scale = min((PIXELS - gaps) / units, _LARGEST_CELL / largest)
    count = min(rows, crops[0].images.shape[1])
    cells = [int(view.images.shape[-1] * scale) for view in crops]
    down = [math.ceil(len(view.images) / across) for view, across in zip(crops, columns, strict=True)]
    row_height = max(n * (cell + GAP) for n, cell in zip(down, cells, strict=True)) + GAP
    canvas = Canvas(theme, count * row_height)
    left = 0
    for view, across, cell in zip(crops, columns, cells, strict=True):
        images = to_rgb_images(view.images, mean, std)  # [V, B, H, W, 3]
        if view.masks is not None:
            images = _covered(images, view.masks.detach().cpu().numpy(), view.patch)
        canvas.title(f"{view.name}, {view.images.shape[-1]} pixels", left)
        for row in range(count):
            for number, image in enumerate(images[:, row]):
                x, y = number % across, number // across
                canvas.place(image, left + x * (cell + GAP), row * row_height + y * (cell + GAP), cell)
        left += across * (cell + GAP) - GAP + _BLOCK_GAP
    return canvas.figure()


def draw_pca(
    images: Tensor,
    patches: Tensor,
    grid: tuple[int, int],
    mean: Sequence[float],
    std: Sequence[float],
    theme: Theme = LIGHT,
) -> Figure:
    """Pictures [B, C, H, W] above, the main directions of their patch features [B, N, D] below."""
    seen = to_rgb_images(images, mean, std)
    colours = pca_colours(patches).reshape(len(seen), *grid, 3)
    cell = min((PIXELS - GAP * (len(seen) - 1)) // len(seen), _LARGEST_CELL)
    canvas = Canvas(theme, 2 * cell + GAP)
    for number, (picture, features) in enumerate(zip(seen, colours, strict=True)):
        canvas.place(picture, number * (cell + GAP), 0, cell)
        canvas.place(features, number * (cell + GAP), cell + GAP, cell)
    return canvas.figure()


def fitted(image: np.ndarray, side: int) -> tuple[int, int]:
    """Height and width in pixels of [h, w, ...] whose longer side is made `side` long."""
    height, width = (max(1, round(side * length / max(image.shape[:2]))) for length in image.shape[:2])
    return height, width


class Canvas:
    """Pixels of a figure, on which pictures are placed without any blurring by the drawing library."""

    def __init__(self, theme: Theme, height: int) -> None:
        self._theme = theme
        self._pixels = np.empty((height, PIXELS, 3))
        self._pixels[:] = to_rgb(theme.background)
        self._titles: list[tuple[str, int]] = []
        self._labels: list[tuple[str, int, int]] = []

    def place(self, image: np.ndarray, left: int, top: int, side: int) -> None:
        """Put [h, w, 3] in [0, 1] into a square, its longer side filling it."""
        height, width = fitted(image, side)
        # Enlarged pixels and patches keep their edges.
        method = Image.Resampling.NEAREST if height > image.shape[0] else Image.Resampling.BOX
        resized = Image.fromarray((image * 255).round().astype(np.uint8)).resize((width, height), method)
        top, left = top + (side - height) // 2, left + (side - width) // 2
        self._pixels[top : top + height, left : left + width] = np.asarray(resized) / 255

    def title(self, text: str, left: int) -> None:
        """A heading above what begins at `left`."""
        self._titles.append((text, left))

    def label(self, text: str, left: int, top: int) -> None:
        """A small line that begins at this pixel."""
        self._labels.append((text, left, top))

    def figure(self) -> Figure:
        """The figure: headings, then the pixels as they are."""
        head = 44 if self._titles else 0
        height = len(self._pixels) + head
        figure = new_figure(self._theme, height / (PIXELS / WIDTH))
        figure.figimage(self._pixels, 0, 0, origin="upper")
        for text, left in self._titles:
            figure.text(
                left / PIXELS,
                1 - 10 / height,
                text,
                fontsize=9,
                fontweight="bold",
                color=self._theme.text,
                va="top",
            )
        for text, left, top in self._labels:
            place = left / PIXELS, 1 - (head + top) / height
            figure.text(*place, text, fontsize=7, color=self._theme.muted, va="top")
        return figure


def _covered(images: np.ndarray, masks: np.ndarray, patch: int) -> np.ndarray:
    """[V, B, H, W, 3] with masked patches [V, B, N] nearly hidden behind a plain colour."""
    height, width = images.shape[2] // patch, images.shape[3] // patch
    grid = masks.reshape(*masks.shape[:2], height, width)
    cover = grid.repeat(patch, axis=2).repeat(patch, axis=3)[..., None]
    colour = np.asarray(to_rgb(_COVER))
    return np.where(cover, 0.1 * images + 0.9 * colour, images)
