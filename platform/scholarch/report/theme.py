"""Colours and axes of the figures, in a light and a dark form."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from scholarch.storage.local import write_bytes

WIDTH = 10.0
"""Inches; the page shows a figure at its own width, 960 pixels of CSS."""
DPI = 144


@dataclass(frozen=True)
class Theme:
    """Colours of a figure; `lines` are told apart by people with any colour vision."""

    name: str
    background: str
    text: str
    muted: str
    grid: str
    lines: Sequence[str]


LIGHT = Theme(
    "light", "#ffffff", "#1c2230", "#667085", "#e6e9ef",
    ("#2f6fde", "#e0702b", "#1f9d78", "#9a5bd6", "#d3455b", "#7c8797"),
)  # fmt: skip
DARK = Theme(
    "dark", "#161a22", "#e7eaf0", "#97a1b3", "#2a303c",
    ("#6ea2ff", "#f39a5d", "#45c79e", "#c093f5", "#f27d8f", "#a3adbd"),
)  # fmt: skip


def new_figure(theme: Theme, height: float) -> Figure:
    """A figure of the report's width, drawn without pyplot and so without global state."""
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, facecolor=theme.background)
    FigureCanvasAgg(figure)
    return figure


def style(axes: Axes, theme: Theme, title: str, pad: float = 7) -> None:
    """A plain panel: title on the left, horizontal grid, no frame."""
    axes.set_facecolor(theme.background)
    axes.set_title(title, loc="left", fontsize=9, color=theme.text, fontweight="bold", pad=pad)
    axes.grid(axis="y", color=theme.grid, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=theme.muted, labelsize=7.5, length=0, pad=4)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(theme.grid)
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_number(value)))


def short_number(value: float) -> str:
    """12,000 as 12k, for ticks."""
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


def png(figure: Figure) -> bytes:
    """The figure as a PNG file."""
    file = io.BytesIO()
    # Without Software and date the same figure is the same file.
    metadata: dict[str, Any] = {"Software": None}
    figure.savefig(file, format="png", facecolor=figure.get_facecolor(), metadata=metadata)
    return file.getvalue()


def write_png(figure: Figure, path: Path) -> Path:
    """Write the figure to `path`; returns it."""
    write_bytes(path, png(figure))
    return path
