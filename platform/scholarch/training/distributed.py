"""The process group of a run, of one process or of many."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch.distributed import HashStore, ProcessGroup  # type: ignore[attr-defined]
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from scholarch.errors import UserError
from scholarch.training.heartbeat import Heartbeat

T = TypeVar("T")
COLLECTIVE_TIMEOUT = "SCHOLARCH_COLLECTIVE_TIMEOUT"
"""Environment variable: seconds after which an exchange that a lost process left unanswered is an error."""
COLLECTIVE_TIMEOUT_SECONDS = 300.0


@dataclass(frozen=True)
class World:
    """This process among those of the run.

    Attributes:
        rank, size: place and number of processes.
        local_rank, local_size: the same on this node.
        device: where this process computes.
        mesh: one dimension over all processes, for FSDP2.
        group: the group that terms reduce over; None for one process.
        members: the same for torch's own functions, which want a group of one process too; None: all processes.
        heartbeat: by which the agent sees that this process goes on.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int
    device: torch.device
    mesh: DeviceMesh
    group: ProcessGroup | None
    members: ProcessGroup | None = None
    heartbeat: Heartbeat = field(default_factory=Heartbeat, repr=False, compare=False)

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and speaks for all."""
        return self.rank == 0

    def from_first(self, value: Any) -> Any:
        """What rank 0 holds, on every rank."""
        if self.group is None:
            return value
        box = [value]
        dist.broadcast_object_list(box, group=self.group, group_src=0)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """What each rank holds, in rank order, on every rank."""
        return [value] if self.group is None else gathered(value, self.group)

    def gather_row(self, row: list[float]) -> torch.Tensor:
        """[ranks, len(row)] float64: the row of every rank."""
        mine = torch.tensor(row, dtype=torch.float64, device=self.device)
        if self.group is None:
            return mine[None].cpu()
        rows = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(rows, mine, group=self.group)
        return torch.stack(rows).cpu()

    def agree(self, work: Callable[[], T]) -> T:
        """What `work` gives on this rank; a user's mistake met by any rank is raised on all of them."""
        result, mistake = None, None
        try:
            result = work()
        except UserError as error:
            mistake = error
        for rank, found in enumerate(self.gather(mistake and mistake.args)):
            if found:
                what, where, fix = found
                raise UserError(what, where=where if rank == 0 else f"rank {rank}: {where}", fix=fix)
        return cast(T, result)

    def new_group(self, timeout: timedelta) -> ProcessGroup:
        """Another gloo group of the same processes, whose messages do not mix with training's."""
        ranks = None if self.members is None else dist.get_process_group_ranks(self.members)
        group = dist.new_group(
            ranks, backend="gloo", timeout=timeout, use_local_synchronization=ranks is not None
        )
        return cast(ProcessGroup, group)

    def barrier(self) -> None:
        """Waits for every rank."""
        if self.group is not None:
            dist.barrier(group=self.group)


def gathered(value: Any, group: ProcessGroup) -> list[Any]:
    """What each rank of a group holds, in rank order, on every rank of it."""
    box: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(box, value, group=group)
    return box


@contextmanager
def world() -> Iterator[World]:
    """The world that the launcher's environment describes; one process without a launcher."""
    heartbeat = Heartbeat.from_environment()
    with heartbeat.living():
        joined = dist.is_initialized()  # by another launcher, which leaves the group itself
        device, mesh = _connect()
        size = dist.get_world_size()
        try:
            yield World(
                rank=dist.get_rank(),
                size=size,
                local_rank=int(os.environ.get("LOCAL_RANK", "0")),
                local_size=int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
                device=device,
                mesh=mesh,
                group=dist.group.WORLD if size > 1 else None,
                heartbeat=heartbeat,
            )
        finally:
            if not joined:
                dist.destroy_process_group()


def alone(device_type: str) -> DeviceMesh:
    """A mesh of this process by itself; others need not take part."""
    group = dist.new_group([dist.get_rank()], use_local_synchronization=True)
    return DeviceMesh.from_group(cast(ProcessGroup, group), device_type)


def collective_timeout() -> timedelta:
    """After which an exchange that a lost process left unanswered is an error."""
    return timedelta(seconds=float(os.environ.get(COLLECTIVE_TIMEOUT, COLLECTIVE_TIMEOUT_SECONDS)))


def _connect() -> tuple[torch.device, DeviceMesh]:
    """Joins the process group, unless that is done; gives this process's device and the mesh over all."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
    if dist.is_initialized():
        size = dist.get_world_size()
    elif size > 1:
        dist.init_process_group(backend, timeout=collective_timeout())
    else:
        dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
    return device, init_device_mesh(device.type, (size,))
