"""Draws what invariance.py found: python benchmarks/elastic/draw.py FOLDER PICTURE."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

COLOURS = ("#1f77b4", "#2ca02c", "#9467bd", "#d62728")
FLOOR = 1e-17


def label(name: str) -> str:
    """In words."""
    if name == "elastic":
        return "2 → 4 → 1 → 3 workers, under kills"
    if name.startswith("1-flip"):
        return "1 worker, one bit of one weight changed"
    world, _, rest = name.partition("-")
    return f"{world} worker{'s' * (world != '1')}" + (", accumulated" if rest else "")


def draw(axes: Axes, found: dict[str, Any]) -> None:
    """Relative differences from one untouched worker, by step."""
    losses = found["losses"]
    first, said = losses["1"], set()
    for name, values in losses.items():
        if name == "1":
            continue
        differences = [max(abs(a - b) / abs(a), FLOOR) for a, b in zip(first, values, strict=True)]
        flipped = name.startswith("1-flip")
        colour = "0.6" if flipped else "black" if name == "elastic" else COLOURS[int(name[0]) - 1]
        style = ":" if name.endswith("accumulated") else "-"
        words = label(name)
        axes.semilogy(
            range(1, len(values) + 1),
            differences,
            style,
            color=colour,
            linewidth=3 if flipped else 1,
            label=None if words in said else words,
            zorder=1 if flipped else 2,
        )
        said.add(words)
    axes.set_title(f"{found['precision']}, global batch {found['global_batch']}")
    axes.set_xlabel("step")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, loc="upper left")


def main() -> int:
    """Both precisions side by side, those that are there."""
    folder, picture = Path(sys.argv[1]), Path(sys.argv[2])
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("invariance-*.json"), reverse=True)]
    figure, axes = plt.subplots(1, len(found), figsize=(6 * len(found), 4.2), sharey=True, squeeze=False)
    for one, result in zip(axes[0], found, strict=True):
        draw(one, result)
    axes[0][0].set_ylabel("relative difference of the loss from one worker")
    figure.tight_layout()
    figure.savefig(picture, dpi=110)
    return 0


if __name__ == "__main__":
    sys.exit(main())
