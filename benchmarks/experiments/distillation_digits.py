"""Two students of demo/distill against the same backbones trained by themselves, at equal compute, on digits.

    python benchmarks/experiments/distillation_digits.py [--seeds 0 1 2] [--work FOLDER]

The teacher is a run of demo/digits; by itself a student has that recipe too: DINO, iBOT and KoLeo, with crops as in the
job. Compute are the matrix products and convolutions of a training step, forward and backward with heads, and a
student of the job has half of the teacher's pass; what the teacher took to train is told, and not counted.

Takes some minutes for a seed, and so is no part of `make bench`. What is there is not repeated.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1] / "parts"))

from machine import machine, write
from matplotlib.figure import Figure
from scholarch.cli import main as scholarch
from scholarch.config.load import plain, read_recipe, to_yaml
from scholarch.distillation.costs import operations
from scholarch.report.theme import LIGHT, new_figure, style, write_png
from scholarch.storage.records import RECORDS_NAME, Record, read_records
from scholarch.training.assemble import build_networks, build_terms, view_sets
from scholarch.training.recipe import load_recipe, recipe_from, student_recipe
from torch.utils.flop_counter import FlopCounterMode

JOB, TEACHER = "demo/distill", "demo/digits"
STEPS = 150
PICTURE = Path(__file__).parents[2] / "docs/pictures/distillation_digits.png"
QUIET = ("training.workers=0",)


def alone(work: Path, name: str) -> Path:
    """The recipe of a student by itself: that of the teacher with the student's backbone and crops."""
    own = plain(student_recipe(load_recipe(JOB), name))
    views = {
        view: {key: value for key, value in options.items() if key != "teacher_size"}
        for view, options in own["views"].items()
    }
    data = {**read_recipe(TEACHER), "name": f"alone-{name}", "model": own["model"], "views": views}
    file = work / f"alone-{name}.yaml"
    file.write_text(to_yaml(recipe_from(data, where=str(file))))
    return file


