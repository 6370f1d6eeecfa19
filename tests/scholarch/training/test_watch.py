"""Heartbeats as a worker writes and an agent reads them, and who of the overdue is to blame."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from scholarch.errors import RunFailed
from scholarch.training.heartbeat import ENDED, SETTLING, STEPPING, Beat, Heartbeat, read_beat
from scholarch.training.watch import SETTLING_FACTOR, Watch, waits

COMPUTES = """Thread 0x00007f0000000001 (most recent call first):
  File "/usr/lib/python3.11/threading.py", line 331 in wait
  File "/usr/lib/python3.11/threading.py", line 629 in wait

Current thread 0x00007f0000000002 (most recent call first):
  File "/x/torch/nn/modules/linear.py", line 134 in forward
  File "/x/scholarch/training/trainer.py", line 160 in _step
  File "/x/scholarch/training/trainer.py", line 140 in run
"""
EXCHANGES = COMPUTES.replace("torch/nn/modules/linear.py", "torch/distributed/distributed_c10d.py")
IN_A_WRAPPER = COMPUTES.replace(
    "trainer.py", "torch/distributed/algorithms/_checkpoint/checkpoint_wrapper.py"
)


@pytest.mark.parametrize(("stack", "expected"), [(COMPUTES, False), (EXCHANGES, True), (IN_A_WRAPPER, False)])
def test_waits(stack: str, expected: bool) -> None:
    assert waits(stack) is expected


def test_beats_arrive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCHOLARCH_HEARTBEATS", str(tmp_path))
    monkeypatch.setenv("LOCAL_RANK", "1")
    path = tmp_path / "1"
    assert read_beat(path) is None
    heartbeat = without_death_signal()
    assert read_beat(path) == Beat()

    def fail() -> None:
        with heartbeat.living(), heartbeat.training(4):
            assert read_beat(path) == Beat(1, 4, 4, SETTLING), "the first step may take longer"
            heartbeat.beat(5, 4)
            assert read_beat(path) == Beat(2, 5, 4, STEPPING)
            raise RunFailed("step 5: not finite")

    with pytest.raises(RunFailed):
        fail()
    assert read_beat(path) == Beat(4, 5, 4, ENDED)
    watch = Watch(tmp_path, 1)
    watch.read()
    assert (watch.step, watch.committed) == (5, 4)
    assert watch.reason(1) == "step 5: not finite"


def without_death_signal() -> Heartbeat:
    """This test's process is to outlive the thread that made it."""
    platform, sys.platform = sys.platform, "none"
    try:
        return Heartbeat.from_environment()
    finally:
        sys.platform = platform


def test_without_an_agent_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SCHOLARCH_HEARTBEATS", raising=False)
    heartbeat = Heartbeat.from_environment()
    with heartbeat.living(), heartbeat.training(0):
        heartbeat.beat(1, 0)


PROGRAM = """
import sys, time
from scholarch.training.heartbeat import Heartbeat
heartbeat = Heartbeat.from_environment()
def sleeps():
    time.sleep(60)
with heartbeat.living(), heartbeat.training(0):
    if sys.argv[1] == "stepping":
        heartbeat.beat(1, 0)
    sleeps()
"""


def look_long(phase: str, folder: Path, stall: float, seconds: float) -> tuple[list[tuple[str, str]], float]:
    """(state, stack) of what is found hung within `seconds`, and after how long."""
    environment = {**os.environ, "SCHOLARCH_HEARTBEATS": str(folder), "LOCAL_RANK": "0"}
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, phase], env=environment)
    watch = Watch(folder, stall)
    try:
        until = time.monotonic() + 60
        while (beat := read_beat(folder / "0")) is None or beat.count < 1 + (phase == "stepping"):
            assert time.monotonic() < until
            time.sleep(0.02)
        start = time.monotonic()
        while time.monotonic() - start < seconds:
            if found := watch.look({0: process.pid}):
                return [(one.state, one.stack) for one in found], time.monotonic() - start
            time.sleep(0.05)
        return [], seconds
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def test_a_busy_worker_shows_where_it_is(tmp_path: Path) -> None:
    ((state, stack),), _ = look_long("stepping", tmp_path, 0.3, 30)
    assert state == "busy"
    assert "in sleeps" in stack.splitlines()[0]


def test_the_first_step_may_take_longer(tmp_path: Path) -> None:
    (_,), seconds = look_long("settling", tmp_path, 0.3, 60)
    assert seconds >= 0.3 * SETTLING_FACTOR


def test_stall_0_never_finds_anything(tmp_path: Path) -> None:
    assert look_long("stepping", tmp_path, 0, 1.5)[0] == []
