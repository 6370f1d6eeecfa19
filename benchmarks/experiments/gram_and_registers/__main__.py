"""Gram anchoring and registers at work on a small model: `python benchmarks/experiments/gram_and_registers`.

Takes about 20 minutes for a seed on one idle core, and so is no part of `make bench`; run it by hand. The
same command goes on where it was stopped, and measures only what is new. Results go to benchmarks/results:
gram_and_registers.json, .md (its tables; the words around them are written by hand) and three pictures.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2]))  # for benchmarks/parts

import collect
import draw
import report
import torch
from measure import Probes
from parts.machine import machine
from scenes import Scenes, compose, write_folder
from scholarch.report.theme import write_png
from scholarch.storage.local import write_text
from train import RUNS, Course, checkpoint, one_process, train

ROOT = Path(__file__).parents[3]
NAME = "gram_and_registers"
_SHOWN = 6


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains what is missing, measures what is new, and writes the results."""
    asked = _parser().parse_args(arguments)
    course = Course(steps=asked.steps, early=asked.early, branch=asked.branch, every=asked.every)
    torch.set_num_threads(asked.threads)
    data = asked.work / "scenes"
    if not data.is_dir():
        write_folder(compose(asked.scenes, 0, test=False), asked.work / "scenes.partial")
        (asked.work / "scenes.partial").rename(data)
    probes = Probes(compose(2 * asked.probe_scenes, 1, test=False), compose(asked.probe_scenes, 1, test=True))
    for seed in asked.seeds:
        folder = asked.work / f"seed-{seed}"
        with one_process() as processes:
            for run in asked.runs:
                train(run, folder, data, seed, course, processes, asked.override)
        collect.measure(folder, course, probes)
    write(asked.work, asked.results, course, probes.test)


def write(work: Path, results: Path, course: Course, scenes: Scenes) -> None:
    """Figures, tables and pictures of all seeds that were measured so far."""
    folders = {path.name.removeprefix("seed-"): path for path in sorted(work.glob("seed-*"))}
    found = {
        "course": {name: getattr(course, name) for name in ("steps", "early", "branch", "every")},
        "machine": machine(),
        "seeds": {seed: collect.figures_of(folder) for seed, folder in folders.items()},
    }
    results.mkdir(parents=True, exist_ok=True)
    write_text(results / f"{NAME}.json", json.dumps(found, indent=1) + "\n")
    report.write_page(results / f"{NAME}.md", found, course)
    seeds, first = found["seeds"], next(iter(folders.values()))
    write_png(draw.draw_curves(seeds, RUNS, course.branch), results / f"{NAME}_curves.png")
    columns = {
        f"early, step {course.early:,}": ("plain", course.early),
        f"without Gram, step {course.steps:,}": ("plain", course.steps),
        f"with Gram, step {course.steps:,}": ("gram", course.steps),
        f"0 registers, step {course.steps:,}": ("no-registers", course.steps),
    }
    shown = Scenes(scenes.images[:_SHOWN], scenes.patches[:_SHOWN], scenes.large[:_SHOWN])
    tokens = {
        title: collect.tokens_at(first / run, checkpoint(first / run, step), shown)
        for title, (run, step) in columns.items()
    }
    points = draw.choose_points(shown, len(shown.images))
    write_png(
        draw.draw_maps(shown, list(tokens.values()), points, list(tokens)), results / f"{NAME}_maps.png"
    )
    compared = {"0 registers": "no-registers", "4 registers": "plain"}
    norms = {
        title: collect.tokens_at(first / run, checkpoint(first / run, course.steps), scenes)
        for title, run in compared.items()
    }
    write_png(draw.draw_norms(norms), results / f"{NAME}_norms.png")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=NAME, description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument(
        "--runs",
        nargs="*",
        choices=RUNS,
        default=list(RUNS),
        help="`gram` needs `plain`; none: measure what there is and write the results",
    )
    parser.add_argument("--steps", type=int, default=2500, help="of every run, from drawn weights on")
    parser.add_argument("--early", type=int, default=500, help="step of the Gram teacher")
    parser.add_argument("--branch", type=int, default=1500, help="step at which the Gram stage begins")
    parser.add_argument("--every", type=int, default=250, help="steps between checkpoints, all measured")
    parser.add_argument("--scenes", type=int, default=2000, help="pictures that are trained on")
    parser.add_argument(
        "--probe-scenes", type=int, default=200, help="test scenes; twice as many train the probes"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--work", type=Path, default=ROOT / "runs" / NAME, help="checkpoints and measurements"
    )
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument(
        "--override", action="append", default=[], metavar="key.path=value", help="of the recipe"
    )
    return parser


if __name__ == "__main__":
    main()
