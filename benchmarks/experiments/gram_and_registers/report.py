"""Tables of the figures, put between two marks of a page whose words are written by hand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from draw import NAMES
from scholarch.storage.local import write_text
from train import Course

BEGIN, END = "<!-- figures: written by the script -->", "<!-- end of figures -->"
_DENSE = {
    "cls_patch_cosine": "cosine CLS, patches",
    "patch_patch_cosine": "cosine patches",
    "gram_difference": "Gram difference to early",
    "dense_miou": "dense mIoU",
    "dense_accuracy": "dense accuracy",
    "dense_miou_12": "dense mIoU, 12 classes",
    "dense_accuracy_12": "dense accuracy, 12 classes",
    "cls_accuracy": "CLS accuracy, large digit",
    "cls_found_again": "scenes found again by CLS",
}
_NORMS = {
    "largest_over_median": "largest norm over median",
    "outliers_6_deviations": "share beyond 6 deviations",
    "outliers_above_150": "share above 150",
    "cls_over_median": "CLS norm over median",
    "registers_over_median": "register norms over median",
    "neighbour_cosine_largest": "cosine to neighbours, largest 2 %",
    "neighbour_cosine_rest": "cosine to neighbours, rest",
    "background_largest": "background among largest 2 %",
    "background_rest": "background among rest",
    "global_from_largest": "large digit from the largest background token",
    "global_from_any": "large digit from any background token",
}


def write_page(path: Path, results: Mapping[str, Any], course: Course) -> None:
    """Replaces what stands between the marks of the page; without a page, makes one of tables alone."""
    page = path.read_text() if path.is_file() else f"{BEGIN}\n{END}\n"
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    tables = "\n\n".join([*_tables(results["seeds"], course), _conditions(results)])
    write_text(path, f"{before}{BEGIN}\n{tables}\n{END}{after}")


def _tables(seeds: Mapping[str, Any], course: Course) -> Iterator[str]:
    moments = [
        (f"{NAMES[run]}, step {step:,}" if step else "untrained", run, step)
        for run, step in (
            ("plain", 0),
            ("plain", course.early),
            ("plain", course.branch),
            ("plain", course.steps),
            ("gram", course.steps),
            ("no-registers", course.steps),
        )
    ]
    for seed, runs in seeds.items():
        columns = [(title, found) for title, run, step in moments if (found := _at(runs, run, step))]
        if not columns:
            continue
        yield f"Seed {seed}, 4 registers where nothing else is said:\n\n" + _table(
            ["", *(title for title, _ in columns)],
            [[words, *(_number(found[key]) for _, found in columns)] for key, words in _DENSE.items()],
        )
    ends = [
        (f"{count}, seed {seed}", found["norms"])
        for count, run in (("0 registers", "no-registers"), ("4 registers", "plain"))
        for seed, runs in seeds.items()
        if (found := _at(runs, run, course.steps))
    ]
    if ends:
        yield f"Norms of patches before the final norm, step {course.steps:,}:\n\n" + _table(
            ["", *(title for title, _ in ends)],
            [[words, *(_number(found[key]) for _, found in ends)] for key, words in _NORMS.items()],
        )


def _conditions(results: Mapping[str, Any]) -> str:
    """Training time of each run, pauses left out, and the machine."""
    times = [
        f"{NAMES[run]} {found['training_seconds'] / 60:.0f} (seed {seed})"
        for seed, runs in results["seeds"].items()
        for run, found in runs.items()
    ]
    lines = [f"- {key}: {value}" for key, value in results["machine"].items()]
    return "\n".join(["Measured on:\n", *lines, f"- minutes of training: {', '.join(times)}"])


def _at(runs: Mapping[str, Any], run: str, step: int) -> Mapping[str, Any] | None:
    found: Mapping[str, Any] | None = runs.get(run, {}).get("measured", {}).get(str(step))
    return found


def _number(value: float | Sequence[float]) -> str:
    if isinstance(value, Sequence):
        return f"{mean(value):.2f}" if value else "none"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
