"""What a backbone makes of one picture: attention, similarity to a point, features, outlier tokens.

Legend: C channels, H x W pixels, h x w patches, N = h * w, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F

from scholarch.data.views import WholeView
from scholarch.data.words import Words
from scholarch.models.features import Backbone, Views
from scholarch.models.vit import VisionTransformer
from scholarch.objectives.monitors import usual_norms
from scholarch.report import pictures
from scholarch.report.page import Content, Report, Section, Tile, write_page
from scholarch.report.pictures import PIXELS, Canvas
from scholarch.report.theme import LIGHT, Theme

_MARK = "#ff2d55"


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One picture at one size, and what the model makes of it.

    Attributes:
        image: [C, H, W], normalised.
        patches: [N, D], after the final norm.
        norms: [h, w], of patch tokens before the final norm, which would make them alike.
        grid: (h, w).
    """

    image: Tensor
    patches: Tensor
    norms: np.ndarray
    grid: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """Everything that is drawn.

    Attributes:
        scenes: the picture at each size; maps other than the features are of the first.
        attention: [heads, h, w], CLS to patches in the last block; None where a model has none.
        point: (row, column) of the patch that others are compared with.
        similarity: [h, w], cosines with that patch.
        threshold: norm above which a token is an outlier.
        outliers: [h, w] bool.
        said: [h, w] by text, cosines of patches with it less those with an empty one.
    """

    scenes: Sequence[Scene]
    attention: np.ndarray | None
    point: tuple[int, int]
    similarity: np.ndarray
    threshold: float
    outliers: np.ndarray
    said: Mapping[str, np.ndarray] = field(default_factory=dict)


def scene(backbone: Backbone, image: Tensor) -> Scene:
    """Features of one normalised picture [C, H, W] on the backbone's device."""
    with torch.inference_mode():
        (features,) = backbone([Views(image[None])])
    height, width = backbone.grid(image[None])
    tokens = features.prenorm[0, -height * width :].float()  # after CLS and registers, where there are any
    norms = tokens.norm(dim=-1).reshape(height, width).cpu().numpy()
    return Scene(image=image, patches=features.patches[0].float(), norms=norms, grid=(height, width))


def similarity_to(patches: Tensor, grid: tuple[int, int], point: tuple[int, int]) -> np.ndarray:
    """Cosines [h, w] of patches [N, D] with the one at (row, column)."""
    unit = F.normalize(patches.float(), dim=-1)
    row, column = point
    return (unit @ unit[row * grid[1] + column]).reshape(grid).cpu().numpy()


