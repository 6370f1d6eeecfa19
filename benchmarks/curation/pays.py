"""Does curation pay? k-NN of backbones from a raw sample of a long-tailed pool, from a curated one, from an even one.

    python benchmarks/curation/pays.py --work FOLDER

Each as large as the others. A training takes some minutes on one core; there are three for each seed and one before
them. The same command goes on where it was stopped, or where `--trainings 3` ended it, with exit code 75.
Writes results/curation_pays.md and .json, and docs/pictures/curation-pays.png.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from scholarch.cli import main
from scholarch.curation.balance import balance
from scholarch.curation.pipeline import Outcome
from scholarch.errors import EXIT_INTERRUPTED
from scholarch.report.theme import LIGHT, new_figure, style, write_png
from scholarch.storage.results import RESULT_NAME, read_result

sys.path.insert(0, str(Path(__file__).parents[1] / "parts"))

from machine import machine, write
from pool import SIDE, curated, half_of, names_of, picture_of, recompressed, train

PICTURE = Path(__file__).parents[2] / "docs" / "pictures" / "curation-pays.png"
ARMS = {
    "raw": "random pictures of the pool",
    "curated": "deduplicated, balanced over clusters",
    "even": "as many of each digit by their labels, no copies",
}
PICTURES = 600
"""That each backbone is trained on."""
STEPS, BATCH = 500, 64
EVALUATED = 3000
"""Pictures whose digit is asked for, and as many whose digit is known."""
HEAD, TAIL = 1600, 0.7
"""Of digit d the pool has 1600 x 0.7^d different pictures."""
COPIED, COPIES = 0.3, 30
"""Share of the pictures that have copies, and the most copies; their number falls as a power law."""
SHEETS = 25_000
"""Pictures of no digit, which make up most of the pool, as what nobody looks for does on the web."""
NO_DIGIT = 10
"""Their folder."""
QUALITIES = (20, 61)
"""Of JPEG, in which a copy is kept: at least, and below."""
THRESHOLD = 0.99
"""Chosen before any of these pictures was made: the best of an earlier run of planted.py, of other backbones."""
Figures = dict[str, float]
RECIPE: dict[str, Any] = {
    "deduplicate": {"hash_bits": 1, "threshold": THRESHOLD, "neighbours": {"k": 32}, "keep": "first"},
    "cluster": {
        "levels": [
            {"clusters": 300, "iterations": 20, "rounds": 4, "sample": 3},
            {"clusters": 40, "iterations": 20, "rounds": 4, "sample": 3},
        ]
    },
    "sample": {"pictures": PICTURES},
    "mix": {"digits": {"of": "sample"}},
}
RAW = ("deduplicate=null", "cluster=null", "sample.by=pictures")


def written(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The same digit, as another hand might have written it: turned, slanted, of another size and place."""
    turn, slant = rng.uniform(-0.2, 0.2, 2)
    wide, high = rng.uniform(0.9, 1.15, 2)
    a, b = wide * np.cos(turn), slant - np.sin(turn)
    c, d = np.sin(turn), high * np.cos(turn)
    middle = SIDE / 2
    moved = middle + rng.uniform(-2, 2, 2)
    values = (a, b, middle - a * moved[0] - b * moved[1], c, d, middle - c * moved[0] - d * moved[1])
    return picture.transform((SIDE, SIDE), Image.Transform.AFFINE, values, Image.Resampling.BICUBIC)


def ruled(rng: np.random.Generator) -> Image.Image:
    """A sheet with lines and nothing written: bright, of one kind, none like another to the pixel."""
    rows = np.arange(SIDE) + rng.uniform(0, 8)
    lines = rng.uniform(120, 160) * (rows % 8 < 2)
    values = np.repeat(lines[:, None], SIDE, axis=1) + rng.normal(0, 6, (SIDE, SIDE))
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


