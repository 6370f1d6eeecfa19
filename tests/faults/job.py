"""A training job of several nodes, as separate processes of this machine, that can be hurt."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from ports import free_port
from scholarch.storage.objects import open_objects

NODES = (1, 3)
STALL_SECONDS = 20
GRACE_SECONDS = 40


@dataclass
class Node:
    """A launcher in a process of its own, with what it writes."""

    number: int
    process: subprocess.Popen[bytes]
    output: Path

    def workers(self) -> list[psutil.Process]:
        """Its live workers, by rank."""
        found = {}
        with suppress(psutil.Error):
            for child in psutil.Process(self.process.pid).children():
                with suppress(psutil.Error, KeyError):
                    found[int(child.environ()["RANK"])] = child
        return [found[rank] for rank in sorted(found)]

    def lose(self) -> None:
        """A power cut: launcher, workers and data loaders at once."""
        family = [self.process.pid]
        with suppress(psutil.Error):
            family += [child.pid for child in psutil.Process(self.process.pid).children(recursive=True)]
        for pid in family:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()

    @property
    def alive(self) -> bool:
        return self.process.poll() is None


@dataclass
class Job:
    """A run at `address` by `arguments` of `scholarch pretrain`; a context manager that ends every process.

    Attributes:
        folder: for outputs and what the nodes call their own.
        environment: of the nodes.
        module: of the worker's command.
    """

    address: str
    arguments: tuple[str, ...]
    folder: Path
    environment: dict[str, str]
    module: str = "faults.worker"
    nodes: list[Node] = field(default_factory=list)
    started: int = 0
    restarts: int = 0

    def __enter__(self) -> Job:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.begin()
        return self

    def __exit__(self, *_: object) -> None:
        for node in self.nodes:
            node.lose()
        self._meeting.kill()
        self._meeting.wait()

    def begin(self, nodes: int = 2) -> None:
        """A meeting place and nodes; called again after the job has ended, it goes on."""
        if self.nodes:
            self._meeting.kill()
            self._meeting.wait()
            self.restarts += 1
        self.port = free_port()
        self._meeting = subprocess.Popen(
            [sys.executable, "-m", "scholarch.training.store", "--port", str(self.port)],
            env=self.environment,
            stdout=subprocess.DEVNULL,
        )
        for _ in range(nodes):
            self.add()

    def add(self) -> Node:
        """A node joins."""
        number, self.started = self.started, self.started + 1
        output = self.folder / f"node-{number}.txt"
        command = [
            sys.executable, "-m", "scholarch.training.launch", "--nodes", f"{NODES[0]}:{NODES[1]}",
            "--rendezvous", f"127.0.0.1:{self.port}", "--run-id", f"job-{self.restarts}", "--max-restarts", "20",
            "--stall", str(STALL_SECONDS), "--grace", str(GRACE_SECONDS), "--module", self.module,
            "--", "pretrain", "--run", self.address, *self.arguments, *(["--resume"] if self.began() else []),
        ]  # fmt: skip
        with output.open("wb") as file:
            process = subprocess.Popen(
                command,
                env={**self.environment, "SCHOLARCH_SCRATCH": str(self.folder / f"scratch-{number}")},
                stdout=file,
                stderr=file,
                start_new_session=True,
                cwd=self.folder,
            )
        node = Node(number, process, output)
        self.nodes.append(node)
        return node

    @property
    def alive(self) -> list[Node]:
        return [node for node in self.nodes if node.alive]

    def began(self) -> bool:
        """Whether the run has written its recipe."""
        return open_objects(self.address).entry("recipe.yaml") is not None

    def step(self) -> int:
        """Finished steps of the newest commit; 0 before the first, or while the store does not answer."""
        objects = open_objects(self.address)
        names = [entry.name for entry in objects.entries("checkpoints/step-")]
        done = [name for name in names if name.endswith("/manifest.json")]
        return max((int(name.split("/")[1].removeprefix("step-")) for name in done), default=0)

    def worker_of(self, rank: int) -> tuple[Node, psutil.Process] | None:
        """The worker of a rank of the world, and its node."""
        for node in self.alive:
            for worker in node.workers():
                with suppress(psutil.Error, KeyError):
                    if int(worker.environ()["RANK"]) == rank:
                        return node, worker
        return None

    def wait(self, seconds: float) -> list[int]:
        """Exit codes of the nodes once all have ended; those that do not in time count as a hang.

        Raises:
            TimeoutError: naming the nodes that hang.
        """
        limit = time.monotonic() + seconds
        while self.alive:
            if time.monotonic() > limit:
                raise TimeoutError(f"nodes {[node.number for node in self.alive]} hang")
            time.sleep(0.1)
        return [node.process.returncode for node in self.nodes]
