"""Copies of the newest steps' state in the memory of two nodes, which outlive the workers.

    $SCHOLARCH_REPLICAS/<run>/<world>/         made by the launcher, gone with it
        metadata                               of DCP, the same at every step
        rank-00003/step-000000012/             of each rank of this node, and of the node before it
            data                               DCP's file of the rank
            piece                              where in it DCP finds what, and records not yet committed

A worker that is killed loses nothing, and neither does a node while the next one is there:
`scholarch.training.rescue` makes a checkpoint of what is left.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.distributed as dist
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan
from torch.distributed.checkpoint.storage import WriteResult

from scholarch.storage.records import Record
from scholarch.training.checkpoint import learner_state, optimizer_state, step_name
from scholarch.training.distributed import World, collective_timeout, gathered
from scholarch.training.learner import Learner
from scholarch.training.memory import FOLDER
from scholarch.training.optimizer import Optimizer
from scholarch.training.saving import Job, new_stager

METADATA, DATA, PIECE = "metadata", "data", "piece"
KEPT = 2
"""Steps. When one is whole everywhere, a node may still be about to give the one before it away."""


@dataclass(frozen=True)
class Piece:
    """What belongs to one rank's file.

    Attributes:
        results: of DCP's writer, which make its metadata.
        records: of steps after the last commit, on rank 0.
    """

    results: list[WriteResult]
    records: list[Record] = field(default_factory=list)


def place_of(address: str) -> Path | None:
    """The folder for replicas of the run whose checkpoints are at `address`; None without a launcher's."""
    folder = os.environ.get(FOLDER)
    return Path(folder) / hashlib.sha256(address.encode()).hexdigest()[:16] if folder else None


def part(root: Path, rank: int, step: int) -> Path:
    """Folder of a rank at a step, within that of its world."""
    return root / f"rank-{rank:05d}" / step_name(step)


class Replicas:
    """Keeps what every rank has after a step; all ranks take part.

    Args:
        place: from `place_of`; None: nothing is kept.
        every: steps between copies; 0: nothing is kept.
        world: the processes of the run.

    Attributes:
        records: gives what the log has had since the last commit, on rank 0.
        metrics: seconds that training waited for the last copy.
        trouble: why nothing is kept any more; empty: nothing was in the way.
    """

    def __init__(self, place: Path | None, every: int, world: World) -> None:
        self.world, self.every = world, every
        self.records: Callable[[], list[Record]] = list
        self.metrics: dict[str, float] = {}
        self.trouble = ""
        # Parts of a world are students, which are at different steps.
        self._on = place is not None and every > 0 and world.members is None
        self._measured = self._said = False
        self._after = (world.rank + world.local_size) % world.size
        self._before = (world.rank - world.local_size) % world.size
        self._job: Job | None = None
        self._layout: _Layout | None = None
        if place is None or not self._on:
            return
        self._group = world.new_group(collective_timeout())
        self._root = place / f"{world.size}-{world.from_first(uuid.uuid4().hex[:8])}"
        self._stager = new_stager(world.device)
        if world.local_rank == 0:
            _remove_others(self._root)

    def keep(self, learner: Learner, optimizer: Optimizer, step: int) -> None:
        """Copies the state after `step` finished steps, and gives it to the next node in the background."""
        if self._on and step % self.every:
            return
        began = time.perf_counter()
        self.close()
        if not self._on:
            self._say()
            return
        state = {"learner": learner_state(learner), **optimizer_state(learner, optimizer)}
        staged: Any = self._stager.stage(state)
        records = self.records() if self.world.first else []
        self.metrics = {"replica/stall_seconds": time.perf_counter() - began}
        self._job = Job(lambda: self._give(staged, step, records))

    def close(self) -> None:
        """Waits for the copy under way."""
        job, self._job = self._job, None
        if job is None:
            return
        try:
            job.wait()
        except Exception as error:
            # Of a rank that is lost, of which training hears by itself. What is there is what is gone on with.
            self._end(f"{type(error).__name__}: {error}".partition("\n")[0])

    def _give(self, staged: dict[str, Any], step: int, records: list[Record]) -> None:
        world, problem = self.world, ""
        sizes = (0, 0)
        own = _unfinished(part(self._root, world.rank, step))
        anew, self._layout = self._layout is None, self._layout or _Layout.agreed(staged, world, self._group)
        try:
            _write(self._layout, staged, own, records, first=world.first)
            if anew and world.local_rank == 0:
                _write_whole(self._root / METADATA, pickle.dumps(self._layout.metadata))
            sizes = ((own / PIECE).stat().st_size, (own / DATA).stat().st_size)
            problem = self._too_little(sizes)
        except OSError as error:
            problem = error.strerror or str(error)
        told: list[tuple[str, tuple[int, int]]] = gathered((problem, sizes), self._group)
        if found := next((what for what, _ in told if what), ""):
            self._end(found)
            shutil.rmtree(self._root, ignore_errors=True)
            return
        ranks = [world.rank]
        if self._before != world.rank:
            self._exchange(own, _unfinished(part(self._root, self._before, step)), told[self._before][1])
            ranks.append(self._before)
        gathered(None, self._group)  # whole everywhere, before anyone lets an older one go
        for rank in ranks:
            _finish(self._root, rank, step)

    def _exchange(self, own: Path, theirs: Path, sizes: tuple[int, int]) -> None:
        """Gives this rank's files to the same rank of the next node, and takes those of the one before."""
        theirs.mkdir(parents=True, exist_ok=True)
        for name, length in zip((PIECE, DATA), sizes, strict=True):
            mine = (own / name).stat().st_size
            works: list[Any] = []
            if mine:
                works.append(dist.isend(_mapped(own / name, mine), group=self._group, group_dst=self._after))
            if length:
                works.append(
                    dist.irecv(_mapped(theirs / name, length), group=self._group, group_src=self._before)
                )
            else:
                (theirs / name).touch()
            for work in works:
                work.wait()

    def _too_little(self, sizes: tuple[int, int]) -> str:
        """Why memory is too small for what is to be kept; empty: it is not, or was looked at before.

        A container's own limit is not looked at: who sizes /dev/shm there counts it in.
        """
        if self._measured:
            return ""
        self._measured = True
        # Of this rank and of one of the node before, and those that are being written.
        needed = self.world.local_size * 2 * (KEPT + 1) * sum(sizes)
        free = min(shutil.disk_usage(self._root).free, psutil.virtual_memory().available)
        if needed <= free:
            return ""
        return f"{self._root.parents[1]} has {free >> 20} MiB, and {needed >> 20} MiB are needed"

    def _end(self, why: str) -> None:
        self._on, self.trouble = False, why

    def _say(self) -> None:
        """Tells once that there are no copies any more, when training goes on without."""
        if self.trouble and self.world.first and not self._said:
            self._said = True
            sys.stderr.write(
                "warning: steps are no longer kept in memory, a fault costs those since the last checkpoint: "
                f"{self.trouble}\n"
            )


