"""Torch's own settings against ours when a node joins a run that has begun (pytorch#147064, torch 2.15).

With the store of the rendezvous shared, which is torch's default, the old agents never publish where the
workers of the new round meet; the newcomer waits for it and all agents end. When the first of these tests
fails, torch is mended, and the setting in scholarch.training.launch may go.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkProcess
from pathlib import Path

import pytest
from meeting_place import meeting_place
from torch.distributed import run

SHARING = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"
SECONDS = 120
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


def agent(port: int, folder: Path, setting: str) -> None:
    """The torchrun command of one node, with torch loaded already."""
    os.environ[SHARING] = setting
    log = os.open(folder / f"log-{os.getpid()}", os.O_CREAT | os.O_WRONLY)
    os.dup2(log, 1)
    os.dup2(log, 2)
    words = ["--nnodes=2:3", "--nproc-per-node=1", "--max-restarts=3", "--rdzv-backend=c10d"]
    words += [f"--rdzv-endpoint=localhost:{port}", "--rdzv-id=canary", f"--rdzv-conf={TIMERS}"]
    words += ["--monitor-interval=0.1", "--local-addr=localhost"]
    run.main([*words, str(folder / "worker.py"), str(folder)])


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[str], ForkProcess]]:
    """Starts a node whose workers wait for `tmp_path/finish`; the store stands outside all of them."""
    (tmp_path / "worker.py").write_text(WORKER)
    began: list[ForkProcess] = []

    def starts(setting: str) -> ForkProcess:
        context = multiprocessing.get_context("fork")
        process: ForkProcess = context.Process(target=agent, args=(port, tmp_path, setting))
        process.start()
        began.append(process)
        return process

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


def join_later(start: Callable[[str], ForkProcess], folder: Path, setting: str) -> list[ForkProcess]:
    """Two nodes, and a third when they work."""
    nodes = [start(setting), start(setting)]
    wait_for(lambda: len(list(folder.glob("up-2-*"))) == 2, "two nodes do not begin")
    return [*nodes, start(setting)]


@pytest.mark.gloo
def test_default_a_node_that_joins_ends_every_agent(
    start: Callable[[str], ForkProcess], tmp_path: Path
) -> None:
    nodes = join_later(start, tmp_path, "0")
    wait_for(lambda: not any(node.is_alive() for node in nodes), "torch is mended: some agent lives on")
    assert all(node.exitcode for node in nodes)
    assert not list(tmp_path.glob("up-3-*"))


@pytest.mark.gloo
def test_ours_a_node_that_joins_is_taken_in(start: Callable[[str], ForkProcess], tmp_path: Path) -> None:
    nodes = join_later(start, tmp_path, "1")
    wait_for(lambda: len(list(tmp_path.glob("up-3-*"))) == 3, "three nodes do not begin")
    (tmp_path / "finish").touch()
    for node in nodes:
        node.join(SECONDS)
    assert [node.exitcode for node in nodes] == [0, 0, 0]
