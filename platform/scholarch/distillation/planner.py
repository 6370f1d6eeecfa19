"""How many processes each student gets, and how much of the teacher's work each process does.

A process of a student with n processes and a global batch of G spends

    teacher.seconds(its part) + student.seconds(ceil(G / n))

on a step. The exchange is a step ahead, so a step lasts as long as the busiest process where each holds the whole
teacher. Where all hold it together, they run it in step with one another: then the largest part counts for all.

Units: seconds; pictures of the global batch, each with all its crops.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scholarch.distillation.groups import Tiling, apportion, edges, even
from scholarch.errors import UserError


@dataclass(frozen=True)
class Cost:
    """Of a network on one process.

    Attributes:
        fixed: seconds of a step, however few pictures.
        per_picture: seconds that each adds; forward alone for a teacher, with backward and optimizer for a student.
    """

    fixed: float
    per_picture: float

    def seconds(self, pictures: int) -> float:
        """Of a step with so many pictures; none take no time."""
        return self.fixed + self.per_picture * pictures if pictures else 0.0

    def most(self, seconds: float) -> int:
        """Pictures that fit into a time."""
        # What rounding took away must not cost a picture.
        return max(int((seconds - self.fixed) / self.per_picture + 1e-9), 0)


@dataclass(frozen=True)
class Costs:
    """Of one job.

    Attributes:
        teacher, students: on one process.
        together: all processes hold the teacher together, in shards, in place of each a whole one.
        source: where the numbers are from, for people.
    """

    teacher: Cost
    students: Mapping[str, Cost]
    together: bool
    source: str


@dataclass(frozen=True)
class JobPlan:
    """A tiling and what a step of it is expected to take.

    Attributes:
        tiling: who does what.
        costs: by which it was made.
        global_batch: pictures of a step.
        step: seconds of a step.
        busy: [processes] seconds of each that are work.
    """

    tiling: Tiling
    costs: Costs
    global_batch: int
    step: float
    busy: Sequence[float]

    @property
    def idle(self) -> float:
        """Share of all processes' time that is waiting."""
        return 1 - sum(self.busy) / (len(self.busy) * self.step)

    def student_seconds(self, name: str) -> float:
        """Of a step, that a process of a student works for it."""
        return self.costs.students[name].seconds(-(-self.global_batch // self.tiling.sizes[name]))

    def teacher_seconds(self, name: str) -> tuple[float, float]:
        """The least and the most that a process of a student works for the teacher."""
        parts = [self.part(rank) for rank in self.tiling.ranks(name)]
        return self.costs.teacher.seconds(min(parts)), self.costs.teacher.seconds(max(parts))

    def part(self, rank: int) -> int:
        """Pictures of the teacher's part of a process."""
        return self.tiling.teacher[rank + 1] - self.tiling.teacher[rank]


def made(
    costs: Costs, sizes: Mapping[str, int], global_batch: int, *, parts: Sequence[int] | None = None
) -> JobPlan:
    """The plan with groups of these sizes, the teacher's work laid where it delays least, or as `parts` say."""
    own = [seconds for name, seconds in _own(costs, sizes, global_batch).items() for _ in range(sizes[name])]
    found = list(parts) if parts is not None else _parts(costs, own, global_batch)
    teacher = [costs.teacher.seconds(part) for part in found]
    busy = [a + b for a, b in zip(own, teacher, strict=True)]
    step = max(teacher) + max(own) if costs.together else max(busy)
    return JobPlan(Tiling(dict(sizes), edges(found)), costs, global_batch, step, busy)


def equal(costs: Costs, world_size: int, global_batch: int) -> JobPlan:
    """Equal groups and equal parts: what there is without a plan."""
    sizes = apportion(world_size, [1.0] * len(costs.students), least=1)
    cut = even(global_batch, world_size)
    parts = [b - a for a, b in itertools.pairwise(cut)]
    return made(costs, dict(zip(costs.students, sizes, strict=True)), global_batch, parts=parts)


def plan_job(
    costs: Costs, world_size: int, global_batch: int, most: Mapping[str, int] | None = None
) -> JobPlan:
    """The groups and parts with the shortest step.

    Groups begin in proportion to the students' work; then processes move from one student to another, many at a time
    and at last one, as long as that shortens the step. A group has no more processes than pictures.

    Args:
        costs: measured, or from the table.
        most: processes beyond which a student's group may not grow; None: the global batch.

    Raises:
        UserError: if there are fewer processes than students, or more than pictures for all of them.
    """
    names = list(costs.students)
    limit = {name: min(global_batch, (most or {}).get(name, global_batch)) for name in names}
    if not len(names) <= world_size <= sum(limit.values()):
        raise UserError(
            f"{len(names)} students on a global batch of {global_batch} use {len(names)} to {sum(limit.values())} "
            f"processes, not {world_size}",
            where="--gpus",
            fix="change their number, or training.global_batch",
        )
    weights = [costs.students[name].seconds(global_batch) for name in names]
    sizes = dict(zip(names, apportion(world_size, weights, least=1), strict=True))
    best = _step(costs, sizes, global_batch)
    stride = max(world_size // 8, 1)
    while stride:
        moved = False
        for giver in names:
            for taker in names:
                count = min(stride, sizes[giver] - 1, limit[taker] - sizes[taker])
                if giver == taker or count < 1:
                    continue
                tried = {**sizes, giver: sizes[giver] - count, taker: sizes[taker] + count}
                step = _step(costs, tried, global_batch)
                if step < best * (1 - 1e-9):
                    sizes, best, moved = tried, step, True
        if not moved:
            stride //= 2
    return made(costs, sizes, global_batch)


def _own(costs: Costs, sizes: Mapping[str, int], global_batch: int) -> dict[str, float]:
    return {name: costs.students[name].seconds(-(-global_batch // size)) for name, size in sizes.items()}


def _step(costs: Costs, sizes: Mapping[str, int], global_batch: int) -> float:
    own = _own(costs, sizes, global_batch)
    if costs.together:
        return costs.teacher.seconds(-(-global_batch // sum(sizes.values()))) + max(own.values())
    return _shortest(costs, [(own[name], size) for name, size in sizes.items()], global_batch)


def _shortest(costs: Costs, groups: Sequence[tuple[float, int]], global_batch: int) -> float:
    """The shortest step in which processes, in groups of equal own work, have room for the teacher's work too."""
    teacher = costs.teacher
    longest = max(own for own, _ in groups)
    # Some process is done just then: with a whole number of pictures, or with its own work alone.
    times = {longest}
    for own, _ in groups:
        fewest, enough = teacher.most(longest - own), global_batch
        counts = range(max(fewest, 1), enough + 1)

        def fits(count: int, own: float = own) -> bool:
            return _room(teacher, groups, own + teacher.seconds(count)) >= global_batch

        place = bisect.bisect_left(counts, True, key=fits)
        if place < len(counts):
            times.add(own + teacher.seconds(counts[place]))
    return min(t for t in times if t >= longest and _room(teacher, groups, t) >= global_batch)


def _room(teacher: Cost, groups: Sequence[tuple[float, int]], seconds: float) -> int:
    return sum(size * teacher.most(seconds - own) for own, size in groups)


def _parts(costs: Costs, own: Sequence[float], global_batch: int) -> list[int]:
    """Pictures of the teacher for each process: as even as can be in time, and never more than there are."""
    world_size = len(own)
    if costs.together:
        cut = even(global_batch, world_size)
        return [b - a for a, b in itertools.pairwise(cut)]
    groups = [(seconds, own.count(seconds)) for seconds in dict.fromkeys(own)]
    step = _shortest(costs, groups, global_batch)
    room = [costs.teacher.most(step - seconds) for seconds in own]
    # There may be room for more than there is: every process leaves the same share of its own.
    return _within(room, apportion(global_batch, [float(part) for part in room]), global_batch)


def _within(room: Sequence[int], parts: list[int], total: int) -> list[int]:
    """`parts` with what exceeds a process's room moved to those with some left."""
    parts = [min(part, most) for part, most in zip(parts, room, strict=True)]
    left = total - sum(parts)
    for rank, most in enumerate(room):
        added = min(left, most - parts[rank])
        parts[rank] += added
        left -= added
    return parts
