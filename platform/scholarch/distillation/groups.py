"""Who trains which student, and who runs the teacher on which part of the global batch.

The students' groups tile the processes in the recipe's order. The teacher is on all of them: process r runs it on the
positions from `Tiling.teacher[r]` to `Tiling.teacher[r + 1]`, whatever its own student needs.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import cast

import torch.distributed as dist
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh

from scholarch.errors import UserError
from scholarch.training.assemble import Everywhere
from scholarch.training.distributed import World


@dataclass(frozen=True)
class Tiling:
    """How processes are shared out.

    Attributes:
        sizes: processes of each student, in order; they add up to all processes.
        teacher: [processes + 1] edges of the processes' parts of the global batch; a part may be empty.
    """

    sizes: Mapping[str, int]
    teacher: Sequence[int]

    @property
    def world_size(self) -> int:
        """Processes in all."""
        return sum(self.sizes.values())

    def ranks(self, student: str) -> range:
        """Processes of a student."""
        first = 0
        for name, size in self.sizes.items():
            if name == student:
                return range(first, first + size)
            first += size
        raise KeyError(student)

    def student(self, rank: int) -> str:
        """The student of a process."""
        return next(name for name in self.sizes if rank in self.ranks(name))


def apportion(total: int, weights: Sequence[float], least: int = 0) -> list[int]:
    """`total` in whole parts near to the weights, each at least `least`: largest remainders first.

    Raises:
        ValueError: if there is not enough for all.
    """
    if total < least * len(weights):
        raise ValueError(f"{total} do not give {len(weights)} parts of at least {least}")
    left = total - least * len(weights)
    # What a part gets beyond its least; a weight below it takes from the others.
    wanted = [max(w / sum(weights) * total - least, 0.0) for w in weights]
    scale = left / sum(wanted) if sum(wanted) else 0.0
    exact = [w * scale for w in wanted]
    parts = [int(e) for e in exact]
    order = sorted(range(len(parts)), key=lambda i: (parts[i] - exact[i], i))
    for i in itertools.islice(itertools.cycle(order), left - sum(parts)):
        parts[i] += 1
    return [part + least for part in parts]


def edges(shares: Sequence[int]) -> list[int]:
    """Where parts of these lengths begin, and where the last one ends."""
    return [0, *itertools.accumulate(shares)]


def even(global_batch: int, world_size: int) -> list[int]:
    """Edges of parts that differ by one at most."""
    return [global_batch * rank // world_size for rank in range(world_size + 1)]


def tile(
    students: Sequence[str], proportions: Mapping[str, float], world_size: int, global_batch: int
) -> Tiling:
    """Groups in these proportions, each of one process at least, and even parts of the teacher.

    Raises:
        UserError: if there are fewer processes than students.
    """
    if world_size < len(students):
        raise UserError(
            f"{len(students)} students need as many processes, and there are {world_size}",
            where="students",
            fix=f"start at least {len(students)} processes, or leave some out with students.NAME=null",
        )
    sizes = apportion(world_size, [proportions[name] for name in students], least=1)
    return Tiling(dict(zip(students, sizes, strict=True)), even(global_batch, world_size))


def part_of(world: World, tiling: Tiling, timeout: timedelta) -> tuple[World, Everywhere]:
    """This process among those of its student, and how the teacher is spread; all processes take part.

    Args:
        world: all processes.
        timeout: after which an exchange within the group that a process left unanswered is an error.
    """
    mine = tiling.student(world.rank)
    groups = {
        name: cast(ProcessGroup, dist.new_group(list(tiling.ranks(name)), timeout=timeout))
        for name in tiling.sizes
    }
    ranks = tiling.ranks(mine)
    mesh = DeviceMesh.from_group(groups[mine], world.device.type)
    # This node's first process of the group; nodes hold runs of ranks.
    first = max(ranks.start, world.rank - world.local_rank)
    last = min(ranks.stop, world.rank - world.local_rank + world.local_size)
    part = replace(
        world,
        rank=world.rank - ranks.start,
        size=len(ranks),
        local_rank=world.rank - first,
        local_size=last - first,
        mesh=mesh,
        group=groups[mine] if len(ranks) > 1 else None,
        members=groups[mine],
    )
    return part, Everywhere(world.mesh, mesh)
