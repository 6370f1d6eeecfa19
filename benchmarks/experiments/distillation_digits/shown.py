"""The table and the picture of the experiment."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure
from scholarch.report.theme import LIGHT, new_figure, style

Seeds = Mapping[str, Mapping[str, Mapping[str, float]]]
"""By seed and then by run: `knn`, `untrained`, `steps`, `seconds`."""
TITLES = {"vit": "ViT", "convnext": "ConvNeXt"}
ARMS = {
    "": "distilled",
    "-alone": "alone, as long",
    "-alone-its-views": "alone, as long, crops of demo/digits",
    "-alone-longer": "alone, and the teacher's seconds too",
}
_MARKS, _LINES = ("o", "s", "^", "D"), ("-", "--", ":", "-.")
"""Of seeds."""


def table(seeds: Seeds) -> str:
    """A line for each kind of run, in Markdown."""
    lines = [
        "k-NN accuracy on 359 held-out digits; steps and processor seconds of training, by seed.\n",
        f"| | {' | '.join(f'seed {seed}' for seed in seeds)} | mean | steps | seconds |",
        f"| --- | {'---: | ' * len(seeds)}---: | ---: | ---: |",
    ]
    rows = [("teacher", "teacher, demo/digits", "knn")]
    for name, title in TITLES.items():
        rows += [(f"{name}{arm}", f"{title}, {words}", "knn") for arm, words in ARMS.items()]
        rows.append((name, f"{title}, untrained", "untrained"))
    for key, words, of in rows:
        if any(key not in runs for runs in seeds.values()):
            continue
        found: list[Any] = [runs[key] for runs in seeds.values()]
        scores = [f"{one[of]:.1%}" for one in found] + [f"{statistics.mean(one[of] for one in found):.1%}"]
        worked = [" ".join(f"{one[what]:.0f}" for one in found) for what in ("steps", "seconds")]
        told = worked if of == "knn" else ["", ""]
        lines.append(f"| {words} | {' | '.join([*scores, *told])} |")
    return "\n".join(lines)


def draw(seeds: Seeds) -> Figure:
    """Accuracy by processor seconds: a colour for each kind of run, a mark for each seed."""
    figure = new_figure(LIGHT, 3.2)
    panels = figure.subplots(1, len(TITLES), sharey=True)
    for axes, (name, title) in zip(panels, TITLES.items(), strict=True):
        style(axes, LIGHT, title)
        for number, runs in enumerate(seeds.values()):
            look: dict[str, Any] = {"marker": _MARKS[number], "s": 36}
            for (arm, words), colour in zip(ARMS.items(), LIGHT.lines, strict=False):
                if one := runs.get(f"{name}{arm}"):
                    label = words if number == 0 else None
                    axes.scatter(one["seconds"], 100 * one["knn"], color=colour, label=label, **look)
            axes.scatter(0, 100 * runs[name]["untrained"], color=LIGHT.muted, **look)
            axes.axhline(
                100 * runs["teacher"]["knn"], color=LIGHT.muted, linewidth=0.9, linestyle=_LINES[number]
            )
        axes.set_xlabel("processor seconds of training; at 0 untrained", fontsize=8, color=LIGHT.muted)
        axes.legend(fontsize=7, frameon=False, labelcolor=LIGHT.text, loc="lower right")
    panels[0].set_ylabel("k-NN accuracy, %; lines: the teacher", fontsize=8, color=LIGHT.muted)
    figure.tight_layout(pad=1.2)
    return figure
