"""The pictures of the experiment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from measure import Tokens
from scenes import GRID, Scenes
from scholarch.report.inspection import marked, similarity_to
from scholarch.report.pictures import GAP, PIXELS, Canvas
from scholarch.report.theme import LIGHT, new_figure, style

NAMES = {"plain": "without Gram", "gram": "with Gram", "no-registers": "0 registers"}
_CURVES = {
    "cls_patch_cosine": "cosine of CLS and patches",
    "patch_patch_cosine": "cosine of patches with one another",
    "dense_miou": "dense probe: mean IoU of temple, flower, digit",
    "cls_found_again": "scenes found again by CLS from another corner",
}


def draw_curves(seeds: Mapping[str, Any], names: Sequence[str], branch: int) -> Figure:
    """What was measured along the way: a line for each run, dashed for the second seed."""
    figure = new_figure(LIGHT, 5.4)
    for number, (key, title) in enumerate(_CURVES.items()):
        axes = figure.add_subplot(2, 2, number + 1)
        style(axes, LIGHT, title)
        for name, colour in zip(NAMES, LIGHT.lines, strict=False):
            if name in names:
                _lines(axes, seeds, name, key, colour, branch)
        axes.axvline(branch, color=LIGHT.grid, linewidth=1.2, zorder=0)
        if number == 0:
            axes.legend(fontsize=7.5, frameon=False, labelcolor=LIGHT.text)
    figure.tight_layout(pad=1.2)
    return figure


def _lines(axes: Axes, seeds: Mapping[str, Any], name: str, key: str, colour: str, branch: int) -> None:
    label: str | None = NAMES[name]
    for runs, dashes in zip(seeds.values(), ("-", "--", ":", "-."), strict=False):
        measured = runs.get(name, {}).get("measured", {})
        if name == "gram" and measured:  # it was `plain` until it branched off
            measured = {str(branch): runs["plain"]["measured"][str(branch)], **measured}
        points = sorted((int(step), figures[key]) for step, figures in measured.items())
        if points:
            axes.plot(
                *zip(*points, strict=True),
                color=colour,
                linestyle=dashes,
                linewidth=1.4,
                marker="o",
                markersize=2,
                label=label,
            )
            label = None


def draw_maps(
    scenes: Scenes, tokens: Sequence[Tokens], rows: Sequence[tuple[int, int, int]], titles: Sequence[str]
) -> Figure:
    """Cosine of a marked patch with every other, for the same scenes side by side.

    Args:
        tokens: of `scenes`, one for each column.
        rows: (scene, row, column of the patch).
        titles: of the columns.
    """
    cell = (PIXELS - GAP * len(tokens)) // (1 + len(tokens))
    canvas, heat = Canvas(LIGHT, len(rows) * (cell + GAP)), colormaps["magma"]
    for column, title in enumerate(("scene", *titles)):
        canvas.title(title, column * (cell + GAP))
    for line, (scene, row, column) in enumerate(rows):
        there = np.zeros((GRID, GRID), dtype=bool)
        there[row, column] = True
        canvas.place(marked(scenes.images[scene] / 255, there), 0, line * (cell + GAP), cell)
        for number, found in enumerate(tokens, 1):
            cosines = similarity_to(found.patches[scene], (GRID, GRID), (row, column))
            image = heat((cosines + 1) / 2)[..., :3]
            canvas.place(image, number * (cell + GAP), line * (cell + GAP), cell)
    return canvas.figure()


def choose_points(scenes: Scenes, count: int) -> list[tuple[int, int, int]]:
    """The first scenes, and in each a patch: of its large digit, of background, in turn; nothing is picked by hand."""
    rows = []
    for scene in range(count):
        labels = scenes.patches[scene]
        wanted = labels == 2 + scenes.large[scene] if scene % 2 == 0 else labels < 2
        places = np.argwhere(wanted)
        centre = places.mean(0)
        row, column = places[np.square(places - centre).sum(1).argmin()]
        rows.append((scene, int(row), int(column)))
    return rows


def draw_norms(tokens: Mapping[str, Tokens]) -> Figure:
    """Norms of patches before the final norm, over their median; and the largest over the median after each block."""
    figure = new_figure(LIGHT, 2.9)
    left, right = figure.add_subplot(1, 2, 1), figure.add_subplot(1, 2, 2)
    style(left, LIGHT, "patch norm over its median: share of tokens (logarithmic)")
    style(right, LIGHT, "largest norm over the median, after each block")
    over = {name: found.norms.ravel() / np.median(found.norms) for name, found in tokens.items()}
    edges = np.linspace(0.4, max(2.0, *(float(values.max()) for values in over.values())), 50)
    for (name, values), colour in zip(over.items(), LIGHT.lines, strict=False):
        shares = np.histogram(values, edges)[0] / values.size
        left.stairs(np.where(shares > 0, shares, np.nan), edges, color=colour, label=name, linewidth=1.4)
        layers = [float(layer.max() / np.median(layer)) for layer in tokens[name].by_layer]
        right.plot(range(1, len(layers) + 1), layers, color=colour, marker="o", markersize=3, label=name)
    left.set_yscale("log")
    right.set_ylim(bottom=1)
    right.legend(fontsize=7.5, frameon=False, labelcolor=LIGHT.text)
    figure.tight_layout(pad=1.2)
    return figure