def run(words: Sequence[str], folder: Path, processes: int = 1) -> Path:
    """A run that is done; one that was cut off goes on."""
    done = folder / "students" if processes > 1 else folder
    if not list(done.rglob("export")):
        words = [words[0], "--resume"] if folder.exists() else words
        launch = [sys.executable, "-m", "scholarch.training.launch", "--processes", str(processes), "--"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run([*launch, *words, "--run", str(folder)], check=True, env=environment)
    return folder


def counted(work: Path, words: Sequence[str], name: str) -> float:
    """Operations of a training step: those of a run of four steps, less those of a run of two."""
    file = work / f"operations-{name}.json"
    if not file.exists():
        found = []
        for steps in (2, 4):
            with FlopCounterMode(display=False) as counter:
                code = scholarch(
                    [*words, "--run", str(work / f"count-{name}-{steps}"), f"training.steps={steps}", *QUIET]
                )
            assert code == 0
            found.append(counter.get_total_flops())
        file.write_text(json.dumps((found[1] - found[0]) / 2))
    return float(json.loads(file.read_text()))


def teacher_pass() -> float:
    """Operations of the teacher on a step's pictures in the job."""
    recipe = student_recipe(load_recipe(JOB), "vit")
    _, teachers = build_networks(recipe, build_terms(recipe))
    ((_, views),) = view_sets(recipe)
    seen = {name: view.as_teachers_see() for name, view in views.items()}
    each = operations(teachers["teacher"], seen, recipe.teachers["teacher"].sees)
    return each * recipe.training.global_batch


def accuracies(folder: Path) -> list[tuple[int, float]]:
    """k-NN accuracy by step."""
    records: list[Record] = read_records(folder / RECORDS_NAME)
    return [(int(record["step"]), record["knn"]) for record in records if "knn" in record]


def measure(work: Path, seeds: Sequence[int]) -> dict[str, Any]:
    """Curves of all runs, with what a step of each costs."""
    teacher = run(["pretrain", "--recipe", TEACHER, *QUIET], work / "teacher")
    given = f"teachers.teacher.checkpoint={teacher}"
    job = ["distill", "--recipe", JOB, given]
    shared = teacher_pass() / 2
    found: dict[str, Any] = {
        "teacher": accuracies(teacher),
        "teacher, a step": counted(work, ["pretrain", "--recipe", TEACHER], "teacher"),
        "teacher, a pass": 2 * shared,
        "students": {},
    }
    for name in load_recipe(JOB).students:
        whole = counted(work, [*job, "--student", name], name)
        file = alone(work, name)
        own = counted(work, ["pretrain", "--recipe", str(file)], f"alone-{name}")
        together = whole - shared
        found["students"][name] = {
            "distilled, a step": together,
            "alone, a step": own,
            "alone, steps": round(STEPS * together / own),
            "seeds": {},
        }
    for seed in seeds:
        folder, same = work / f"seed-{seed}", [*QUIET, f"seed={seed}", f"training.steps={STEPS}"]
        run([*job, *same], folder, processes=2)
        for name, one in found["students"].items():
            steps = f"training.steps={one['alone, steps']}"
            by_itself = run(
                ["pretrain", "--recipe", str(work / f"alone-{name}.yaml"), *same[:2], steps],
                work / f"seed-{seed}-alone-{name}",
            )
            one["seeds"][seed] = {
                "distilled": accuracies(folder / "students" / name),
                "alone": accuracies(by_itself),
            }
    return found


def draw(found: dict[str, Any]) -> Figure:
    """Accuracy by compute; a line for each seed."""
    figure = new_figure(LIGHT, 3.0)
    panels = figure.subplots(1, len(found["students"]), sharey=True)
    for axes, (name, one) in zip(panels, found["students"].items(), strict=True):
        style(axes, LIGHT, name)
        for kind, colour in zip(("distilled", "alone"), LIGHT.lines, strict=False):
            for number, curves in enumerate(one["seeds"].values()):
                compute = [step * one[f"{kind}, a step"] / 1e12 for step, _ in curves[kind]]
                axes.plot(
                    compute, [a for _, a in curves[kind]], color=colour, label=kind if not number else None
                )
        axes.axhline(found["teacher"][-1][1], color=LIGHT.muted, linestyle="--", linewidth=1, label="teacher")
        axes.set_xlabel("10¹² operations")
    panels[0].set_ylabel("k-NN accuracy")
    panels[0].legend(fontsize=7.5, frameon=False)
    figure.tight_layout()
    return figure


def table(found: dict[str, Any]) -> list[str]:
    """Lines of what each has learned."""
    lines = [
        "| student | | steps | operations, 10¹² | k-NN at the beginning | at the end, mean | each seed |",
        "| --- | --- | ---: | ---: | ---: | ---: | --- |",
    ]
    for name, one in found["students"].items():
        for kind, steps in (("distilled", STEPS), ("alone", one["alone, steps"])):
            curves = [curves[kind] for curves in one["seeds"].values()]
            first, last = [c[0][1] for c in curves], [c[-1][1] for c in curves]
            lines.append(
                f"| {name} | {kind} | {steps} | {steps * one[f'{kind}, a step'] / 1e12:.2f} | "
                f"{statistics.fmean(first):.1%} | {statistics.fmean(last):.1%} | "
                f"{', '.join(f'{accuracy:.1%}' for accuracy in last)} |"
            )
    steps, last = found["teacher"][-1]
    trained, passed = steps * found["teacher, a step"] / 1e12, found["teacher, a pass"] / 1e9
    told = (
        f"The teacher has {last:.1%} after {steps} steps, which took {trained:.2f} x 10¹² operations; its pass on the "
        f"pictures of a step of the job takes {passed:.2f} x 10⁹."
    )
    return [*lines, "", told]


def main() -> None:
    """Trains what is missing, and writes results/distillation_digits.md, .json and the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--work", type=Path, default=Path("runs/distillation_digits"))
    asked = parser.parse_args()
    where = machine()
    asked.work.mkdir(parents=True, exist_ok=True)
    found = measure(asked.work, asked.seeds)
    write_png(draw(found), PICTURE)
    about = __doc__.strip().split("\n\n")[2]
    write(
        "distillation_digits",
        "Two students of demo/distill, and by themselves",
        "\n".join([about, "", *table(found)]),
        found,
        where,
    )


if __name__ == "__main__":
    main()
