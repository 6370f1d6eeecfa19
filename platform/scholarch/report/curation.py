"""Figures of a curation: how large clusters are before and after, and sheets of pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from scholarch.report.pictures import GAP, PIXELS, Canvas
from scholarch.report.theme import Theme, new_figure, short_number, style

_LABEL_HEIGHT = 26
_LARGEST_CELL = 150


class Strip(NamedTuple):
    """A row of pictures.

    Attributes:
        label: above it.
        pictures: [h, w, 3] in [0, 1] each.
    """

    label: str
    pictures: Sequence[np.ndarray]


def draw_sheet(strips: Sequence[Strip], across: int, theme: Theme) -> Figure | None:
    """Strips of pictures, `across` of them side by side; None without any."""
    if not strips:
        return None
    longest = max(len(strip.pictures) for strip in strips)
    width = (PIXELS - (across - 1) * 4 * GAP) // across
    cell = min(width // longest - GAP, _LARGEST_CELL)
    height = cell + _LABEL_HEIGHT + GAP
    canvas = Canvas(theme, -(-len(strips) // across) * height)
    for number, strip in enumerate(strips):
        left, top = number % across * (width + 4 * GAP), number // across * height
        canvas.label(strip.label, left, top)
        for place, picture in enumerate(strip.pictures):
            canvas.place(picture, left + place * (cell + GAP), top + _LABEL_HEIGHT, cell)
    return canvas.figure()


def draw_sizes(sizes: Mapping[str, np.ndarray], theme: Theme) -> Figure:
    """Clusters sorted by size, one line for each selection: flat is balanced, steep is a long tail.

    Args:
        sizes: pictures of each cluster by name of the selection.
    """
    figure = new_figure(theme, 3.2)
    axes = figure.add_axes((0.07, 0.16, 0.91, 0.7))
    style(axes, theme, "pictures in each cluster, the largest first")
    for colour, (name, counts) in zip(theme.lines, sizes.items(), strict=False):
        axes.plot(
            np.arange(1, len(counts) + 1), np.sort(counts)[::-1], color=colour, label=name, linewidth=1.6
        )
    axes.set_yscale("symlog", linthresh=1)
    axes.yaxis.set_major_formatter(lambda value, _: short_number(value))
    axes.set_xlabel("cluster", fontsize=8, color=theme.muted)
    legend = axes.legend(fontsize=8, frameon=False, loc="upper right")
    for text in legend.get_texts():
        text.set_color(theme.text)
    return figure
