"""Pictures of evaluations: rows of pictures, and tables of what was taken for what."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from scholarch.report.pictures import GAP, PIXELS, Canvas
from scholarch.report.theme import LIGHT, Theme, new_figure

_LARGEST_CELL = 200
_COUNTED = 15
"""Up to so many classes, the counts are written into the table."""


def draw_tiles(rows: Sequence[Sequence[np.ndarray]], titles: Sequence[str], theme: Theme = LIGHT) -> Figure:
    """Rows of pictures [H, W, 3] in [0, 1], with a title above each column."""
    columns = max(len(row) for row in rows)
    cell = min((PIXELS - GAP * (columns - 1)) // columns, _LARGEST_CELL)
    canvas = Canvas(theme, len(rows) * (cell + GAP))
    for number, title in enumerate(titles):
        canvas.title(title, number * (cell + GAP))
    for down, row in enumerate(rows):
        for across, image in enumerate(row):
            canvas.place(np.clip(image, 0, 1), across * (cell + GAP), down * (cell + GAP), cell)
    return canvas.figure()


def draw_confusion(counts: np.ndarray, classes: Sequence[str], theme: Theme = LIGHT) -> Figure:
    """Share of each class (row) that was taken for each (column)."""
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure = new_figure(theme, 7.0)
    axes = figure.add_subplot()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    ticks = range(len(classes))
    axes.set_xticks(ticks, classes, rotation=90, fontsize=7, color=theme.muted)
    axes.set_yticks(ticks, classes, fontsize=7, color=theme.muted)
    axes.set_xlabel("taken for", color=theme.muted)
    axes.set_ylabel("class", color=theme.muted)
    if len(classes) <= _COUNTED:
        for row, column in zip(*np.nonzero(counts), strict=True):
            colour = "white" if shares[row, column] > 0.5 else theme.text
            axes.text(
                column, row, str(counts[row, column]), ha="center", va="center", fontsize=7, color=colour
            )
    figure.tight_layout()
    return figure
