"""Costs from what steps took, and when another plan is worth it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from scholarch.distillation.measured import FEWEST, WARM_UP, Measured, Meter, Observed, better, idle, line
from scholarch.distillation.planner import Cost, Costs
from scholarch.storage.objects import open_objects

PROCESSES = [
    Observed("small", 12, 4, 0.2, 0.4),
    Observed("large", 6, 4, 1.0, 0.4),
    Observed("large", 6, 4, 1.0, 0.4),
]


def test_meter_leaves_out_the_warm_up_and_says_nothing_too_early() -> None:
    meter = Meter(torch.device("cpu"))
    for _ in range(WARM_UP + FEWEST - 1):
        meter.begin()
        meter.end()
    assert math.isnan(meter.seconds())
    meter.begin()
    meter.end()
    assert 0 <= meter.seconds() < 1


def test_a_line_through_what_lies_on_one() -> None:
    found = line({2: 0.7, 4: 0.9, 10: 1.5})
    assert (found.fixed, found.per_picture) == (pytest.approx(0.5), pytest.approx(0.1))
    assert line({4: 0.8}) == Cost(0.0, 0.2)
    falling = line({2: 1.0, 4: 0.8})  # noise: 0.5 and 0.2 a picture
    assert (falling.fixed, falling.per_picture) == (0.0, pytest.approx(0.35))


def test_waiting_is_what_the_busiest_leaves() -> None:
    assert idle(PROCESSES, together=False) == pytest.approx(1 - (0.6 + 1.4 + 1.4) / (3 * 1.4))
    apart = [Observed("a", 1, 1, 1.0, 0.1), Observed("b", 1, 3, 0.2, 0.9)]
    # In step with one another: the longest part of the teacher, then the longest student.
    assert idle(apart, together=True) == pytest.approx(1 - (1.1 + 1.1) / (2 * 1.9))


def test_another_plan_must_be_worth_it() -> None:
    costs = Measured("x", together=False).with_seen(PROCESSES).costs(["small", "large"])
    assert costs is not None
    found = better(costs, PROCESSES, 12)
    assert found is not None
    # The teacher's 12 pictures of 0.1 s go where there is time, which is beside the small one: 2.2 s of work of the
    # students and 1.2 s of the teacher's are 1.14 s each, and with whole pictures 1.2 s.
    assert found.part(0) > 7 > found.part(1)
    assert found.step == pytest.approx(1.2)
    level = [Observed("small", 12, 10, 0.2, 1.0), *(Observed("large", 6, 1, 1.0, 0.1) for _ in range(2))]
    assert better(Costs(costs.teacher, costs.students, False, ""), level, 12) is None


def test_what_was_seen_is_kept_by_pictures(tmp_path: Path) -> None:
    run = open_objects(str(tmp_path / "run"))
    assert Measured.read(run) is None
    known = Measured("EPYC", together=False).with_seen(PROCESSES)
    assert known.costs(["small", "huge"]) is None
    known = known.with_seen([Observed("small", 6, 8, 0.15, 0.7), Observed("small", 6, 8, 0.17, 0.7)])
    known.write(run)
    again = Measured.read(run)
    assert again == known
    assert again.students["small"] == {12: 0.2, 6: pytest.approx(0.16)}
    costs = again.costs(["small", "large"])
    assert costs is not None
    assert costs.source == "measured on EPYC"
    assert costs.teacher.seconds(6) == pytest.approx(0.55)
