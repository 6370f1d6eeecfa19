"""Schedules: a value over steps, as a list of segments (reference.md section 4.2).

A schedule is written as a number, or as a list of segments that follow one another; the value
of the last segment's end holds after it. Lengths are steps (int), a share of the run (float in
(0, 1]) or `rest`.

    lr:
      - {shape: linear, steps: 0.1, start: 0.0, end: 1.0e-3}
      - {shape: cosine, steps: rest, end: 1.0e-6}
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

Shape = Literal["constant", "linear", "cosine"]
Length = int | float | Literal["rest"]


@dataclass(frozen=True, kw_only=True)
class Segment:
    """One piece of a schedule.

    Attributes:
        shape: how the value goes from `start` to `end`.
        steps: length: steps, share of the run, or `rest`.
        start: value at the first step; None: the end of the segment before.
        end: value at the last step, or (without `endpoint`) at the step after it.
        endpoint: whether the last step of the segment is at `end` exactly (n points over n - 1
            intervals) or `end` is first met one step later (n intervals).
        truncate: cosine only, in (0, 1]: the share of the half wave that is walked. CAPI walks
            0.8 of it and so ends at 9.5 % of its start (reference.md section 3.8).
        hold: steps that each value is kept, of which `steps` should be a multiple; an epoch where the
            source's schedule moves with epochs (DINO's temperature, reference.md section 4.3).
    """

    shape: Shape = "constant"
    steps: Length = "rest"
    start: float | None = None
    end: float
    endpoint: bool = False
    truncate: float = 1.0
    hold: int = 1

    def __post_init__(self) -> None:
        if self.shape not in get_args(Shape):
            raise ValueError(f"shape must be one of {', '.join(get_args(Shape))}, not {self.shape!r}")
        if self.steps != "rest":
            if isinstance(self.steps, (str, bool)) or self.steps < 0:
                raise ValueError(
                    f"steps must be a whole number, a share in (0, 1] or 'rest', not {self.steps!r}"
                )
            if isinstance(self.steps, float) and not 0 < self.steps <= 1:
                raise ValueError(f"steps as a share must lie in (0, 1], not {self.steps}")
        if isinstance(self.hold, bool) or not isinstance(self.hold, int) or self.hold < 1:
            raise ValueError(f"hold must be a whole number of steps, at least 1, not {self.hold!r}")
        if not 0 < self.truncate <= 1:
            raise ValueError(f"truncate must lie in (0, 1], not {self.truncate}")

    def value(self, index: int, length: int, start: float) -> float:
        """Value at `index` of a segment of `length` steps that starts from `start`."""
        if self.shape == "constant":
            return self.end
        index, length = index // self.hold, -(-length // self.hold)
        intervals = length - 1 if self.endpoint else length
        t = index / intervals if intervals > 0 else 1.0
        if self.shape == "linear":
            return start + (self.end - start) * t
        return self.end + (start - self.end) * (1 + math.cos(math.pi * self.truncate * t)) / 2

    def last(self, start: float) -> float:
        """Value that holds after the segment."""
        if self.shape == "cosine" and self.truncate < 1:
            return self.end + (start - self.end) * (1 + math.cos(math.pi * self.truncate)) / 2
        return self.end


@dataclass(frozen=True)
class Schedule:
    """A value for each step from 0 on. Resolve it with the run's length before calling it."""

    segments: tuple[Segment, ...]

    @classmethod
    def parse(cls, value: Any) -> Schedule:
        """A number, a list of segments or a Schedule.

        Raises:
            ValueError: with the segment's number and what is wrong with it.
        """
        if isinstance(value, Schedule):
            return value
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return cls((Segment(end=float(value)),))
        if not isinstance(value, Sequence) or isinstance(value, str) or not value:
            raise ValueError(f"a schedule is a number or a list of segments, not {value!r}")
        return cls(tuple(_parse_segment(number, part) for number, part in enumerate(value, 1)))

    def resolve(self, total: int) -> Schedule:
        """The same with every length in steps, for a run of `total` steps.

        Raises:
            ValueError: if a segment before the last one is `rest` or lengths exceed the run.
        """
        resolved, used, value = [], 0, None
        for number, segment in enumerate(self.segments, 1):
            if segment.steps == "rest":
                if number < len(self.segments):
                    raise ValueError(f"segment {number}: only the last segment can be 'rest'")
                length = max(total - used, 0)
            else:
                length = round(segment.steps * total) if isinstance(segment.steps, float) else segment.steps
            start = segment.start if segment.start is not None else value
            if start is None:
                if segment.shape != "constant":
                    raise ValueError("segment 1: `start` is missing")
                start = segment.end
            resolved.append(replace(segment, steps=length, start=float(start)))
            used += length
            value = segment.last(float(start))
        return Schedule(tuple(resolved))

    def scale(self, factor: float) -> Schedule:
        """Every value times `factor`."""
        return Schedule(
            tuple(
                replace(s, end=s.end * factor, start=None if s.start is None else s.start * factor)
                for s in self.segments
            )
        )

    def __call__(self, step: int) -> float:
        value = 0.0
        for segment in self.segments:
            length, start = segment.steps, segment.start
            if not isinstance(length, int) or start is None:
                raise ValueError("this schedule has shares of the run in it: call resolve(total) first")
            if step < length:
                return segment.value(step, length, start)
            step -= length
            value = segment.last(start)
        return value

    def plain(self) -> float | list[dict[str, Any]]:
        """As it stands in a recipe file: a number, or a list of mappings without defaults."""
        if len(self.segments) == 1 and self.segments[0].shape == "constant":
            return self.segments[0].end
        return [
            {f.name: v for f in fields(s) if (v := getattr(s, f.name)) != f.default} for s in self.segments
        ]

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema

        return core_schema.no_info_plain_validator_function(
            cls.parse, serialization=core_schema.plain_serializer_function_ser_schema(cls.plain)
        )


def _parse_segment(number: int, part: Any) -> Segment:
    if isinstance(part, Segment):
        return part
    if not isinstance(part, Mapping):
        raise ValueError(
            f"segment {number}: a mapping such as {{shape: linear, steps: 0.1, start: 0, end: 1}}"
        )
    known = [f.name for f in fields(Segment)]
    unknown = [key for key in part if key not in known]
    if unknown:
        raise ValueError(f"segment {number}: unknown key {unknown[0]!r}; known: {', '.join(known)}")
    if "end" not in part:
        raise ValueError(f"segment {number}: `end` is missing")
    try:
        return Segment(**{**part, "end": float(part["end"])})
    except (TypeError, ValueError) as error:
        raise ValueError(f"segment {number}: {error}") from error