def inspect_picture(
    backbone: Backbone,
    picture: Tensor,
    *,
    sizes: Sequence[int],
    mean: Sequence[float],
    std: Sequence[float],
    point: tuple[float, float] = (0.5, 0.5),
    threshold: float | None = None,
    texts: Sequence[str] = (),
    window: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Inspection:
    """Runs the backbone, which is in evaluation mode, on a picture at several sizes.

    Args:
        picture: [C, H, W], uint8 or float in [0, 1].
        sizes: pixels of the shorter side, multiples of the patch.
        point: (x, y) as shares of width and height, in [0, 1).
        threshold: norm above which a token is an outlier (150 for DINOv2 g/14, reference.md 9.9; it is
            another one for every model); None: 6 deviations above the median (`usual_norms`).
        texts: what is looked for in the picture; only an aligned backbone reads any.
        window: pixels of the first size, around each patch, in which texts are looked for; None: in patch tokens.
        progress: called with the numbers of windows that were seen and that there are.

    Raises:
        UserError: if there are texts and the backbone reads none.
    """
    device = next(backbone.parameters()).device
    scenes = [
        scene(backbone, WholeView(size, backbone.patch, mean, std)(picture).to(device)) for size in sizes
    ]
    first = scenes[0]
    row, column = int(point[1] * first.grid[0]), int(point[0] * first.grid[1])
    attention = None
    if isinstance(backbone, VisionTransformer):
        with torch.inference_mode():
            seen = backbone.last_attention(first.image[None]).cls
        attention = pictures.attention_maps(seen, backbone.registers, first.grid)[0]
    limit = usual_norms(first.norms.flatten())[1] if threshold is None else threshold
    return Inspection(
        scenes=scenes,
        attention=attention,
        point=(row, column),
        similarity=similarity_to(first.patches, first.grid, (row, column)),
        threshold=limit,
        outliers=first.norms > limit,
        said=said_where(backbone, first, texts, window, progress) if texts else {},
    )


def said_where(
    backbone: Backbone,
    seen: Scene,
    texts: Sequence[str],
    window: int | None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, np.ndarray]:
    """[h, w] cosines with each text, less those with an empty one, of patches or of windows around them (`Words`).

    Raises:
        UserError: if the backbone reads no text.
    """
    words = Words(backbone)
    if window is None:
        maps = words.where(seen.patches, texts).reshape(len(texts), *seen.grid)
    else:
        maps = words.where_by_windows(seen.image, texts, window, progress)
    return dict(zip(texts, maps.cpu().numpy(), strict=True))


def write_inspection(folder: Path, found: Inspection, content: Content) -> Report:
    """Write the figures as PNG files, and a page with all of them inside.

    Raises:
        UserError: if the folder cannot be written to.
    """
    first, count = found.scenes[0], int(found.outliers.sum())
    top = [
        Tile(
            "patches", f"{first.grid[0]} x {first.grid[1]}", f"of {tuple(first.image.shape[1:])[::-1]} pixels"
        ),
        Tile("outlier tokens", f"{count}", f"{count / found.outliers.size:.2%} of all"),
        Tile("median norm", f"{np.median(first.norms):.4g}", f"largest {first.norms.max():.4g}"),
    ]
    return write_page(folder, content, sections(found, content.mean, content.std), top)


def default_sizes(patch: int, size: int) -> list[int]:
    """Pixels of the shorter side: the size in whole patches, twice and three times it."""
    base = max(round(size / patch), 1) * patch
    return [base, 2 * base, 3 * base]


def facts(found: Inspection) -> list[tuple[str, str]]:
    """What the figures do not say, for the page's table."""
    rows = [
        ("Sizes", ", ".join(f"{s.image.shape[2]} x {s.image.shape[1]}" for s in found.scenes)),
        *(
            (f"“{text}”", f"{m.min():+.3f} to {m.max():+.3f} against an empty text")
            for text, m in found.said.items()
        ),
        ("Compared with", f"patch in row {found.point[0]}, column {found.point[1]}"),
        (
            "Outlier tokens",
            f"{int(found.outliers.sum())} of {found.outliers.size}, above norm {found.threshold:.4g}",
        ),
    ]
    if found.attention is None:
        rows.append(("Attention", "left out: in this backbone no CLS token attends to patches"))
    return rows


def sections(found: Inspection, mean: Sequence[float], std: Sequence[float]) -> list[Section]:
    """The figures, for a page of their own or the report of a run."""
    first, attention = found.scenes[0], found.attention
    shown = [
        Section(
            "similarity",
            "Similarity to a point",
            "Cosine of every patch with the marked one, from -1 (dark) over 0 to 1 (bright).",
            lambda theme: draw_similarity(found, mean, std, theme),
        ),
        Section(
            "sizes",
            "Patch features at several sizes",
            "The three main directions of the patch features as red, green and blue, at each size by itself: "
            "colours of one size say nothing of those of another.",
            lambda theme: draw_sizes(found.scenes, mean, std, theme),
        ),
        Section(
            "norms",
            "Patch norms",
            f"Norms before the final norm, dark for the smallest and bright for the largest. Tokens above "
            f"{found.threshold:.4g} are marked as outliers: large models without registers keep what is global in a "
            "few tokens of empty areas.",
            lambda theme: draw_norms(found, mean, std, theme),
        ),
    ]
    if found.said:
        shown.insert(
            0,
            Section(
                "text",
                "Text",
                "Cosine of every patch, or of the window around it, with "
                + ", ".join(f"“{text}”" for text in found.said)
                + ", in this order, less that with an empty text; "
                "each map is scaled to its own range.",
                lambda theme: draw_heads(first.image, np.stack(list(found.said.values())), mean, std, theme),
            ),
        )
    if attention is not None:
        heads = attention[None]
        shown.insert(
            0,
            Section(
                "attention",
                "Attention",
                "Where the CLS token looks in the last block, one map for each head in their order; bright is much. "
                "Each map is scaled to its own range.",
                lambda theme: draw_heads(first.image, heads[0], mean, std, theme),
            ),
        )
    return shown


def draw_heads(
    image: Tensor, maps: np.ndarray, mean: Sequence[float], std: Sequence[float], theme: Theme = LIGHT
) -> Figure:
    """The picture, then each map (a head's, a text's) [maps, h, w] over its own range, row by row."""
    heat = colormaps["magma"]
    shown = [heat((head - head.min()) / max(float(np.ptp(head)), 1e-12))[..., :3] for head in maps]
    return _rows([pictures.to_rgb_images(image, mean, std), *shown], theme, across=5)


def draw_similarity(
    found: Inspection, mean: Sequence[float], std: Sequence[float], theme: Theme = LIGHT
) -> Figure:
    """The picture with its point, and the cosines."""
    first = found.scenes[0]
    there = np.zeros(first.grid, dtype=bool)
    there[found.point] = True
    picture = marked(pictures.to_rgb_images(first.image, mean, std), there)
    return _rows([picture, colormaps["magma"]((found.similarity + 1) / 2)[..., :3]], theme, across=2)


def draw_sizes(
    scenes: Sequence[Scene], mean: Sequence[float], std: Sequence[float], theme: Theme = LIGHT
) -> Figure:
    """The picture, and the main directions of its patch features at each size."""
    colours = [pictures.pca_colours(s.patches[None])[0].reshape(*s.grid, 3) for s in scenes]
    return _rows([pictures.to_rgb_images(scenes[-1].image, mean, std), *colours], theme, across=4)


def draw_norms(
    found: Inspection, mean: Sequence[float], std: Sequence[float], theme: Theme = LIGHT
) -> Figure:
    """Norms as a map, and the picture with the outliers marked."""
    first = found.scenes[0]
    scaled = (first.norms - first.norms.min()) / max(float(np.ptp(first.norms)), 1e-12)
    picture = marked(pictures.to_rgb_images(first.image, mean, std), found.outliers)
    return _rows([colormaps["magma"](scaled)[..., :3], picture], theme, across=2)


def marked(image: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """[H, W, 3] with the chosen patches [h, w] in a colour that pictures seldom have."""
    tall, wide = (length // patches for length, patches in zip(image.shape[:2], chosen.shape, strict=True))
    cover = chosen.repeat(tall, axis=0).repeat(wide, axis=1)[..., None]
    return np.where(cover, 0.15 * image + 0.85 * np.asarray(to_rgb(_MARK)), image)


def _rows(images: Sequence[np.ndarray], theme: Theme, across: int) -> Figure:
    across = min(across, len(images))
    cell = (PIXELS - pictures.GAP * (across - 1)) // across
    # A cell is square with the picture in its middle; the rows of wide pictures move together. Sizes in whole
    # patches are not all of one shape: the tallest says how far.
    tall = max(pictures.fitted(image, cell)[0] for image in images)
    step, above = tall + pictures.GAP, (cell - tall) // 2
    canvas = Canvas(theme, -(-len(images) // across) * step)
    for number, image in enumerate(images):
        row, column = divmod(number, across)
        canvas.place(image, column * (cell + pictures.GAP), row * step - above, cell)
    return canvas.figure()
