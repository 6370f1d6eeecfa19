"""What benchmarks/distillation_cost.py makes of seconds, on numbers that can be added up by hand."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import distillation_cost as cost


def rows(students: list[str], own: list[float], teacher: list[float]) -> list[dict[str, Any]]:
    return [
        {
            "student": student,
            "own": 96,
            "part": 24,
            "student_seconds": a,
            "teacher_seconds": b,
            "error": 0.0,
            "busy": [a + b, a + b + 0.1 * (rank == 0)],
        }
        for rank, (student, a, b) in enumerate(zip(students, own, teacher, strict=True))
    ]


def test_saving_is_measured_by_what_sharing_the_teacher_allows() -> None:
    found = {name: rows([name] * 4, [0.1 * n] * 4, [0.3] * 4) for n, name in enumerate(cost.STUDENTS, 1)}
    job = ["vits16", "vitb16", "vitl16", "vitl16"]
    found[cost.EQUAL] = rows(job, [0.4, 0.8, 0.6, 0.6], [0.3] * 4)
    found[cost.PLANNED] = rows(job, [0.4, 0.8, 0.6, 0.6], [0.5, 0.1, 0.3, 0.3])
    figures = cost.saving(found)
    # One after another 4 (0.4 + 0.5 + 0.6) = 6; a pass of the teacher is 1.2, and two of three may be saved.
    assert figures["one after another"] == pytest.approx(6.0)
    assert figures["allowed"] == pytest.approx(2.4)
    # Side by side no process works longer than 1.1 or 0.9 seconds.
    assert figures[f"{cost.EQUAL}, saved"] == pytest.approx((6 - 4.4) / 2.4)
    assert figures[f"{cost.PLANNED}, saved"] == pytest.approx(1.0)
    # One pass in place of three, less what is waited for: 0.8 of equal groups, nothing as planned.
    assert figures[f"{cost.EQUAL}, saved, teacher"] == pytest.approx((2.4 - 0.8) / 2.4)
    assert figures[f"{cost.PLANNED}, saved, teacher"] == pytest.approx(1.0)
    assert cost.waiting(found[cost.EQUAL]) == pytest.approx(1 - 3.6 / 4.4)
    assert cost.waiting(found[cost.PLANNED]) == pytest.approx(0.0)
    # Step by step the busiest is another one: 0.9 and then 1.0.
    assert cost.path_by_step(found[cost.PLANNED]) == pytest.approx(0.95)
