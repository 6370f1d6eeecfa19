"""Plans against a search through every possibility, and by hand."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
from scholarch.distillation.planner import Cost, Costs, equal, made, plan_job
from scholarch.errors import UserError

BATCH = 6
COSTS = {"a": Cost(0.2, 0.1), "b": Cost(0.3, 0.4), "c": Cost(0.1, 1.0)}


def groups(world_size: int, names: int) -> Iterator[tuple[int, ...]]:
    return (s for s in itertools.product(range(1, world_size), repeat=names) if sum(s) == world_size)


def parts(left: int, processes: int) -> Iterator[tuple[int, ...]]:
    if processes == 1:
        yield (left,)
        return
    for first in range(left + 1):
        yield from ((first, *rest) for rest in parts(left - first, processes - 1))


def slow_step(costs: Costs, sizes: tuple[int, ...], cut: tuple[int, ...]) -> float:
    """The busiest process's time, or, in step, the largest of both works."""
    own = [
        costs.students[name].fixed + costs.students[name].per_picture * -(-BATCH // size)
        for name, size in zip(costs.students, sizes, strict=True)
        for _ in range(size)
    ]
    teacher = [costs.teacher.fixed + costs.teacher.per_picture * n if n else 0.0 for n in cut]
    if costs.together:
        return max(own) + max(teacher)
    return max(a + b for a, b in zip(own, teacher, strict=True))


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("world_size", [3, 4, 5])
@pytest.mark.parametrize("teacher", [Cost(0.0, 0.5), Cost(0.2, 2.0), Cost(0.05, 0.01)])
def test_no_other_groups_and_parts_are_faster(together: bool, world_size: int, teacher: Cost) -> None:
    costs = Costs(teacher, COSTS, together, "a test")
    best = min(
        slow_step(costs, sizes, cut) for sizes in groups(world_size, 3) for cut in parts(BATCH, world_size)
    )
    found = plan_job(costs, world_size, BATCH)
    sizes = tuple(found.tiling.sizes.values())
    cut = tuple(found.part(rank) for rank in range(world_size))
    assert sum(cut) == BATCH
    assert found.step == pytest.approx(slow_step(costs, sizes, cut))
    assert found.step == pytest.approx(best)


def test_work_that_divides_leaves_nobody_waiting() -> None:
    """Students that cost 1, 1 and 2 a picture, a teacher of 1: on 8 processes 5 / 8 of 40 pictures' time."""
    costs = Costs(
        Cost(0.0, 1.0), {"a": Cost(0.0, 1.0), "b": Cost(0.0, 1.0), "c": Cost(0.0, 2.0)}, False, "a test"
    )
    found = plan_job(costs, 8, 40)
    assert found.step == pytest.approx(25.0)
    assert found.idle == pytest.approx(0.0)
    assert equal(costs, 4, 40).tiling.sizes == {"a": 2, "b": 1, "c": 1}
    # Two processes of a work 20 + 10, one of b 40 + 10, one of c 80 + 10.
    assert equal(costs, 4, 40).step == pytest.approx(90.0)
    assert equal(costs, 4, 40).idle == pytest.approx(1 - (30 + 30 + 50 + 90) / 360)


def test_a_large_job_is_planned_to_a_few_hundredths_of_idle_time() -> None:
    work = {"s": 44, "s+": 57, "b": 169, "l": 593, "h+": 1628}
    costs = Costs(Cost(0.0, 7.1), {name: Cost(0.0, 4e-3 * w) for name, w in work.items()}, False, "a test")
    for world_size in (8, 64, 256):
        found = plan_job(costs, world_size, 1920)
        assert sum(found.tiling.sizes.values()) == world_size
        assert found.tiling.teacher[-1] == 1920
        # Whole pictures on each process are all that is left of waiting.
        assert found.idle < 0.05 < equal(costs, world_size, 1920).idle
        assert made(costs, found.tiling.sizes, 1920).step == found.step


def test_more_processes_than_pictures_are_a_mistake() -> None:
    with pytest.raises(UserError, match="3 to 18 processes, not 19"):
        plan_job(Costs(Cost(0, 1), COSTS, False, ""), 19, BATCH)
    with pytest.raises(UserError, match="not 2"):
        plan_job(Costs(Cost(0, 1), COSTS, False, ""), 2, BATCH)
