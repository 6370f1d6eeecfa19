"""What a person sees while a run trains: one refreshing line, or plain lines where there is no terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import TextIO

from scholarch.training.health import warnings

PLAIN_EVERY_SECONDS = 5.0


class Console:
    """An Observer that writes to a terminal or a log.

    Args:
        steps: length of the run.
        stream: None: standard error.
        name: of one run among several at the same time, before each line.
    """

    def __init__(self, steps: int, stream: TextIO | None = None, name: str = "") -> None:
        self.steps, self.stream = steps, stream or sys.stderr
        self.named = f"{name}: " if name else ""
        self.refreshing = self.stream.isatty() and not name
        self.last = 0.0
        self.width = 0
        self.said: set[str] = set()
        self.suspected: set[str] = set()

    def recorded(self, record: Mapping[str, float]) -> None:
        """Shows the step, and what was measured at it."""
        measured = any(name.startswith(("evaluation/", "health/")) for name in record)
        now = time.monotonic()
        final = record["step"] == self.steps
        if self.refreshing:
            self._show(progress_line(record, self.steps))
            if final:
                self._line("")
        elif measured or final or now - self.last >= PLAIN_EVERY_SECONDS:
            if "loss/total" in record:
                self._line(progress_line(record, self.steps))
            self.last = now
        if measured:
            self._line(health_line(record))
        if measured:
            self._warn(warnings(record))

    def _warn(self, found: Mapping[str, str]) -> None:
        """Says once what was seen twice in a row: features begin alike, and that passes."""
        for name, warning in found.items():
            if name in self.suspected and name not in self.said:
                self.said.add(name)
                self.warned(warning)
        self.suspected = set(found)

    def warned(self, message: str) -> None:
        """Shows a warning on a line of its own."""
        self._line(f"warning: {message}")

    def _show(self, text: str) -> None:
        self.stream.write("\r" + text.ljust(self.width))
        self.stream.flush()
        self.width = len(text)

    def _line(self, text: str) -> None:
        if self.refreshing and self.width:
            self.stream.write("\r" + " " * self.width + "\r")
            self.width = 0
        if text:
            self.stream.write(f"{self.named}{text}\n")
        self.stream.flush()


def progress_line(record: Mapping[str, float], steps: int) -> str:
    """One line of a step: losses, gradient, rate, speed, data wait, memory, time left."""
    parts = [f"step {int(record['step']):>{len(str(steps))}}/{steps}"]
    if "loss/total" not in record:
        return parts[0]
    losses: dict[str, float] = {}
    for name, value in record.items():
        if name.startswith("loss/") and name != "loss/total":
            term = name.split("/")[1]
            losses[term] = losses.get(term, 0.0) + value
    parts.append(f"loss {record['loss/total']:.4f}")
    parts.append("(" + " ".join(f"{term} {value:.3f}" for term, value in losses.items()) + ")")
    parts.append(f"grad {record.get('gradient_norm/backbone', 0.0):.2f}")
    parts.append(f"lr {record['lr']:.1e}")
    if "images_per_second" in record:
        parts.append(f"{record['images_per_second']:.0f} img/s")
        parts.append(f"data wait {record['data_wait']:.0%}")
    parts.append(f"{record['memory_gib']:.1f} GiB")
    if "eta_seconds" in record:
        parts.append(f"ETA {duration(record['eta_seconds'])}")
    return "  ".join(parts)


def health_line(record: Mapping[str, float]) -> str:
    """One line of what was measured at this step."""
    shown = {
        name.removeprefix("health/").removeprefix("evaluation/"): value
        for name, value in record.items()
        if name.startswith(("evaluation/", "health/"))
    }
    words = "  ".join(f"{name} {value:.3f}" for name, value in shown.items())
    return f"  step {int(record['step'])}: {words}"


def duration(seconds: float) -> str:
    """Hours, minutes and seconds, as short as they go."""
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole % 3600 // 60, whole % 60
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"
