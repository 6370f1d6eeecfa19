"""`scholarch`, which keeps beside each run what its process worked: started as the launcher's `--module worked`.

A line {step, seconds, process} in worked.jsonl for each line of metrics.jsonl; seconds are those of the processor that
all threads of the run's first process took. What it does for others, such as its part of a shared teacher's work, is
in them.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

from scholarch.cli import main, session

NAME = "worked.jsonl"


class Worked(session.Records):
    """The run's records, each with the processor's time beside it."""

    def recorded(self, record: Mapping[str, float]) -> None:
        """Writes both."""
        super().recorded(record)
        line = {"step": record["step"], "seconds": time.process_time(), "process": os.getpid()}
        with self.path.with_name(NAME).open("a") as file:
            file.write(json.dumps(line) + "\n")


def seconds_of_a_step(run: Path) -> float:
    """Processor seconds of a step, the mean over a run; without its first and its last one, where it is evaluated."""
    lines = [json.loads(line) for line in (run / NAME).read_text().splitlines()]
    last = max(line["step"] for line in lines)
    inner = [line for line in lines if 0 < line["step"] < last]
    # A run that was stopped goes on in another process, whose clock begins anew.
    gaps = [(a, b) for a, b in pairwise(inner) if a["process"] == b["process"] and b["step"] > a["step"]]
    seconds, steps = (sum(b[of] - a[of] for a, b in gaps) for of in ("seconds", "step"))
    return float(seconds / steps)


if __name__ == "__main__":
    session.Records = Worked  # type: ignore[misc]
    sys.exit(main())
