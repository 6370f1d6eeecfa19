"""Commits the state of a run while it trains on.

A save copies the state to memory, which is all that training waits for. A thread then has DCP write the
files under a name of their own, reads back what this rank wrote, and, when every rank's files are as they
were meant to be, rank 0 writes the manifest. Only then do older checkpoints go.
"""

from __future__ import annotations

import json
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict_saver import save

from scholarch.errors import RunFailed, SaveFailed, UserError
from scholarch.storage.dcp import Content, content_of, writer
from scholarch.storage.local import plainly
from scholarch.storage.objects import Objects, Unreachable, joined, open_objects
from scholarch.training.checkpoint import (
    FORMAT,
    MANIFEST,
    NAME,
    Checkpoint,
    committed,
    learner_state,
    optimizer_state,
    step_name,
)
from scholarch.training.distributed import World, gathered
from scholarch.training.learner import Learner
from scholarch.training.optimizer import Optimizer

LATEST = "LATEST"
ATTEMPTS = 3
"""How often a save is tried as a whole; between two tries the store has up to two minutes to come back."""
SLOWEST_RANK = timedelta(minutes=30)
"""How long the ranks' threads wait for one another."""


@dataclass(frozen=True)
class Trouble:
    """Why an attempt came to nothing; `final`: another one would too."""

    what: str
    final: bool


