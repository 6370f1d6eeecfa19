"""The process group of a run, of one process or of many."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch.distributed import HashStore, ProcessGroup  # type: ignore[attr-defined]
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from scholarch.errors import UserError

T = TypeVar("T")
COLLECTIVE_TIMEOUT = timedelta(minutes=5)


@dataclass(frozen=True)
class World:
    """This process among those of the run.

    Attributes:
        rank, size: place and number of processes.
        local_rank, local_size: the same on this node.
        device: where this process computes.
        mesh: one dimension over all processes, for FSDP2.
        group: the group that terms reduce over; None for one process.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int
    device: torch.device
    mesh: DeviceMesh
    group: ProcessGroup | None

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and speaks for all."""
        return self.rank == 0

    def from_first(self, value: Any) -> Any:
        """What rank 0 holds, on every rank."""
        if self.group is None:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.group)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """What each rank holds, in rank order, on every rank."""
        if self.group is None:
            return [value]
        box: list[Any] = [None] * self.size
        dist.all_gather_object(box, value, group=self.group)
        return box

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

    def barrier(self) -> None:
        """Waits for every rank."""
        if self.group is not None:
            dist.barrier(group=self.group)


@contextmanager
def world() -> Iterator[World]:
    """The world that the launcher's environment describes; one process without a launcher."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", local_rank) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
    if size > 1:
        dist.init_process_group(backend, timeout=COLLECTIVE_TIMEOUT)
    else:
        dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
    try:
        yield World(
            rank=dist.get_rank(),
            size=size,
            local_rank=local_rank,
            local_size=int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
            device=device,
            mesh=init_device_mesh(device.type, (size,)),
            group=dist.group.WORLD if size > 1 else None,
        )
    finally:
        dist.destroy_process_group()