def make(work: Path) -> None:
    """`pool` and `even` of one half of the digits; `evaluation`, of the other half, as many of each for both splits."""
    if (work / "made").exists():
        return
    for digit in range(10):
        for name in ("pool", "even", "evaluation/train", "evaluation/val"):
            (work / name / str(digit)).mkdir(parents=True, exist_ok=True)
        rng, numbers = np.random.default_rng(digit), half_of(digit, 0)
        for turn in range(round(HEAD * TAIL**digit)):
            picture = written(picture_of(numbers[int(rng.integers(len(numbers)))]), rng)
            picture.save(work / "pool" / str(digit) / f"{turn:05d}.png")
            copies = min(int(rng.zipf(1.6)), COPIES) if rng.random() < COPIED else 0
            for copy in range(copies):
                again = recompressed(picture, int(rng.integers(*QUALITIES)))
                again.save(work / "pool" / str(digit) / f"{turn:05d}-{copy}.png")
        for turn in range(PICTURES // 10):
            picture = written(picture_of(numbers[int(rng.integers(len(numbers)))]), rng)
            picture.save(work / "even" / str(digit) / f"{turn:05d}.png")
        numbers, rng = half_of(digit, 1), np.random.default_rng(1000 + digit)
        for first, split in enumerate(("train", "val")):  # no digit is in both
            own = numbers[first::2]
            for turn in range(EVALUATED // 10):
                picture = written(picture_of(own[turn % len(own)]), rng)
                picture.save(work / "evaluation" / split / str(digit) / f"{turn:05d}.png")
    rng = np.random.default_rng(NO_DIGIT)
    (work / "pool" / str(NO_DIGIT)).mkdir(exist_ok=True)
    for turn in range(SHEETS):
        ruled(rng).save(work / "pool" / str(NO_DIGIT) / f"{turn:05d}.png")
    (work / "made").touch()


def measured(work: Path, run: Path) -> float:
    """k-NN accuracy of a backbone on pictures that it has not seen."""
    to, suite = run / "evaluated", work / "suite.yaml"
    if not (to / RESULT_NAME).is_file():
        data = {"kind": "folders", "address": str(work / "evaluation")}
        suite.write_text(yaml.safe_dump({"data": {"digits": data}, "evaluations": {"knn": {}}}))
        if code := main(["evaluate", str(run), "--suite", str(suite), "--to", str(to)]):
            sys.exit(code)
    return float(read_result(str(to)).metrics["knn/top1"])


def chosen(found: Outcome) -> tuple[np.ndarray, Figures]:
    """Pictures of each digit in a sample, and what can be said of it."""
    rows = found.chosen["sample"]
    names = [name for name in names_of(found, rows) if name[0] != NO_DIGIT]
    counts = np.bincount([digit for digit, _, _ in names], minlength=10)
    told = balance(counts)
    different = len({(digit, origin) for digit, origin, _ in names})
    return counts, {
        "digits": len(names),
        "entropy": told.entropy,
        "divergence": told.divergence,
        "different": different,
    }


def deduplicated(found: Outcome) -> Figures:
    """How right the deduplication was: of the dropped pictures, and of those that should have been."""
    everything = names_of(found, range(len(found.rows)))
    names = [name for name in everything if name[0] != NO_DIGIT]
    first: dict[tuple[int, str], int] = {}
    copy = np.array([first.setdefault(name[:2], row) != row for row, name in enumerate(names)])
    stayed = np.zeros(len(everything), bool)
    stayed[found.chosen["deduplicated"]] = True
    digits = np.array([name[0] != NO_DIGIT for name in everything])
    kept = stayed[digits]
    left = {name[:2] for name, stays in zip(names, kept, strict=True) if stays}
    return {
        "sheets": int((~digits).sum()),
        "sheets left": int(stayed[~digits].sum()),
        "pictures": len(names),
        "copies": int(copy.sum()),
        "left": int(kept.sum()),
        "different pictures": len(first),
        "different pictures left": len(left),
    }


def run(work: Path, seeds: list[int], arms: list[str], trainings: int | None) -> None:
    """Makes, curates, trains, measures, writes.

    Args:
        trainings: end after so many; None: go on.
    """
    where, left = machine(), trainings
    make(work)
    pool = work / "pool"

    def trained(name: str, data: Path, seed: int) -> Path:
        nonlocal left
        new = not (work / name / "export").is_dir()
        steps = (f"training.steps={STEPS}", f"training.global_batch={BATCH}")
        found = train(work / name, data, *steps, f"seed={seed}")
        if new and left is not None and (left := left - 1) <= 0:
            sys.exit(EXIT_INTERRUPTED)
        return found

    def sampled(model: Path, seed: int, *how: str) -> Outcome:
        return curated(work / "curation", pool, model, RECIPE, f"seed={seed}", *how)

    # What the pool is embedded with has seen a raw sample of it and nothing else.
    beginning = curated(work / "beginning", pool, untrained(work), RECIPE, "seed=1000", *RAW)
    model = trained("model", Path(beginning.mixture), 1000)
    accuracy: dict[str, list[float]] = {arm: [] for arm in arms}
    about: dict[str, list[Figures]] = {"raw": [], "curated": []}
    digits: dict[str, list[np.ndarray]] = {"raw": [], "curated": []}
    for arm in arms:
        for seed in seeds:
            data = work / "even"
            if arm != "even":
                found = sampled(model, seed, *(RAW if arm == "raw" else ()))
                data, (counts, told) = Path(found.mixture), chosen(found)
                digits[arm].append(counts)
                about[arm].append(told)
            backbone = trained(f"{arm}-{seed}", data, seed)
            accuracy[arm].append(measured(work, backbone))
            print(f"{arm}, seed {seed}: {accuracy[arm][-1]:.3f}", flush=True)
    dropped = deduplicated(sampled(model, seeds[0]))
    data = {
        "accuracy": accuracy,
        "untrained": measured(work, untrained(work)),
        "embedding model": measured(work, model),
        "samples": about,
        "deduplication": dropped,
        "digits": {arm: np.mean(counts, axis=0).tolist() for arm, counts in digits.items()},
        "seeds": seeds,
    }
    write("curation_pays", "Does curation pay?", "\n".join(text(data)), data, where)
    write_png(draw(data), PICTURE)


def untrained(work: Path) -> Path:
    """A backbone as it is drawn, after a single step of no size."""
    return train(work / "untrained", work / "even", "training.steps=1", "optimizer.lr=0.0", "seed=1000")


def text(data: dict[str, Any]) -> list[str]:
    """What the page says."""
    accuracy, seeds, dropped = data["accuracy"], data["seeds"], data["deduplication"]
    differences = [b - a for a, b in zip(accuracy["raw"], accuracy["curated"], strict=True)]
    rows = {f"{arm}: {ARMS[arm]}": values for arm, values in accuracy.items()}
    rows["curated - raw"] = differences
    heads = " | ".join(f"seed {seed}" for seed in seeds)
    return [
        (
            f"A pool of {dropped['sheets']:,} ruled sheets without a digit and {dropped['pictures']:,} pictures of "
            f"digits, {dropped['copies']:,} of them copies of {COPIED:.0%} of the "
            f"others, up to {COPIES} of one, recompressed (JPEG of quality {QUALITIES[0]} to {QUALITIES[1] - 1}); the "
            f"{dropped['different pictures']:,} different ones are handwritten digits, turned and slanted at random, "
            f"of digit d {HEAD:,} x {TAIL}^d. {PICTURES} pictures train each backbone, by demo/digits with {STEPS} "
            f"steps of {BATCH}, without labels. k-NN is on {EVALUATED:,} pictures of the half of the digits that no "
            f"backbone and no curation has seen, by the labels of {EVALUATED:,} of other digits of it, as many of each."
        ),
        "",
        f"| k-NN accuracy | {heads} | mean |",
        "|---" * (len(seeds) + 2) + "|",
        *(
            f"| {name} | {' | '.join(f'{value:.3f}' for value in values)} | {statistics.mean(values):.3f} |"
            for name, values in rows.items()
        ),
        "",
        (
            f"Untrained: {data['untrained']:.3f}. The backbone that embeds the pool was trained on a raw sample too "
            f"(seed 1000): {data['embedding model']:.3f}."
        ),
        "",
        f"| of {PICTURES} | digits | different digits | entropy over digits (ln 10 = 2.303) | of each digit, 0 to 9 |",
        "|---|---|---|---|---|",
        *(
            f"| {arm} | {statistics.mean(one['digits'] for one in data['samples'][arm]):.0f} "
            f"| {statistics.mean(one['different'] for one in data['samples'][arm]):.0f} "
            f"| {statistics.mean(one['entropy'] for one in data['samples'][arm]):.3f} "
            f"| {', '.join(f'{count:.0f}' for count in data['digits'][arm])} |"
            for arm in ("raw", "curated")
        ),
        "",
        (
            f"Deduplication above {THRESHOLD} left {dropped['sheets left']:,} of {dropped['sheets']:,} sheets and "
            f"{dropped['left']:,} of {dropped['pictures']:,} pictures of digits, "
            f"{dropped['different pictures left']:,} different ones of {dropped['different pictures']:,}."
        ),
    ]


def draw(data: dict[str, Any]) -> Any:
    """Accuracy of each seed on the left, pictures of each digit on the right."""
    figure = new_figure(LIGHT, 2.8)
    left, right = figure.add_axes((0.06, 0.16, 0.34, 0.7)), figure.add_axes((0.47, 0.16, 0.51, 0.7))
    style(left, LIGHT, "k-NN accuracy, a line for each seed")
    for colour, seed, values in zip(
        LIGHT.lines, data["seeds"], zip(*data["accuracy"].values(), strict=True), strict=False
    ):
        left.plot(range(len(values)), values, "o-", color=colour, label=f"seed {seed}")
    left.set_xticks(range(len(data["accuracy"])), data["accuracy"])
    left.legend(fontsize=7, frameon=False)
    style(right, LIGHT, f"{PICTURES} pictures, by digit")
    for place, (colour, (arm, counts)) in enumerate(zip(LIGHT.lines, data["digits"].items(), strict=False)):
        right.bar(np.arange(10) + 0.4 * (place - 0.5), counts, 0.36, color=colour, label=arm)
    right.axhline(PICTURES / 10, color=LIGHT.lines[2], linewidth=1, label="even")
    right.set_xticks(range(10), [str(digit) for digit in range(10)])
    right.legend(fontsize=7, frameon=False)
    return figure


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--arms", nargs="+", choices=ARMS, default=list(ARMS), help="raw and curated at least"
    )
    parser.add_argument("--trainings", type=int, help="that this call carries out at most")
    asked = parser.parse_args()
    asked.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    run(asked.work.absolute(), asked.seeds, asked.arms, asked.trainings)
