"""What the steps of a running job cost, measured, and when that asks for another plan.

Every process times its part of the teacher's work and its student's own; the costs of the planner are lines through
the medians, by pictures. They stand beside the run with the hardware's name, and count on that hardware alone.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from scholarch.distillation.planner import Cost, Costs, JobPlan, made, plan_job
from scholarch.storage.objects import Objects

NAME = "costs.json"
WARM_UP, FEWEST = 2, 3
"""Steps that do not count, and how many must."""
IDLE, GAIN = 0.05, 0.02
"""Share of time waited above which another plan is looked for, and of a step that it must save at least."""
ERRORS = 2.0
"""Standard errors of the busiest process's seconds that it must save too: what is less may be chance."""


class Meter:
    """Seconds of the last stretches of one kind of work on this process.

    On a GPU between two points of its stream; on a processor those of this thread, so that waiting for others,
    and what else the machine does, count little.
    """

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self.count = 0
        self.stretches: deque[tuple[Any, Any]] = deque(maxlen=50)
        self._began: Any = None

    def begin(self) -> None:
        """A stretch begins here."""
        self._began = self._now()

    def end(self) -> None:
        """And ends here."""
        self.count += 1
        if self.count > WARM_UP:
            self.stretches.append((self._began, self._now()))

    def _now(self) -> Any:
        if not self.cuda:
            return time.thread_time()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def seconds(self) -> float:
        """The median; not a number while there are too few."""
        return statistics.median(self._lengths()) if len(self.stretches) >= FEWEST else math.nan

    def error(self) -> float:
        """Standard error of `seconds`, from the middle half of the stretches; not a number while there are too few.

        A normal distribution's middle half is 1.35 standard deviations wide, and its median's error 1.25 of its mean's.
        """
        if len(self.stretches) < FEWEST:
            return math.nan
        lower, _, upper = statistics.quantiles(self._lengths(), n=4, method="inclusive")
        return (upper - lower) / 1.35 * 1.25 / math.sqrt(len(self.stretches))

    def _lengths(self) -> list[float]:
        if not self.cuda:
            return [end - begin for begin, end in self.stretches]
        self.stretches[-1][1].synchronize()
        return [begin.elapsed_time(end) / 1e3 for begin, end in self.stretches]


class Observed(NamedTuple):
    """Of one process.

    Attributes:
        student: its student's name.
        own: pictures that it trains on in a step.
        part: pictures of its part of the teacher's work.
        student_seconds, teacher_seconds: of a step.
        error: standard error of both together.
    """

    student: str
    own: int
    part: int
    student_seconds: float
    teacher_seconds: float
    error: float


Points = Mapping[int, float]
"""Seconds by pictures."""


@dataclass(frozen=True)
class Measured:
    """What is known of a job's networks on one kind of hardware.

    Attributes:
        hardware: its name.
        together: all processes held the teacher together.
        teacher, students: what was seen.
    """

    hardware: str
    together: bool
    teacher: Points = field(default_factory=dict)
    students: Mapping[str, Points] = field(default_factory=dict)

    def with_seen(self, processes: Sequence[Observed]) -> Measured:
        """With what the processes saw; where several had as many pictures, their mean."""
        teacher = _means((one.part, one.teacher_seconds) for one in processes if one.part)
        names = dict.fromkeys(one.student for one in processes)
        students = {
            name: _means((one.own, one.student_seconds) for one in processes if one.student == name)
            for name in names
        }
        known = {name: {**self.students.get(name, {}), **points} for name, points in students.items()}
        return Measured(self.hardware, self.together, {**self.teacher, **teacher}, {**self.students, **known})

    def costs(self, names: Sequence[str]) -> Costs | None:
        """Lines through what was seen; None where the teacher or one of these students was not."""
        if not self.teacher or any(not self.students.get(name) for name in names):
            return None
        students = {name: line(self.students[name]) for name in names}
        return Costs(line(self.teacher), students, self.together, f"measured on {self.hardware}")

    def write(self, run: Objects) -> None:
        """Beside the run."""
        points = {name: sorted(seen.items()) for name, seen in self.students.items()}
        content = {
            "hardware": self.hardware,
            "together": self.together,
            "teacher": sorted(self.teacher.items()),
            "students": points,
        }
        run.write(NAME, json.dumps(content, indent=1).encode())

    @classmethod
    def read(cls, run: Objects) -> Measured | None:
        """What stands beside a run; None: nothing."""
        try:
            found = json.loads(run.read(NAME))
        except FileNotFoundError:
            return None
        students = {name: dict(map(tuple, points)) for name, points in found["students"].items()}
        return cls(found["hardware"], found["together"], dict(map(tuple, found["teacher"])), students)


def _means(points: Any) -> dict[int, float]:
    found: dict[int, list[float]] = {}
    for pictures, seconds in points:
        found.setdefault(pictures, []).append(seconds)
    return {pictures: statistics.fmean(seconds) for pictures, seconds in found.items()}


def line(points: Points) -> Cost:
    """The least-squares line through seconds by pictures, relative; through the origin where it would fall or start
    below zero, as it does where there is one point."""
    n, s = list(points), list(points.values())
    through_origin = Cost(0.0, sum(b / a for a, b in points.items()) / len(points))
    if len(points) < 2:
        return through_origin
    weights = [1 / b**2 for b in s]  # a tenth too much is as bad for a small part as for a large one
    mean_n = sum(w * a for w, a in zip(weights, n, strict=True)) / sum(weights)
    mean_s = sum(w * b for w, b in zip(weights, s, strict=True)) / sum(weights)
    spread = sum(w * (a - mean_n) ** 2 for w, a in zip(weights, n, strict=True))
    each = sum(w * (a - mean_n) * (b - mean_s) for w, a, b in zip(weights, n, s, strict=True)) / spread
    fixed = mean_s - each * mean_n
    return Cost(fixed, each) if each > 0 and fixed >= 0 else through_origin


def idle(processes: Sequence[Observed], *, together: bool) -> float:
    """Share of all processes' time that is waiting for the busiest."""
    busy = [one.student_seconds + one.teacher_seconds for one in processes]
    step = max(busy)
    if together:
        step = max(p.teacher_seconds for p in processes) + max(p.student_seconds for p in processes)
    return 1 - sum(busy) / (len(busy) * step)


def better(costs: Costs, processes: Sequence[Observed], global_batch: int) -> JobPlan | None:
    """A plan that is worth moving to; None: things are well as they are.

    Both plans are compared by the same costs, so that a job which has the best plan stays with it.
    """
    if idle(processes, together=costs.together) <= IDLE:
        return None
    names = list(costs.students)
    sizes = {name: sum(one.student == name for one in processes) for name in names}
    now = made(costs, sizes, global_batch, parts=[one.part for one in processes])
    found = plan_job(costs, len(processes), global_batch)
    busiest = max(processes, key=lambda one: one.student_seconds + one.teacher_seconds)
    least = max(GAIN * now.step, ERRORS * busiest.error)
    return found if now.step - found.step > least else None


def hardware_name(device: torch.device) -> str:
    """Of the GPU, or of the processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    model = next((text.partition(":")[2].strip() for text in lines if text.startswith("model name")), "")
    return model or os.uname().machine
