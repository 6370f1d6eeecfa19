"""Curves over steps, as small panels side by side; what is drawn together follows from the names."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from scholarch.report.theme import LIGHT, Theme, new_figure, style

Record = Mapping[str, Any]
_LEGEND_COLUMNS = 4
_NOT_DRAWN = ("step", "time", "eta_seconds")
_STATISTICS = ("mean", "max", "min", "std")


class Curve(NamedTuple):
    """Values of one metric at the steps where it was measured."""

    steps: np.ndarray
    values: np.ndarray


Panels = dict[str, dict[str, Curve]]
"""Title of a panel -> label of a line -> its curve. A panel's only line may have the label ""."""


def series(records: Sequence[Record]) -> dict[str, Curve]:
    """Every metric of the records in order of first appearance, values that are not finite left out."""
    found: dict[str, tuple[list[float], list[float]]] = {}
    for record in records:
        for name, value in record.items():
            if name not in _NOT_DRAWN and isinstance(value, (int, float)) and math.isfinite(value):
                steps, values = found.setdefault(name, ([], []))
                steps.append(record["step"])
                values.append(value)
    return {name: Curve(np.asarray(steps), np.asarray(values)) for name, (steps, values) in found.items()}


def panels(curves: Mapping[str, Curve], prefix: str = "") -> Panels:
    """Metrics whose name begins with `prefix`, grouped by the next part of their name.

    `loss/dino/global` and `loss/dino/local` share the panel "dino" of prefix "loss/"; statistics of
    one thing are lines of one panel too: `patch_norm_mean` and `patch_norm_max`.
    """
    grouped: Panels = {}
    names = {name: name.removeprefix(prefix) for name in curves if name.startswith(prefix)}
    stems = Counter(name.rpartition("_")[0] for name in names.values() if _statistic(name))
    for full, name in names.items():
        title, _, label = name.partition("/")
        if _statistic(name) and stems[name.rpartition("_")[0]] > 1:
            title, _, label = name.rpartition("_")
        grouped.setdefault(words(title), {})[words(label)] = curves[full]
    return grouped


def _statistic(name: str) -> bool:
    return "/" not in name and name.rpartition("_")[2] in _STATISTICS


def draw_panels(
    grouped: Panels,
    theme: Theme = LIGHT,
    *,
    smooth: bool = True,
    marked_step: int | None = None,
    baseline: bool = False,
) -> Figure:
    """One panel for each group.

    Args:
        grouped: what to draw.
        theme: colours.
        smooth: whether a moving average is drawn over long curves.
        marked_step: step that is marked by a vertical line.
        baseline: whether a value at step 0 is drawn through as what the untrained network has.
    """
    columns = {0: 1, 1: 1, 2: 2, 4: 2}.get(len(grouped), 3)  # four are two rows of two, with no gap
    rows = math.ceil(len(grouped) / columns) or 1
    legend_rows = max(
        math.ceil(len(lines) / _LEGEND_COLUMNS) if any(lines) else 0 for lines in grouped.values()
    )
    head = 0.32 + 0.16 * legend_rows  # inches above the axes of a panel
    panel = {1: 2.4, 2: 1.8, 3: 1.5}[columns] + head + 0.45
    figure = new_figure(theme, rows * panel)
    for number, (title, lines) in enumerate(grouped.items()):
        row, column = divmod(number, columns)
        width = 1 / columns
        axes = figure.add_axes((
            column * width + 0.048,
            ((rows - 1 - row) * panel + 0.45) / (rows * panel),
            width - 0.048 - (0.052 if columns > 1 else 0.06),
            (panel - head - 0.45) / (rows * panel),
        ))  # fmt: skip
        style(axes, theme, title, pad=7 + 12 * legend_rows)
        _draw_lines(axes, lines, theme, smooth)
        if baseline:
            _draw_baselines(axes, lines, theme)
        if marked_step is not None:
            axes.axvline(marked_step, color=theme.muted, linewidth=1, linestyle=(0, (3, 3)))
        if number >= len(grouped) - columns:
            axes.set_xlabel("step", fontsize=7.5, color=theme.muted, labelpad=2)
    return figure


def losses(records: Sequence[Record], theme: Theme = LIGHT) -> Figure | None:
    """The total and each part of the loss; None without any."""
    grouped = panels(series(records), "loss/")
    return draw_panels(grouped, theme) if grouped else None


