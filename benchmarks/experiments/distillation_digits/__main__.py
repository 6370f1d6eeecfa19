"""Distillation in small: `python benchmarks/experiments/distillation_digits`.

A teacher by demo/digits; for each seed from it a ViT and a ConvNeXt by demo/distill in one job, and then the same two
networks, each by itself with demo/digits' objective, for as many seconds of the processor as the student's
process of the job took. k-NN by the suite `digits` of all. Takes about a quarter of an hour for a seed on one core, and
so is no part of `make bench`; the same command goes on where it was stopped. Results go to benchmarks/results:
distillation_digits.md and .json, and the picture to docs/pictures.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[2]))  # for benchmarks/parts

from parts.machine import machine, write
from scholarch.report.theme import write_png
from scholarch.storage.local import write_text
from scholarch.storage.records import RECORDS_NAME, read_records
from scholarch.storage.results import RESULT_NAME, read_result
from shown import draw, table
from worked import seconds_of_a_step

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
NAME = "distillation_digits"
PICTURE = ROOT / "docs" / "pictures" / f"{NAME}.png"
STUDENTS = ("vit", "convnext")
STEPS, TRIED = 300, 30
"""Of the students, and of the short runs that say what a step of a network by itself costs."""
MORE = 1.1
"""That a network by itself gets, since a step's seconds differ by as much between runs on a busy machine."""
ITS_VIEWS = (
    "views.global.size=24",
    "views.local.size=12",
    "views.local.count=4",
    "model.stochastic_depth=0.1",
)
"""What demo/digits itself has, and demo/distill does not."""


def main() -> None:
    """Trains what is missing, measures what is new, and writes the results."""
    asked = _arguments()
    os.environ["OMP_NUM_THREADS"] = "1"
    where = machine()
    seeds = {str(seed): measure(asked.work, seed, asked.more) for seed in asked.seeds}
    if not asked.only_train:
        write(NAME, "Distillation in small", table(seeds), {"seeds": seeds}, where)
        write_png(draw(seeds), PICTURE)


def measure(work: Path, seed: int, more: bool) -> dict[str, Any]:
    """Figures of a seed's runs: of each `knn`, `steps` and `seconds`, and `untrained`."""
    folder, teacher = work / f"seed-{seed}", work / "teacher"
    _train(teacher, "pretrain", "demo/digits", _quiet(500))
    found = {"teacher": _figures(teacher)}
    job = folder / "students"
    named = f"teachers.teacher.checkpoint={teacher}"
    _train(job, "distill", "demo/distill", [f"seed={seed}", named, *_quiet(STEPS)])
    for name in STUDENTS:
        student = job / "students" / name
        found[name] = _figures(student)
        alone: list[tuple[str, Sequence[str], float]] = [("alone", (), 0.0)]
        if more:
            alone.append(("alone-longer", (), found["teacher"]["seconds"]))
        if more and name == "vit":
            alone.append(("alone-its-views", ITS_VIEWS, 0.0))
        for arm, words, seconds in alone:
            recipe = str(HERE / f"{name}.yaml")
            tried = work / "tried" / f"{name}{'-its-views' if words else ''}"
            _train(tried, "pretrain", recipe, [*words, *_quiet(TRIED), f"training.checkpoint_every={TRIED}"])
            least, cost = found[name]["seconds"] + seconds, seconds_of_a_step(tried)
            found[f"{name}-{arm}"] = {"seconds": 0.0}
            while found[f"{name}-{arm}"]["seconds"] < least:  # a step cost less than it had been seen to
                steps = math.ceil(MORE * least / cost)
                run = folder / f"{name}-{arm}-{steps}"
                _train(run, "pretrain", recipe, [f"seed={seed}", *words, *_quiet(steps)])
                found[f"{name}-{arm}"], cost = _figures(run), seconds_of_a_step(run)
    return found


def _quiet(steps: int) -> list[str]:
    """All work in one process, and k-NN at both ends only."""
    return [f"training.steps={steps}", f"evaluation.every={steps}", "training.workers=0"]


def _train(run: Path, verb: str, recipe: str, overrides: Sequence[str]) -> None:
    """A run, from where it stopped."""
    begun = run.is_dir()
    ends = [run / "students" / name for name in STUDENTS] if verb == "distill" else [run]
    if all((end / "export").is_dir() for end in ends):
        return
    words = [verb, "--run", str(run), *(["--resume"] if begun else ["--recipe", recipe, *overrides])]
    command = [sys.executable, str(HERE / "worked.py"), *words]
    if verb == "distill":
        launch = [sys.executable, "-m", "scholarch.training.launch", "--processes", str(len(STUDENTS))]
        command = [*launch, "--module", "worked", "--", *words]
    path = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": path})


def _figures(run: Path) -> dict[str, float]:
    """Of a run that is done, measured once."""
    place = run / "measured.json"
    if not place.is_file():
        result = run / "evaluated"
        if not (result / RESULT_NAME).is_file():
            command = [sys.executable, "-m", "scholarch.cli", "evaluate", str(run), "--suite", "digits"]
            subprocess.run([*command, "--to", str(result)], check=True)
        records = [record for record in read_records(run / RECORDS_NAME) if "step" in record]
        steps = int(records[-1]["step"])
        found = {
            "knn": read_result(str(result)).metrics["knn/top1"],
            "untrained": records[0]["evaluation/knn"],
            "steps": steps,
            "seconds": steps * seconds_of_a_step(run),
        }
        write_text(place, json.dumps(found, indent=1) + "\n")
    figures: dict[str, float] = json.loads(place.read_text())
    return figures


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=NAME, description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--more",
        action="store_true",
        help="each by itself also for the teacher's seconds of training, and the ViT with the crops of demo/digits",
    )
    parser.add_argument("--only-train", action="store_true", help="write no results")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / NAME, help="runs and measurements")
    return parser.parse_args()


if __name__ == "__main__":
    main()
