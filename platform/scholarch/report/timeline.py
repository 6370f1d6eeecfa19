"""One step of several students as bars: what each group works on, and how long it waits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.figure import Figure

from scholarch.report.theme import LIGHT, Theme, new_figure, style

WAITING = "waiting"


class Bar(NamedTuple):
    """Processes of one group.

    Attributes:
        name: of the group, and what there is to say of it.
        parts: what they work on and its seconds, one after the other.
    """

    name: str
    parts: Sequence[tuple[str, float]]


def draw_timelines(plans: Sequence[tuple[str, Sequence[Bar]]], theme: Theme = LIGHT) -> Figure:
    """A panel for each plan, on one scale of seconds; what is left of a plan's longest bar is waiting."""
    count = sum(len(bars) for _, bars in plans)
    figure = new_figure(theme, 0.9 * len(plans) + 0.32 * count)
    panels = figure.subplots(
        len(plans), 1, squeeze=False, sharex=True, height_ratios=[len(bars) + 1 for _, bars in plans]
    )[:, 0]
    kinds = list(dict.fromkeys(what for _, bars in plans for bar in bars for what, _ in bar.parts))
    for axes, (title, bars) in zip(panels, plans, strict=True):
        style(axes, theme, title)
        axes.grid(visible=False)
        longest = max(sum(seconds for _, seconds in bar.parts) for bar in bars)
        for place, bar in enumerate(bars):
            begin = 0.0
            for what, seconds in bar.parts:
                axes.barh(
                    place, seconds, left=begin, height=0.7, color=theme.lines[kinds.index(what)], label=what
                )
                begin += seconds
            axes.barh(place, longest - begin, left=begin, height=0.7, color=theme.grid, label=WAITING)
        axes.set_yticks(range(len(bars)), [bar.name for bar in bars])
        axes.invert_yaxis()
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g} s")
    labels = {
        label: handle
        for axes in panels
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        labels.values(), labels.keys(), loc="upper right", ncols=len(labels), fontsize=7.5, frameon=False
    )
    figure.tight_layout()
    return figure
