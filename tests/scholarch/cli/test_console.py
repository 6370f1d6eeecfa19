import io

import pytest
from scholarch.cli.console import Console, duration, progress_line

RECORD = {
    "step": 3,
    "loss/total": 8.25,
    "loss/dino/global": 1.0,
    "loss/dino/local": 4.5,
    "loss/ibot": 2.75,
    "gradient_norm/backbone": 0.5,
    "lr": 1e-3,
    "images_per_second": 120.0,
    "data_wait": 0.07,
    "eta_seconds": 75.0,
    "memory_gib": 1.25,
}
SICK = {"health/feature_std": 0.001}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_line_says_everything_of_a_step() -> None:
    assert progress_line(RECORD, 100) == (
        "step   3/100  loss 8.2500  (dino 5.500 ibot 2.750)  grad 0.50  lr 1.0e-03  120 img/s  "
        "data wait 7%  1.2 GiB  ETA 1m15s"
    )


def test_a_terminal_gets_one_refreshing_line() -> None:
    stream = Terminal()
    console = Console(100, stream)
    for step in (1, 2, 3):
        console.recorded({**RECORD, "step": step})
    assert stream.getvalue().count("\r") == 3
    assert "\n" not in stream.getvalue()


def test_a_log_gets_plain_lines() -> None:
    stream = io.StringIO()
    console = Console(3, stream)
    console.recorded({**RECORD, "step": 1})
    console.recorded({**RECORD, "step": 2})
    console.recorded({**RECORD, "step": 3, "evaluation/knn": 0.5})
    lines = stream.getvalue().splitlines()
    assert [line.split()[0:2] for line in lines] == [["step", "1/3"], ["step", "3/3"], ["step", "3:"]]
    assert "knn 0.500" in lines[-1]
    assert "\r" not in stream.getvalue()


def test_a_collapse_is_told_once_when_it_stays() -> None:
    stream = io.StringIO()
    console = Console(100, stream)
    console.recorded({**RECORD, **SICK})
    assert "collapse" not in stream.getvalue()
    for _ in range(3):
        console.recorded({**RECORD, **SICK})
    assert stream.getvalue().count("warning: collapse") == 1


@pytest.mark.parametrize(("seconds", "words"), [(3.2, "3s"), (75, "1m15s"), (7500, "2h05m")])
def test_duration(seconds: float, words: str) -> None:
    assert duration(seconds) == words
