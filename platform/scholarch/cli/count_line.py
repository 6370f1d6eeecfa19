"""What a person sees of long work that is counted: how much is done, how fast, how long it takes yet."""

from __future__ import annotations

import sys
import time

PLAIN_EVERY_SECONDS = 5.0


class CountLine:
    """One refreshing line with speed and time left; plain lines where there is no terminal.

    Args:
        verb: what was done to those that are counted.
        unit: what is counted, as it stands before "/s".
    """

    def __init__(self, verb: str, unit: str = "img") -> None:
        self.verb, self.unit = verb, unit
        self.began, self.last = time.monotonic(), time.monotonic()
        self.shown = False

    def __call__(self, done: int, total: int, broken: int = 0) -> None:
        """Shows that `done` of `total` are done, `broken` of them without success."""
        from scholarch.cli.console import duration

        now = time.monotonic()
        terminal = sys.stderr.isatty()
        if not terminal and done < total and now - self.last < PLAIN_EVERY_SECONDS:
            return
        self.last, speed = now, done / max(now - self.began, 1e-9)
        left = f"  ETA {duration((total - done) / speed)}" if done < total and speed else ""
        damaged = f"  {broken} left out" if broken else ""
        line = f"{self.verb} {done:,}/{total:,}  {speed:,.0f} {self.unit}/s{left}{damaged}"
        print(
            f"\r{line:<72}" if terminal else line, end="" if terminal else "\n", file=sys.stderr, flush=True
        )
        self.shown = terminal

    def end(self) -> None:
        """Goes on to a new line."""
        if self.shown:
            print(file=sys.stderr)