def evaluations(records: Sequence[Record], theme: Theme = LIGHT) -> Figure | None:
    """Each evaluation, with the untrained network's value as a line; None without any."""
    grouped = panels(series(records), "evaluation/")
    return draw_panels(grouped, theme, baseline=True) if grouped else None


def health(records: Sequence[Record], theme: Theme = LIGHT) -> Figure | None:
    """What tells healthy features from collapsed ones; None without any."""
    grouped = panels(series(records), "health/")
    return draw_panels(grouped, theme) if grouped else None


def machine(records: Sequence[Record], drawn: Sequence[str] = (), theme: Theme = LIGHT) -> Figure | None:
    """All that the other figures leave: speed, waiting, memory, gradients.

    Args:
        records: of the run.
        drawn: names that another figure shows, such as those of the schedules.
        theme: colours.
    """
    elsewhere = ("loss/", "evaluation/", "health/")
    rest = {
        name: curve
        for name, curve in series(records).items()
        if not name.startswith(elsewhere) and name not in drawn and curve.values.any()
    }
    return draw_panels(panels(rest), theme) if rest else None


def schedules(values: Mapping[str, Sequence[float]], step: int, theme: Theme = LIGHT) -> Figure | None:
    """Each schedule over the whole run, with the step that was reached.

    Args:
        values: for each schedule its value at steps 0, 1, 2, ...
        step: finished steps.
        theme: colours.
    """
    curves = {name: _thinned(np.asarray(value, dtype=float)) for name, value in values.items()}
    total = max((len(value) for value in values.values()), default=0)
    marked = step if 0 < step < total else None
    return draw_panels(panels(curves), theme, smooth=False, marked_step=marked) if curves else None


def _thinned(values: np.ndarray, at_most: int = 2000) -> Curve:
    steps = np.unique(np.linspace(0, len(values) - 1, min(at_most, len(values))).round().astype(int))
    return Curve(steps, values[steps])


def _draw_lines(axes: Axes, lines: Mapping[str, Curve], theme: Theme, smooth: bool) -> None:
    for (label, curve), colour in zip(lines.items(), cycle(theme.lines), strict=False):
        drawn = _smoothed(curve.values) if smooth else curve.values
        if drawn is not curve.values:
            axes.plot(curve.steps, curve.values, color=colour, linewidth=0.8, alpha=0.3)
        marker = "o" if len(curve.steps) <= 12 else None
        axes.plot(
            curve.steps, drawn, color=colour, linewidth=1.7, marker=marker, markersize=3, label=label or None
        )
        axes.annotate(
            _value(drawn[-1], float(np.abs(drawn).max())),
            (curve.steps[-1], drawn[-1]),
            xytext=(4, 0),
            textcoords="offset points",
            fontsize=7.5,
            color=colour,
            va="center",
            annotation_clip=False,
        )
    axes.margins(x=0.02, y=0.12)
    if any(lines):
        axes.legend(
            loc="lower left", bbox_to_anchor=(-0.02, 0.99), ncols=_LEGEND_COLUMNS, fontsize=7.5, frameon=False,
            labelcolor=theme.muted, handlelength=1, handletextpad=0.4, columnspacing=1, borderpad=0.2,
        )  # fmt: skip


def _draw_baselines(axes: Axes, lines: Mapping[str, Curve], theme: Theme) -> None:
    for curve in lines.values():
        if len(curve.steps) > 1 and curve.steps[0] == 0:
            axes.axhline(curve.values[0], color=theme.muted, linewidth=1, linestyle=(0, (3, 3)))
            axes.annotate(
                f"untrained {curve.values[0]:.4g}",
                (curve.steps[-1], curve.values[0]),
                xytext=(0, 4),
                textcoords="offset points",
                fontsize=7.5,
                color=theme.muted,
                ha="right",
            )


def _value(value: float, largest: float) -> str:
    return "0" if abs(value) < 1e-4 * largest else f"{value:.4g}"


def _smoothed(values: np.ndarray) -> np.ndarray:
    """A centred moving average over a twentieth of the run; short curves as they are."""
    half = len(values) // 40
    if half < 1:
        return values
    sums = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    low, high = (index - half).clip(0), (index + half + 1).clip(max=len(values))
    smooth: np.ndarray = (sums[high] - sums[low]) / (high - low)
    return smooth


_WRITTEN = {"cls": "CLS", "knn": "k-NN", "kl": "KL", "lr": "learning rate", "gib": "GiB"}


def words(name: str) -> str:
    """A metric's name as people write it."""
    return " ".join(_WRITTEN.get(word, word) for word in name.replace("/", " ").replace("_", " ").split())
