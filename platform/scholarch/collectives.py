"""The few reductions over ranks that terms and the trainer may use, each given a process group.

`group=None` means one process: every function is then the identity. Gradients follow one
convention everywhere: each rank holds its *share* of a global loss, shares add up to the loss,
and so gradients are summed over ranks, never averaged. Uneven shares need no special case.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup


def upcast(x: Tensor) -> Tensor:
    """`x` in float32, or in float64 when it is already that (precision=fp64, for tests)."""
    return x if x.dtype == torch.float64 else x.float()


def world_size(group: ProcessGroup | None) -> int:
    """Number of ranks in `group`."""
    return 1 if group is None else dist.get_world_size(group)


def rank(group: ProcessGroup | None) -> int:
    """This process's rank in `group`."""
    return 0 if group is None else dist.get_rank(group)


def all_reduce_sum(x: Tensor, group: ProcessGroup | None) -> Tensor:
    """Sum of `x` over ranks, as a new tensor without gradient."""
    x = x.detach().clone()
    if group is not None:
        dist.all_reduce(x, op=dist.ReduceOp.SUM, group=group)
    return x


@dataclass(frozen=True)
class Pieces:
    """How the pieces of a global batch that a rank holds add up with those of the others.

    Attributes:
        group: the ranks that share the batch.
        places: of this rank's pieces among the `count` of all ranks; None: sums are taken in the order
            of ranks, so that their last bits depend on the number of ranks and pieces.
        count: pieces of all ranks, where places are given.
    """

    group: ProcessGroup | None
    places: tuple[int, ...] | None = None
    count: int = 0

    def sum(self, parts: Sequence[Tensor]) -> Tensor:
        """Sum over the pieces of all ranks, without gradient.

        With places the result has the same bits however pieces are spread over ranks: each takes its
        place in a table, to which all other ranks add zeros, and the table is summed in its order.

        Args:
            parts: one of each of this rank's pieces, at least one, all of one shape.
        """
        if self.places is None:
            return all_reduce_sum(torch.stack(list(parts)).sum(dim=0), self.group)
        table = parts[0].new_zeros(self.count, *parts[0].shape)
        for place, part in zip(self.places, parts, strict=True):
            table[place] = part.detach()
        total: Tensor = all_reduce_sum(table, self.group).sum(dim=0)
        return total


def all_reduce_max(x: Tensor, group: ProcessGroup | None) -> Tensor:
    """Element-wise maximum of `x` over ranks, as a new tensor without gradient."""
    x = x.detach().clone()
    if group is not None:
        dist.all_reduce(x, op=dist.ReduceOp.MAX, group=group)
    return x


def row_counts(x: Tensor, group: ProcessGroup | None) -> list[int]:
    """Length of the first dimension of `x` on each rank."""
    if group is None:
        return [x.shape[0]]
    counts = torch.zeros(world_size(group), dtype=torch.int64, device=x.device)
    counts[rank(group)] = x.shape[0]
    return [int(n) for n in all_reduce_sum(counts, group).tolist()]


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, counts: Sequence[int], group: ProcessGroup) -> Tensor:
        ctx.group, ctx.counts, ctx.rank = group, counts, rank(group)
        # all_gather wants equal shapes: pad to the largest share, cut after.
        padded = x.new_zeros(max(counts), *x.shape[1:])
        padded[: x.shape[0]] = x
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded, group=group)
        return torch.cat([part[:n] for part, n in zip(parts, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (grad,) = grads
        total = all_reduce_sum(grad.contiguous(), ctx.group)
        start = sum(ctx.counts[: ctx.rank])
        return total[start : start + ctx.counts[ctx.rank]], None, None


def gather_rows(x: Tensor, group: ProcessGroup | None, counts: Sequence[int] | None = None) -> Tensor:
    """Rows of all ranks in rank order, differentiable; shares may differ in length or be empty.

    The gradient of a rank's rows is the sum of what every rank's loss share sends back to them.
    The backward pass is a collective too: the loss of every rank must depend on the result (on an
    empty slice of it is enough), or the others wait for ever.

    Args:
        x: [n_rank, ...], the same trailing shape and dtype on every rank.
        counts: rows of each rank where they are known, which spares a reduction and a wait.

    Returns:
        [sum of n_rank, ...].

    Raises:
        ValueError: if `counts` contradicts the rows of this rank.
    """
    if group is None:
        return x
    if counts is None:
        counts = row_counts(x, group)
    elif counts[rank(group)] != x.shape[0]:
        raise ValueError(
            f"rank {rank(group)} has {x.shape[0]} rows, not the {counts[rank(group)]} of `counts`"
        )
    gathered: Tensor = _GatherRows.apply(x, counts, group)
    return gathered


def passed_round(
    x: Tensor, group: ProcessGroup | None, counts: Sequence[int]
) -> Iterator[tuple[int, Tensor]]:
    """Every rank's rows, one rank after the other, beginning with this one's; without gradient.

    At any time a process holds its own rows, those that it was given and those on their way: memory does
    not grow with the number of ranks. All ranks must go through to the end.

    Args:
        x: [n_rank, ...], the same trailing shape and dtype on every rank.
        counts: rows of each rank.

    Yields:
        rank, and its rows [n, ...].
    """
    x = x.detach()
    if group is None:
        yield 0, x
        return
    mine, world = rank(group), world_size(group)
    held = x.new_zeros(max(counts), *x.shape[1:])
    held[: x.shape[0]] = x
    following, before = (dist.get_global_rank(group, (mine + turn) % world) for turn in (1, -1))
    for turn in range(world):
        owner = (mine - turn) % world
        arriving, work = torch.empty_like(held), []
        if turn + 1 < world:
            work = dist.batch_isend_irecv(
                [
                    dist.P2POp(dist.isend, held, following, group),
                    dist.P2POp(dist.irecv, arriving, before, group),
                ]
            )
        yield owner, held[: counts[owner]]
        for request in work:
            request.wait()
        held = arriving