@dataclass
class _Layout:
    """Who writes what: decided once, since only values change from step to step."""

    planner: DefaultSavePlanner
    plan: SavePlan
    metadata: Metadata

    @classmethod
    def agreed(cls, state: dict[str, Any], world: World, group: Any) -> _Layout:
        planner = DefaultSavePlanner()
        planner.set_up_planner(state, is_coordinator=world.first)
        plans = gathered(planner.create_local_plan(), group)
        box: list[Any] = [None]
        if world.first:
            everyone, metadata = planner.create_global_plan(plans)
            box = [(FileSystemWriter("").prepare_global_plan(everyone), metadata)]
        dist.broadcast_object_list(box, group=group, group_src=0)
        everyone, metadata = box[0]
        return cls(planner, planner.finish_plan(everyone[world.rank]), metadata)


def _write(
    layout: _Layout, state: dict[str, Any], folder: Path, records: Sequence[Record], *, first: bool
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    layout.planner.set_up_planner(state, is_coordinator=first)
    results = FileSystemWriter(folder, sync_files=False).write_data(layout.plan, layout.planner).wait()
    written = [path for path in folder.iterdir() if path.suffix == ".distcp"]
    (folder / DATA).touch()  # of a rank that has nothing of its own
    for path in written:
        path.rename(folder / DATA)
    (folder / PIECE).write_bytes(pickle.dumps(Piece(results, list(records))))


def _mapped(path: Path, length: int) -> torch.Tensor:
    """[length] uint8: a file's bytes, of a file that is made where there is none."""
    return torch.from_file(str(path), shared=True, size=length, dtype=torch.uint8)


def _unfinished(path: Path) -> Path:
    return path.with_name(f".{path.name}")


def _finish(root: Path, rank: int, step: int) -> None:
    whole = part(root, rank, step)
    _unfinished(whole).rename(whole)
    for old in sorted(whole.parent.glob("step-*"))[:-KEPT]:
        shutil.rmtree(old)


def _write_whole(path: Path, data: bytes) -> None:
    unfinished = _unfinished(path)
    unfinished.write_bytes(data)
    unfinished.rename(path)


def _remove_others(root: Path) -> None:
    """What earlier workers of this launcher kept: they are at work no more, and what was newer has been committed."""
    for run in root.parent.parent.iterdir() if root.parent.parent.is_dir() else ():
        for other in run.iterdir():
            if other != root:
                shutil.rmtree(other, ignore_errors=True)
