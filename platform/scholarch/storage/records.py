"""The run's log of numbers, `metrics.jsonl`: one JSON object for each step that was reported.

The file is what a run knows about itself; MLflow and the report are both made from it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from scholarch.storage.local import append_line, write_text

RECORDS_NAME = "metrics.jsonl"

Record = dict[str, Any]
"""`step` (int), `time` (seconds since 1970), and numbers by slash-separated names."""


def append_record(path: Path, record: Mapping[str, Any]) -> None:
    """Add a record; numbers that are not finite stay as Python's JSON writes them (NaN, Infinity)."""
    append_line(path, json.dumps(record, separators=(",", ":")))


def read_records(path: Path) -> list[Record]:
    """All whole records in file order; [] without a file. A line torn by a kill is passed over."""
    return Follower(path).read()


def keep_records(path: Path, last_step: int, known: Sequence[Record] = ()) -> None:
    """Drop the records after `last_step`, and torn lines: what a resumed run will write again.

    Args:
        path: the file.
        last_step: finished steps that the run goes on from.
        known: records up to there that the file may lack, in order.
    """
    if not path.exists() and not known:
        return
    kept = [record for record in read_records(path) if record["step"] <= last_step]
    last = kept[-1]["step"] if kept else -1
    kept += [record for record in known if last < record["step"] <= last_step]
    write_text(path, "".join(json.dumps(record, separators=(",", ":")) + "\n" for record in kept))


class Follower:
    """Reads records as they are appended, from the beginning of the file.

    Reading does not move on by itself: `advance` does, once what was read is safe elsewhere.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._start = 0
        self._next = 0

    def read(self, at_most: int | None = None) -> list[Record]:
        """The whole records after the last `advance`, in order, at most `at_most` lines of them."""
        try:
            with self._path.open("rb") as file:
                if file.seek(0, 2) < self._start:  # rewritten shorter: begin again
                    self._start = 0
                file.seek(self._start)
                lines: list[bytes] = []
                while (at_most is None or len(lines) < at_most) and (line := file.readline()).endswith(b"\n"):
                    lines.append(line)
        except FileNotFoundError:
            lines = []
        self._next = self._start + sum(map(len, lines))
        return list(_parse(lines))

    def advance(self) -> None:
        """Go on behind what the last `read` returned."""
        self._start = self._next

    @property
    def at_end(self) -> bool:
        """Whether no whole line was appended behind the last `advance`."""
        self.read(at_most=1)
        return self._next == self._start


def _parse(lines: Iterable[bytes]) -> Iterable[Record]:
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            yield record
