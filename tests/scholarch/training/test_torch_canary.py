"""Torch's own settings against ours when a node joins a run that has begun (pytorch#147064, torch 2.15).

With the store of the rendezvous shared, which is torch's default, the old agents never publish where the
workers of the new round meet; the newcomer waits for it and all agents end. When the first of these tests
fails, torch is mended, and the setting in scholarch.training.launch may go.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest
from launched import SECONDS, torchrun_node
from meeting_place import meeting_place
from processes import start_process

SHARING = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"
WORKER = """
import os, sys, time
from pathlib import Path
folder = Path(sys.argv[1])
(folder / f"up-{os.environ['WORLD_SIZE']}-{os.environ['RANK']}").touch()
while not (folder / "finish").exists():
    time.sleep(0.05)
"""
TIMERS = "is_host=false,read_timeout=6,last_call_timeout=8,keep_alive_interval=1,keep_alive_max_attempt=10"
"""The last call is longer than a few looks of a node that waits, which come a second and more apart: with a
last call of 1 s two of three nodes may form a round without the third, again and again."""


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], ForkServerProcess]]:
    """Starts a node whose workers wait for `tmp_path/finish`; the store stands outside all of them."""
    (tmp_path / "worker.py").write_text(WORKER)
    began: list[ForkServerProcess] = []

    def starts(setting: str) -> ForkServerProcess:
        monkeypatch.setenv(SHARING, setting)
        words = ["--nnodes=2:3", "--nproc-per-node=1", "--max-restarts=3", "--rdzv-backend=c10d"]
        words += [f"--rdzv-endpoint=localhost:{port}", "--rdzv-id=canary", f"--rdzv-conf={TIMERS}"]
        words += ["--monitor-interval=0.1", "--local-addr=localhost"]
        words += [str(tmp_path / "worker.py"), str(tmp_path)]
        began.append(start_process(torchrun_node, tmp_path / f"log-{len(began)}", words))
        return began[-1]

    with meeting_place() as port:
        yield starts
        (tmp_path / "finish").touch()
        for process in began:
            process.join(5)
            process.kill()


def wait_for(until: Callable[[], bool], what: str) -> None:
    limit = time.monotonic() + SECONDS
    while not until():
        assert time.monotonic() < limit, what
        time.sleep(0.1)


def join_later(
    start: Callable[[str], ForkServerProcess], folder: Path, setting: str
) -> list[ForkServerProcess]:
    """Two nodes, and a third when they work."""
    nodes = [start(setting), start(setting)]
    wait_for(lambda: len(list(folder.glob("up-2-*"))) == 2, "two nodes do not begin")
    return [*nodes, start(setting)]


@pytest.mark.gloo
def test_default_a_node_that_joins_ends_every_agent(
    start: Callable[[str], ForkServerProcess], tmp_path: Path
) -> None:
    nodes = join_later(start, tmp_path, "0")
    wait_for(lambda: not any(node.is_alive() for node in nodes), "torch is mended: some agent lives on")
    assert all(node.exitcode for node in nodes)
    assert not list(tmp_path.glob("up-3-*"))


@pytest.mark.gloo
def test_ours_a_node_that_joins_is_taken_in(
    start: Callable[[str], ForkServerProcess], tmp_path: Path
) -> None:
    nodes = join_later(start, tmp_path, "1")
    wait_for(lambda: len(list(tmp_path.glob("up-3-*"))) == 3, "three nodes do not begin")
    (tmp_path / "finish").touch()
    for node in nodes:
        node.join(SECONDS)
    assert [node.exitcode for node in nodes] == [0, 0, 0]
