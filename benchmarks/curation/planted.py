"""Does curation find what was planted? Precision and recall of the deduplication by threshold, balance of the sample.

    python benchmarks/curation/planted.py --work FOLDER

The digits are cut into two halves. On one a backbone is trained, and the threshold is chosen with the pool that is
planted there; the pool of the other half is what is scored. Then the same the other way round. The trainings take
some minutes each; the same command goes on where it was stopped.
Writes results/curation_planted.md and docs/pictures/curation-planted.png.
"""

from __future__ import annotations

import argparse
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scholarch.curation.balance import balance
from scholarch.curation.duplicates import components
from scholarch.report.theme import LIGHT, new_figure, style, write_png

sys.path.insert(0, str(Path(__file__).parents[1] / "parts"))

from machine import machine, write
from pool import KINDS, changed, curated, half_of, names_of, picture_of, train

PICTURE = Path(__file__).parents[2] / "docs" / "pictures" / "curation-planted.png"
THRESHOLDS = (0.9, 0.95, 0.97, 0.98, 0.985, 0.99, 0.993, 0.995, 0.997, 0.999)
PICTURES, SEEDS = 100, 5
STEPS, BATCH = 500, 32
HEAD, TAIL = 88, 0.75
"""Of digit d a pool has 88 x 0.75^d different pictures, and of every fourth a copy of each kind."""
RECIPE: dict[str, Any] = {
    "deduplicate": {"hash_bits": None, "neighbours": {"k": 16}, "keep": "first"},
    "cluster": {
        "levels": [
            {"clusters": 60, "iterations": 20, "rounds": 4, "sample": 2},
            {"clusters": 12, "iterations": 20, "rounds": 4, "sample": 3},
        ]
    },
    "sample": {"pictures": PICTURES},
    "mix": {"digits": {"of": "sample"}},
}
WAYS = {
    "random, of the pool": ("deduplicate=null", "sample.by=pictures"),
    "random, deduplicated": ("sample.by=pictures",),
    "leaves": ("sample.by=leaves",),
    "tree": (),
}
Row = dict[str, float]


def make(work: Path, half: int) -> None:
    """`seen-H`, all pictures of a half, and `pool-H`, the planted ones among them."""
    rng = np.random.default_rng(half)
    for digit in range(10):
        for name in ("seen", "pool"):
            (work / f"{name}-{half}" / str(digit)).mkdir(parents=True, exist_ok=True)
        for turn, number in enumerate(half_of(digit, half)):
            picture = picture_of(number)
            picture.save(work / f"seen-{half}" / str(digit) / f"{number:04d}.png")
            if turn >= round(HEAD * TAIL**digit):
                continue
            place = work / f"pool-{half}" / str(digit)
            picture.save(place / f"{number:04d}.png")
            for kind in KINDS if turn % 4 == 0 else ():
                changed(picture, kind, rng).save(place / f"{number:04d}-{kind}.png")


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
        both = row["precision"] + row["recall"]
        row["f1"] = 2 * row["precision"] * row["recall"] / both if both else 0.0
        rows.append(row)
    return rows


def even(counts: np.ndarray, wanted: int) -> np.ndarray:
    """Of each digit as many as the most even choice of so many pictures has."""
    found = np.zeros_like(counts)
    for _ in range(wanted):
        room = np.where(found < counts, found, wanted + 1)
        found[int(room.argmin())] += 1
    return found


def scored(work: Path, half: int) -> dict[str, Any]:
    """Threshold from this half, everything else from the other one, which its backbone has not seen."""
    how = (f"training.steps={STEPS}", f"training.global_batch={BATCH}", f"seed={half}")
    model = train(work / f"model-{half}", work / f"seen-{half}", *how)

    def curation(of: int, *how: str) -> Any:
        return curated(work / f"run-{of}", work / f"pool-{of}", model, RECIPE, *how)

    alone = (f"deduplicate.threshold={min(THRESHOLDS)}", "cluster=null", "sample.by=pictures")
    rows, digits = {}, np.empty(0)
    for of in (half, 1 - half):
        every = curation(of, *alone)
        names = names_of(every, range(len(every.rows)))
        digits = np.array([digit for digit, _, _ in names])
        rows[of] = by_threshold(names, every.duplicates)
    best = max(rows[half], key=lambda row: row["f1"])["threshold"]
    seen: dict[str, list[np.ndarray]] = {}
    for name, how in WAYS.items():
        dedup = () if "deduplicate=null" in how else (f"deduplicate.threshold={best}",)
        found = [curation(1 - half, *dedup, *how, f"seed={seed}") for seed in range(SEEDS)]
        seen[name] = [np.bincount(digits[one.chosen["sample"]], minlength=10) for one in found]
    different = np.bincount([digit for digit, _, kind in names if not kind], minlength=10)
    seen["as even as the pool allows"] = [even(different, PICTURES)]
    return {
        "pictures": len(names),
        "copies": sum(bool(kind) for _, _, kind in names),
        "digits": np.bincount(digits).tolist(),
        "threshold": best,
        "chosen on": rows[half],
        "scored on": rows[1 - half],
        "samples": {name: [counts.tolist() for counts in every] for name, every in seen.items()},
    }


