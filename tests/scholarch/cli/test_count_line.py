import io
import sys

import pytest
from scholarch.cli import count_line
from scholarch.cli.count_line import CountLine


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(count_line, "time", clock)
    return clock


def test_a_log_gets_a_line_every_five_seconds_and_the_last_one(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    line = CountLine("packed")
    for clock.now, *counts in (
        (101.0, 10, 5000),
        (105.0, 1000, 5000),
        (106.0, 1100, 5000),
        (110.0, 4000, 5000, 2),
        (120.0, 4000, 4000, 2),
    ):
        line(*counts)
    line.end()
    assert capsys.readouterr().err.splitlines() == [
        "packed 1,000/5,000  200 img/s  ETA 20s",
        "packed 4,000/5,000  400 img/s  ETA 2s  2 left out",
        "packed 4,000/4,000  200 img/s  2 left out",
    ]


def test_a_terminal_gets_one_refreshing_line(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    line = CountLine("seen", "windows")
    line(0, 64)
    clock.now += 2
    line(32, 64)
    line(64, 64)
    line.end()
    shown = [part.rstrip() for part in stream.getvalue().split("\r")]
    assert shown == [
        "",
        "seen 0/64  0 windows/s",
        "seen 32/64  16 windows/s  ETA 2s",
        "seen 64/64  32 windows/s",
    ]
    assert stream.getvalue().endswith("\n")
