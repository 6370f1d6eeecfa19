"""Does curation find what was planted? Precision and recall of the deduplication by threshold, balance of the sample.

    python benchmarks/curation/planted.py --work FOLDER [--model RUN]

RUN is one of `scholarch pretrain --recipe demo/digits`; without it one is made.
Writes results/curation_planted.md and docs/pictures/curation-planted.png.
"""

from __future__ import annotations

import argparse
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from scholarch.curation.balance import balance
from scholarch.curation.duplicates import components
from scholarch.report.theme import LIGHT, new_figure, style, write_png

sys.path.insert(0, str(Path(__file__).parents[1] / "parts"))

from machine import machine, write
from pool import KINDS, curated, make, names_of, steps_of, train

THRESHOLDS = (0.9, 0.95, 0.97, 0.98, 0.985, 0.99, 0.993, 0.995, 0.997, 0.999)
PICTURES, SEEDS = 120, 5
Row = dict[str, float]


def by_threshold(names: list[tuple[int, str, str]], found: dict[str, np.ndarray]) -> list[Row]:
    """Precision over pairs of one component, and the share of planted copies in one with their original, by kind."""
    original = {name: row for row, (_, name, kind) in enumerate(names) if not kind}
    rows = []
    for threshold in THRESHOLDS:
        near = found["similarities"] > threshold
        component = components(found["first"][near], found["second"][near], len(names))
        groups = [np.flatnonzero(component == one) for one in np.unique(component)]
        pairs = [pair for group in groups for pair in combinations(group.tolist(), 2)]
        right = sum(names[a][1] == names[b][1] for a, b in pairs)
        row: Row = {"threshold": threshold, "pairs": len(pairs), "precision": right / max(len(pairs), 1)}
        hits: dict[str, list[bool]] = {one: [] for one in KINDS}
        for number, (_, name, kind) in enumerate(names):
            if kind:
                hits[kind].append(bool(component[number] == component[original[name]]))
        row |= {kind: float(np.mean(hits[kind])) for kind in KINDS}
        row["recall"] = float(np.mean([hit for kind in KINDS for hit in hits[kind]]))
        row["left"] = float(len(np.unique(component)))
        rows.append(row)
    return rows


def draw(rows: list[Row], samples: dict[str, np.ndarray], path: Path) -> None:
    """Precision and recall by threshold on the left, pictures of each digit on the right."""
    figure = new_figure(LIGHT, 3.2)
    left, right = figure.add_axes((0.06, 0.15, 0.42, 0.72)), figure.add_axes((0.55, 0.15, 0.43, 0.72))
    style(left, LIGHT, "deduplication by threshold")
    for colour, name in zip(LIGHT.lines, ("precision", *KINDS), strict=False):
        label = name if name == "precision" else f"recall: {name}"
        left.plot(range(len(rows)), [row[name] for row in rows], color=colour, label=label)
    left.set_xticks(range(len(rows)), [f"{row['threshold']:g}" for row in rows])
    left.legend(fontsize=7, frameon=False)
    style(right, LIGHT, f"{PICTURES} pictures of the pool, by digit")
    for place, (colour, (name, counts)) in enumerate(zip(LIGHT.lines, samples.items(), strict=False)):
        right.bar(np.arange(10) + 0.2 * (place - 1.5), counts, 0.18, color=colour, label=name)
    right.set_xticks(range(10), [str(digit) for digit in range(10)])
    right.legend(fontsize=7, frameon=False)
    write_png(figure, path)


def run(work: Path, model: Path) -> None:
    """Makes, curates, measures, writes."""
    where = machine()
    make(work)
    alone = ("cluster=null", "sample.by=pictures")
    every = curated(work, model, f"deduplicate.threshold={min(THRESHOLDS)}", *alone)
    names = names_of(every, range(len(every.rows)))
    digits = np.array([digit for digit, _, _ in names])
    rows = by_threshold(names, every.duplicates)
    score = [2 * row["precision"] * row["recall"] / (row["precision"] + row["recall"]) for row in rows]
    best = rows[int(np.argmax(score))]["threshold"]
    samples: dict[str, np.ndarray] = {}
    balances = {}
    ways = {
        "random, of the pool": ("deduplicate=null", "sample.by=pictures"),
        "random, deduplicated": ("sample.by=pictures",),
        "leaves": ("sample.by=leaves",),
        "tree": (),
    }
    for name, how in ways.items():
        dedup = () if "deduplicate=null" in how else (f"deduplicate.threshold={best}",)
        seen = []
        for seed in range(SEEDS):
            found = curated(work, model, *dedup, *how, f"seed={seed}", f"sample.pictures={PICTURES}")
            seen.append(np.bincount(digits[found.chosen["sample"]], minlength=10))
        samples[name] = np.mean(seen, axis=0)
        told = [balance(counts) for counts in seen]
        balances[name] = {
            "entropy": [one.entropy for one in told],
            "divergence": [one.divergence for one in told],
        }
    planted = sum(bool(kind) for _, _, kind in names)
    head = ("threshold", "precision", "recall", *KINDS, "pictures left")
    text = [
        (
            f"{len(names):,} pictures of the digits 0 to 9, the first the most frequent "
            f"({', '.join(map(str, np.bincount(digits).tolist()))}), {planted} of them planted copies: crops of 7/8 "
            "of each side, JPEG of quality 25, mirrored, darker with less contrast. Features of "
            f"demo/digits, {steps_of(model)} steps. Precision is over all pairs of one component, recall the share "
            "of copies in one component with their original; both follow from chains of similar pictures, not from "
            "single pairs."
        ),
        "",
        f"| {' | '.join(head)} |",
        "|---" * len(head) + "|",
        *(
            f"| {row['threshold']:g} | "
            + " | ".join(f"{row[name]:.2f}" for name in ("precision", "recall", *KINDS))
            + f" | {row['left']:.0f} |"
            for row in rows
        ),
        "",
        (
            f"The best mean of both is at {best:g}, which the samples below have. {PICTURES} pictures, mean and "
            f"standard deviation over {SEEDS} seeds, in nats; ln 10 = 2.303."
        ),
        "",
        "| sample | entropy over digits | divergence from uniform |",
        "|---|---|---|",
        *(
            f"| {name} | {np.mean(one['entropy']):.3f} ± {np.std(one['entropy']):.3f} "
            f"| {np.mean(one['divergence']):.3f} |"
            for name, one in balances.items()
        ),
    ]
    data = {
        "thresholds": rows,
        "best": best,
        "balance": balances,
        "digits": {k: v.tolist() for k, v in samples.items()},
    }
    write("curation_planted", "Curation of a pool with planted copies", "\n".join(text), data, where)
    draw(rows, samples, Path(__file__).parents[2] / "docs" / "pictures" / "curation-planted.png")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--model", type=Path, help="a run of demo/digits")
    asked = parser.parse_args()
    asked.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    run(asked.work, asked.model or train(asked.work / "model"))