def mean(halves: list[dict[str, Any]]) -> list[Row]:
    """The scored rows of both halves."""
    pairs = zip(*(half["scored on"] for half in halves), strict=True)
    return [{name: float(np.mean([row[name] for row in rows])) for name in rows[0]} for rows in pairs]


def draw(halves: list[dict[str, Any]], path: Path) -> None:
    """Precision and recall by threshold on the left, pictures of each digit on the right."""
    rows = mean(halves)
    figure = new_figure(LIGHT, 3.2)
    left, right = figure.add_axes((0.06, 0.15, 0.42, 0.72)), figure.add_axes((0.55, 0.15, 0.43, 0.72))
    style(left, LIGHT, "deduplication by threshold, pictures that were not seen")
    for colour, name in zip(LIGHT.lines, ("precision", *KINDS), strict=False):
        label = name if name == "precision" else f"recall: {name}"
        left.plot(range(len(rows)), [row[name] for row in rows], color=colour, label=label)
    for half in halves:
        left.axvline(THRESHOLDS.index(half["threshold"]), color=LIGHT.muted, linewidth=1, linestyle="--")
    left.set_xticks(range(len(rows)), [f"{row['threshold']:g}" for row in rows])
    left.legend(fontsize=7, frameon=False)
    style(right, LIGHT, f"{PICTURES} pictures of the pool, by digit")
    for place, (colour, name) in enumerate(zip(LIGHT.lines, WAYS, strict=False)):
        counts = np.mean([one for half in halves for one in half["samples"][name]], axis=0)
        right.bar(np.arange(10) + 0.2 * (place - 1.5), counts, 0.18, color=colour, label=name)
    right.set_xticks(range(10), [str(digit) for digit in range(10)])
    right.legend(fontsize=7, frameon=False)
    write_png(figure, path)


def text(halves: list[dict[str, Any]]) -> list[str]:
    """What the page says."""
    first, head = halves[0], ("threshold", "precision", "recall", *KINDS, "pictures left")
    balances = {
        name: [balance(np.array(one)) for half in halves for one in half["samples"][name]]
        for name in first["samples"]
    }
    chosen = [
        (
            half,
            *(
                next(r for r in half[on] if r["threshold"] == half["threshold"])
                for on in ("chosen on", "scored on")
            ),
        )
        for half in halves
    ]
    return [
        (
            f"Two pools of {first['pictures']:,} pictures, one of each half of the digits; the first has "
            f"{', '.join(map(str, first['digits']))} of 0 to 9. {first['copies']} are planted copies: crops of 7/8 of "
            "each side, JPEG of quality 25, mirrored, darker with less contrast. The backbone is of demo/digits, "
            f"{STEPS} steps of {BATCH} on one half; what is scored is the pool of the other half, of which it has seen "
            "nothing: mean of both ways round. Precision is over all pairs of one component, recall the share of "
            "copies in one component with their original; both follow from chains of similar pictures, not from "
            "single pairs."
        ),
        "",
        f"| {' | '.join(head)} |",
        "|---" * len(head) + "|",
        *(
            f"| {row['threshold']:g} | "
            + " | ".join(f"{row[name]:.2f}" for name in ("precision", "recall", *KINDS))
            + f" | {row['left']:.0f} |"
            for row in mean(halves)
        ),
        "",
        "The threshold with the best harmonic mean of both, and what it comes to on the other half:",
        "",
        (
            "| backbone and threshold of | threshold | precision, recall there | precision, recall on the other half "
            "| best threshold there |"
        ),
        "|---|---|---|---|---|",
        *(
            f"| half {number} | {half['threshold']:g} | {own['precision']:.2f}, {own['recall']:.2f} "
            f"| {other['precision']:.2f}, {other['recall']:.2f} "
            f"| {max(half['scored on'], key=lambda row: row['f1'])['threshold']:g} |"
            for number, (half, own, other) in enumerate(chosen)
        ),
        "",
        (
            f"{PICTURES} pictures of the other half with that threshold, mean and standard deviation over {SEEDS} "
            "seeds of both, in nats; ln 10 = 2.303."
        ),
        "",
        "| sample | entropy over digits | divergence from uniform |",
        "|---|---|---|",
        *(
            f"| {name} | {np.mean([one.entropy for one in told]):.3f} ± {np.std([one.entropy for one in told]):.3f} "
            f"| {np.mean([one.divergence for one in told]):.3f} |"
            for name, told in balances.items()
        ),
    ]


def run(work: Path) -> None:
    """Makes, trains, curates, measures, writes."""
    where = machine()
    for half in (0, 1):
        make(work, half)
    halves = [scored(work, half) for half in (0, 1)]
    title = "Curation of pools with planted copies"
    write("curation_planted", title, "\n".join(text(halves)), {"halves": halves}, where)
    draw(halves, PICTURE)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    asked = parser.parse_args()
    asked.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    run(asked.work.absolute())