class Job:
    """Work in a thread that a process may end without."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._work, self._error = work, None
        self._thread = threading.Thread(target=self._carry_out, name="checkpoint", daemon=True)
        self._thread.start()

    @property
    def failed(self) -> bool:
        """Whether it has ended with an error."""
        return self._error is not None

    def wait(self) -> None:
        """Waits for its end; raises its error."""
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _carry_out(self) -> None:
        try:
            self._work()
        except BaseException as error:
            self._error = error

    _error: BaseException | None


def new_stager(device: torch.device) -> DefaultStager:
    """Copies a state to memory of its own, which it keeps for the next one."""
    cuda = device.type == "cuda"
    return DefaultStager(
        StagingOptions(
            use_pinned_memory=cuda,
            use_shared_memory=False,
            use_async_staging=False,
            use_non_blocking_copy=cuda,
        )
    )


def write_manifest(
    objects: Objects, data: str, step: int, world_size: int, files: Mapping[str, Content]
) -> None:
    """Makes a checkpoint exist whose files are all there.

    Args:
        objects: the run's checkpoints.
        data: where in them DCP's files are, `STEP/ATTEMPT`.
        step: finished steps.
        world_size: of the processes that wrote the files.
        files: what they were meant to be, by name.
    """
    name, _, attempt = data.partition("/")
    manifest = {
        "format": FORMAT,
        "step": step,
        "data": attempt,
        "world_size": world_size,
        "torch": torch.__version__,
        "written": time.time(),
        "files": {file: asdict(content) for file, content in sorted(files.items())},
    }
    objects.write(f"{name}/{MANIFEST}", json.dumps(manifest, indent=1).encode())


class Checkpoints:
    """Writes the checkpoints of a run, one at a time; all ranks take part in every save.

    Args:
        address: `<run>/checkpoints`, a folder or under `s3://`.
        keep: how many of the newest stay.
        world: the processes of the run.

    Attributes:
        before_commit: called on rank 0 when all files of a checkpoint are there and before it exists.
        committed: finished steps of the newest checkpoint that this object has committed; None: none yet.
        metrics: of the last save: seconds that training waited for it, and that it took.
    """

    def __init__(self, address: str | Path, keep: int, world: World) -> None:
        self.objects, self.keep, self.world = open_objects(str(address)), keep, world
        self.before_commit: Callable[[], object] = lambda: None
        self.committed: int | None = None
        self.metrics: dict[str, float] = {}
        # Its own group: what the thread says to other ranks must not mix with what training says.
        self._group = world.new_group(SLOWEST_RANK)
        self._stager = new_stager(world.device)
        self._job: Job | None = None
        self._swept = False

    @property
    def failed(self) -> bool:
        """Whether the save in flight has failed on this rank, so that the next call will raise."""
        return self._job is not None and self._job.failed

    def save(self, learner: Learner, optimizer: Optimizer, step: int) -> None:
        """Takes the state after `step` finished steps, and commits it in the background.

        Waits for the save before it. What training changes afterwards is not in it.

        Raises:
            SaveFailed: on all ranks, if the save before it could not be committed.
        """
        began = time.perf_counter()
        self.wait()
        state = {"learner": learner_state(learner), **optimizer_state(learner, optimizer)}
        staged: Any = self._stager.stage(state)
        stalled = time.perf_counter() - began
        self.metrics |= {"checkpoint/stall_seconds": stalled}

        def work() -> None:
            self._commit(staged, step)
            self.committed = step
            self.metrics |= {"checkpoint/seconds": time.perf_counter() - began}

        self._job = Job(work)

    def wait(self) -> None:
        """Waits until the save in flight is committed.

        Raises:
            SaveFailed: on all ranks, if it could not be.
        """
        job, self._job = self._job, None
        if job is not None:
            job.wait()

    @contextmanager
    def drained(self) -> Iterator[None]:
        """Waits for the save in flight when the block ends, also by a `RunFailed` that all ranks meet.

        Raises:
            SaveFailed: as `wait`.
        """
        try:
            yield
        except RunFailed:
            self.wait()
            raise
        self.wait()

    def _commit(self, staged: Mapping[str, Any], step: int) -> None:
        name = step_name(step)
        if self.world.first and not self._swept:
            self._sweep()
        self._swept = True
        for left in reversed(range(ATTEMPTS)):
            data = self._gathered(uuid.uuid4().hex[:8])[0]
            written, trouble = self._attempt(staged, f"{name}/{data}")
            found = self._gathered((written, trouble))
            troubles = [(rank, t) for rank, (_, t) in enumerate(found) if t is not None]
            if not troubles:
                break
            final = next((pair for pair in troubles if pair[1].final), None)
            if final or not left:
                rank, told = final or troubles[0]
                raise self._failure(step, told.what if rank == 0 else f"rank {rank}: {told.what}")
            if self.world.first:
                _warn(f"step {step}: the checkpoint is written again, because {troubles[0][1].what}")
        files = {file: content for contents, _ in found for file, content in contents.items()}
        mistake = self._committed_by_first(name, data, step, files) if self.world.first else ""
        if told := self._gathered(mistake)[0]:
            raise self._failure(step, told)

    def _attempt(self, staged: Mapping[str, Any], name: str) -> tuple[dict[str, Content], Trouble | None]:
        """Writes this rank's files and reads them back."""
        try:
            dcp, written = writer(joined(self.objects.address, name))
            save(dict(staged), storage_writer=dcp, process_group=self._group)
            for file, content in written.items():
                if content_of(self.objects, f"{name}/{file}") != content:
                    return {}, Trouble(f"{name}/{file} reads back differently", final=False)
            return written, None
        except (Exception, CheckpointException) as error:
            return {}, self._understood(error)

    def _understood(self, error: BaseException) -> Trouble:
        """Waits, within bounds, until the store answers again; what cannot pass is told in plain words."""
        if isinstance(error, CheckpointException) and error.failures:
            error = next(iter(error.failures.values()))[0]
        try:
            if isinstance(error, OSError):
                plainly(error, self.objects.address)
            self.objects.children()
        except (UserError, Unreachable) as found:
            return Trouble(str(found), final=True)
        if isinstance(error, UserError):
            return Trouble(str(error), final=True)
        return Trouble(f"{type(error).__name__}: {error}".partition("\n")[0], final=False)

    def _committed_by_first(self, name: str, data: str, step: int, files: Mapping[str, Content]) -> str:
        """Makes a checkpoint exist, and lets older ones go; gives what went wrong before it existed."""
        try:
            self.before_commit()
            write_manifest(self.objects, f"{name}/{data}", step, self.world.size, files)
        except (UserError, Unreachable, OSError) as error:
            return str(error)
        try:
            self.objects.write(LATEST, f"{name}\n".encode())
            self._clean(name, data)
            for old in committed(self.objects.address)[: -self.keep]:
                self._remove(old)
        except (UserError, Unreachable, OSError) as error:
            _warn(f"older checkpoints could not be removed: {error}")
        return ""

    def _remove(self, old: Checkpoint) -> None:
        name = old.address.rpartition("/")[2]
        self.objects.remove(f"{name}/{MANIFEST}")  # first, so that half of it is no checkpoint
        self.objects.remove_all(name)

    def _sweep(self) -> None:
        """Removes what killed processes left unfinished."""
        whole = {c.address.rpartition("/")[2]: c for c in committed(self.objects.address)}
        for name in self.objects.children():
            if name in whole:
                self._clean(name, whole[name].manifest()["data"])
            elif NAME.fullmatch(name):
                self.objects.remove_all(name)

    def _clean(self, name: str, data: str) -> None:
        for child in self.objects.children(name):
            if child not in (data, MANIFEST):
                self.objects.remove_all(f"{name}/{child}")

    def _gathered(self, mine: Any) -> list[Any]:
        """What each rank's thread holds, in rank order."""
        return gathered(mine, self._group)

    def _failure(self, step: int, what: str) -> SaveFailed:
        return SaveFailed(
            f"step {step}: the checkpoint could not be written: {what}\n"
            "  the checkpoint before it stands: mend this, then resume the run"
        )


def _warn(message: str) -> None:
    sys.stderr.write(f"warning: {message}\n")
