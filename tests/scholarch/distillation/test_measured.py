"""Costs from what steps took, and when another plan is worth it."""

from __future__ import annotations

import math
import random
import statistics
from pathlib import Path

import pytest
import torch
from scholarch.distillation.measured import (
    ERRORS,
    FEWEST,
    WARM_UP,
    Measured,
    Meter,
    Observed,
    better,
    idle,
    line,
)
from scholarch.distillation.planner import Cost, Costs, equal, made
from scholarch.storage.objects import open_objects

PROCESSES = [
    Observed("small", 12, 4, 0.2, 0.4, 0.0),
    Observed("large", 6, 4, 1.0, 0.4, 0.0),
    Observed("large", 6, 4, 1.0, 0.4, 0.0),
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


def test_error_of_a_median_is_that_of_many_medians() -> None:
    draws = random.Random(0)
    seconds, errors = [], []
    for _ in range(400):
        meter = Meter(torch.device("cpu"))
        meter.stretches.extend((1.0, 1.0 + draws.gauss(3.0, 0.2)) for _ in range(50))
        seconds.append(meter.seconds())
        errors.append(meter.error())
    assert statistics.fmean(errors) == pytest.approx(statistics.stdev(seconds), rel=0.15)


def test_a_line_through_what_lies_on_one() -> None:
    found = line({2: 0.7, 4: 0.9, 10: 1.5})
    assert (found.fixed, found.per_picture) == (pytest.approx(0.5), pytest.approx(0.1))
    assert line({4: 0.8}) == Cost(0.0, 0.2)
    falling = line({2: 1.0, 4: 0.8})  # noise: 0.5 and 0.2 a picture
    assert (falling.fixed, falling.per_picture) == (0.0, pytest.approx(0.35))


def test_waiting_is_what_the_busiest_leaves() -> None:
    assert idle(PROCESSES, together=False) == pytest.approx(1 - (0.6 + 1.4 + 1.4) / (3 * 1.4))
    apart = [Observed("a", 1, 1, 1.0, 0.1, 0.0), Observed("b", 1, 3, 0.2, 0.9, 0.0)]
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
    level = [
        Observed("small", 12, 10, 0.2, 1.0, 0.0),
        *(Observed("large", 6, 1, 1.0, 0.1, 0.0) for _ in range(2)),
    ]
    assert better(Costs(costs.teacher, costs.students, False, ""), level, 12) is None


def test_a_gain_that_may_be_chance_is_not_worth_it() -> None:
    """5.1 % are waited, and 4.5 % of the step can be saved: 2.1 s instead of 2.2."""
    costs = Costs(Cost(0.0, 0.05), {"small": Cost(0.0, 1.15 / 48), "large": Cost(0.0, 0.1)}, False, "")

    def seen(error: float) -> list[Observed]:
        large = [Observed("large", 16, part, 1.6, 0.05 * part, error) for part in (12, 12, 6)]
        return [Observed("small", 48, 18, 1.15, 0.9, 0.0), *large]

    assert idle(seen(0.0), together=False) == pytest.approx(1 - 8.35 / 8.8)
    found = better(costs, seen(0.0), 48)
    assert found is not None
    assert found.step == pytest.approx(2.1)
    assert better(costs, seen(0.1 / ERRORS * 0.9), 48) is not None
    assert better(costs, seen(0.1 / ERRORS * 1.1), 48) is None


JOBS = {
    "a hundred pictures": (
        Costs(
            Cost(0.01, 0.004),
            {"a": Cost(0.02, 0.002), "b": Cost(0.02, 0.006), "c": Cost(0.03, 0.01)},
            False,
            "",
        ),
        96,
        8,
    ),
    # Many plans are next to equal: without a margin the job would move up to 20 times.
    "twelve pictures": (
        Costs(Cost(0.0116, 0.0186), {"a": Cost(0.0296, 0.00348), "b": Cost(0.0458, 0.01)}, False, ""),
        12,
        4,
    ),
}


@pytest.mark.parametrize("job", JOBS)
@pytest.mark.parametrize("spread", [0.0, 0.1])
def test_a_job_comes_to_rest(job: str, spread: float) -> None:
    """From equal groups, with steps that vary by `spread`: after few plans it stays, and little is waited."""
    true, batch, count = JOBS[job]
    draws, error = random.Random(1), spread * 1.25 / math.sqrt(50)
    for _ in range(10):
        measured, plan, plans = Measured("x", together=False), equal(true, count, batch), 0
        for _ in range(20):  # checkpoints
            seen = []
            for rank in range(count):
                name, part = plan.tiling.student(rank), plan.part(rank)
                pictures = -(-batch // plan.tiling.sizes[name])
                own, teacher = true.students[name].seconds(pictures), true.teacher.seconds(part)
                noisy = own * draws.gauss(1, error), teacher * draws.gauss(1, error)
                seen.append(Observed(name, pictures, part, *noisy, math.hypot(own, teacher) * error))
            measured = measured.with_seen(seen)
            costs = measured.costs(list(true.students))
            assert costs is not None
            found = better(costs, seen, batch)
            if found is not None:
                parts = [found.part(rank) for rank in range(count)]
                plan, plans = made(true, found.tiling.sizes, batch, parts=parts), plans + 1
        assert 1 <= plans <= 3
        assert plan.idle < 0.065


def test_what_was_seen_is_kept_by_pictures(tmp_path: Path) -> None:
    run = open_objects(str(tmp_path / "run"))
    assert Measured.read(run) is None
    known = Measured("EPYC", together=False).with_seen(PROCESSES)
    assert known.costs(["small", "huge"]) is None
    known = known.with_seen(
        [Observed("small", 6, 8, 0.15, 0.7, 0.0), Observed("small", 6, 8, 0.17, 0.7, 0.0)]
    )
    known.write(run)
    again = Measured.read(run)
    assert again == known
    assert again.students["small"] == {12: 0.2, 6: pytest.approx(0.16)}
    costs = again.costs(["small", "large"])
    assert costs is not None
    assert costs.source == "measured on EPYC"
    assert costs.teacher.seconds(6) == pytest.approx(0.55)
