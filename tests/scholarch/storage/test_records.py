"""metrics.jsonl: what is read back after kills and while it grows."""

from __future__ import annotations

import math
from pathlib import Path

from scholarch.storage.records import Follower, append_record, keep_records, read_records


def steps(records: list[dict[str, float]]) -> list[float]:
    return [record["step"] for record in records]


def test_records_come_back_as_written(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    append_record(path, {"step": 1, "time": 2.5, "loss/total": 0.1 + 0.2})
    append_record(path, {"step": 2, "time": 3.5, "loss/total": math.inf})

    assert read_records(path) == [
        {"step": 1, "time": 2.5, "loss/total": 0.1 + 0.2},
        {"step": 2, "time": 3.5, "loss/total": math.inf},
    ]
    assert path.read_text().count("\n") == 2


def test_no_file_is_no_records(tmp_path: Path) -> None:
    assert read_records(tmp_path / "metrics.jsonl") == []
    keep_records(tmp_path / "metrics.jsonl", 3)
    assert list(tmp_path.iterdir()) == []


def test_torn_lines_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "lo{"step": 3}\n[4]\n{"step": 5}\n{"step": 6')

    assert steps(read_records(path)) == [1, 5]


def test_a_resumed_run_keeps_what_came_before(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 10}\n{"step": 20, "x": NaN}\n{"step": 30}\n{"step": 4')

    keep_records(path, 20)
    append_record(path, {"step": 21})

    assert steps(read_records(path)) == [10, 20, 21]


def test_a_follower_reads_whole_lines_as_they_come(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    follower = Follower(path)
    assert follower.read() == []
    assert follower.at_end

    path.write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert steps(follower.read(at_most=1)) == [1]
    assert steps(follower.read(at_most=1)) == [1]  # nothing is passed before advance
    follower.advance()
    assert not follower.at_end
    assert steps(follower.read()) == [2]
    follower.advance()
    assert follower.at_end

    with path.open("a") as file:
        file.write('ep": 3}\n')
    assert not follower.at_end
    assert steps(follower.read()) == [3]


def test_a_follower_begins_again_when_the_file_was_cut(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n')
    follower = Follower(path)
    follower.read()
    follower.advance()

    keep_records(path, 1)

    assert steps(follower.read()) == [1]
