"""Text alignment in small: `python benchmarks/experiments/text_alignment`.

For each seed: a backbone by self-supervision on generated shapes, words for it by `scholarch align`, the suite
`text` on combinations of colour and shape that neither has seen, and heat maps of phrases. Takes 20 minutes for a
seed on one core, and so is no part of `make bench`; the same command goes on where it was stopped. Results go to
benchmarks/results: text_alignment.md and .json, and the maps of the first seed as text_alignment_heat.png.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2]))  # for benchmarks/parts

import torch
from heat import THINGS, draw, pointing
from parts.machine import machine, write
from scholarch.data.annotated.shapes import CLASSES
from scholarch.data.shapes import COUNTS, SHAPES
from scholarch.report.theme import write_png
from scholarch.storage.local import write_text
from scholarch.storage.records import RECORDS_NAME, read_records
from scholarch.storage.results import RESULT_NAME, read_result

ROOT = Path(__file__).parents[3]
NAME = "text_alignment"
PICTURE = ROOT / "benchmarks" / "results" / f"{NAME}_heat.png"
METRICS = {
    "zero_shot/top1": f"zero-shot top 1, {len(CLASSES)} classes",
    "zero_shot/top5": "zero-shot top 5",
    **{
        f"text_retrieval/{way}/r{k}": f"{way.replace('_', ' ')}, recall at {k}"
        for way in ("picture_to_text", "text_to_picture")
        for k in (1, 5, 10)
    },
    "text_segmentation/miou": f"segmentation by words, mIoU over {1 + len(SHAPES)} classes",
    **{f"{thing}/points_at": f"map points at the {thing} thing named" for thing in THINGS},
    **{f"{thing}/not_at_the_other": f"{thing} thing named above the other" for thing in THINGS},
}
_PAUSE = 120.0
"""Seconds between two records that are a pause and no training."""


def main() -> None:
    """Trains what is missing, measures what is new, and writes the results."""
    asked = _arguments()
    torch.set_num_threads(1)
    where = machine()
    seeds = {}
    for seed in asked.seeds:
        folder = asked.work / f"seed-{seed}"
        train(folder, seed)
        seeds[str(seed)] = measure(folder)
    write(NAME, "Text alignment in small", _table(seeds), {"seeds": seeds}, where)
    write_png(draw(asked.work / f"seed-{asked.seeds[0]}" / "text"), PICTURE)


def train(folder: Path, seed: int) -> None:
    """Both runs of a seed, each from where it stopped."""
    for verb, name, more in (
        ("pretrain", "backbone", []),
        ("align", "text", ["--backbone", str(folder / "backbone"), f"data.features={folder / 'features'}"]),
    ):
        run = folder / name
        if (run / "export").is_dir():
            continue
        recipe = Path(__file__).with_name(f"{name}.yaml")
        new = ["--recipe", str(recipe), *more, f"seed={seed}", "training.workers=0"]
        _scholarch(verb, "--run", str(run), *(["--resume"] if run.is_dir() else new))


def measure(folder: Path) -> dict[str, float]:
    """Figures of a seed's runs, measured once."""
    place = folder / "measured.json"
    if not place.is_file():
        run, result = folder / "text", folder / "evaluated"
        if not (result / RESULT_NAME).is_file():
            _scholarch("evaluate", str(run), "--suite", "text", "--to", str(result))
        seconds = {f"seconds/{name}": _seconds(folder / name) for name in ("backbone", "text")}
        found = {**read_result(str(result)).metrics, **pointing(run), **seconds}
        write_text(place, json.dumps(found, indent=1) + "\n")
    measured: dict[str, float] = json.loads(place.read_text())
    return measured


def _scholarch(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "scholarch.cli", *words], check=True)


def _seconds(run: Path) -> float:
    times = [record["time"] for record in read_records(run / RECORDS_NAME)]
    return round(sum(gap for gap in (b - a for a, b in pairwise(times)) if gap < _PAUSE))


def _table(seeds: dict[str, dict[str, float]]) -> str:
    lines = [
        "![maps of phrases](text_alignment_heat.png)\n",
        "512 pictures of `shapes-unseen`; chance: what a guess gives. Maps: the first seed's, each over its range.\n",
        f"| | chance | {' | '.join(f'seed {seed}' for seed in seeds)} | mean |",
        f"| --- | --- | {'--- | ' * len(seeds)}--- |",
    ]
    for key, words in METRICS.items():
        values = [figures[key] for figures in seeds.values()]
        numbers = " | ".join(f"{value:.3f}" for value in (*values, statistics.mean(values)))
        chance = _chance(key, next(iter(seeds.values())))
        lines.append(f"| {words} | {'' if chance is None else f'{chance:.3f}'} | {numbers} |")
    for name in ("backbone", "text"):
        values = [figures[f"seconds/{name}"] for figures in seeds.values()]
        numbers = " | ".join(f"{value:.0f}" for value in (*values, statistics.mean(values)))
        lines.append(f"| seconds of training, {name} | | {numbers} |")
    return "\n".join(lines)


def _chance(key: str, figures: dict[str, float]) -> float | None:
    name, _, metric = key.rpartition("/")
    if name == "zero_shot":
        return int(metric.removeprefix("top")) * figures["zero_shot/chance"]
    if name.startswith("text_retrieval"):
        return int(metric.removeprefix("r")) / COUNTS[True]
    if metric == "points_at":
        return figures[f"{name}/chance"]
    return 0.5 if metric == "not_at_the_other" else None


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=NAME, description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / NAME, help="runs and measurements")
    return parser.parse_args()


if __name__ == "__main__":
    main()
