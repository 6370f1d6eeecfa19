"""Groups of samples in global order, for terms that compare samples with one another.

Groups are cut by position in the global batch and never straddle a micro-batch, so that neither
the number of ranks nor gradient accumulation changes who is compared with whom.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

from torch import Tensor

from scholarch.collectives import gather_rows, rank, world_size
from scholarch.objectives.term import Share


class Group(NamedTuple):
    """One group, of which this rank holds at least one row.

    Attributes:
        members: [n, ...], rows of the whole group, in global order.
        first: index in `members` of this rank's first row of it.
        own: number of this rank's rows of it, which follow one another.
    """

    members: Tensor
    first: int
    own: int


def edges(share: Share, size: int | None) -> list[int]:
    """Positions where the groups of the micro-batch begin, and where the last one ends.

    Args:
        size: samples in a group; the last group of the global batch takes what is left, and a
            single sample that is left joins the group before. None: one group, the micro-batch.

    Raises:
        ValueError: if a group straddles the border of the micro-batch.
    """
    start, stop = share.micro_batch
    if size is None:
        return [start, stop]
    cuts = [*range(0, share.global_batch, size), share.global_batch]
    if len(cuts) > 2 and cuts[-1] - cuts[-2] == 1:
        del cuts[-2]
    inside = [cut for cut in cuts if start <= cut <= stop]
    if not inside or inside[0] != start or inside[-1] != stop:
        raise ValueError(
            f"positions {start} to {stop} of {share.global_batch} are not whole groups of {size}; "
            "choose a micro-batch that is a multiple of the group"
        )
    return inside


def rank_edges(share: Share) -> list[int]:
    """Positions where the ranks' parts of the micro-batch begin, and where the last one ends."""
    start, stop = share.micro_batch
    if share.whole:
        return [start, stop]
    world = world_size(share.group)
    return [start + (stop - start) * r // world for r in range(world + 1)]


def cut(rows: Tensor, share: Share, size: int | None) -> tuple[Tensor, list[Group]]:
    """The groups of the micro-batch that this rank has rows of.

    Rows are fetched from other ranks only when a group crosses ranks, which every rank decides
    alike from the layout of the global batch.

    Args:
        rows: [b, ...], one for each of this rank's samples.
        size: as in `edges`.

    Returns:
        All rows at hand, on which the loss must depend even when there is no group (see
        `collectives.gather_rows`), and the groups.
    """
    group_edges, borders = edges(share, size), rank_edges(share)
    mine = 0 if share.whole else rank(share.group)
    low, high = borders[mine], borders[mine + 1]
    if rows.shape[0] != high - low:
        raise ValueError(f"{rows.shape[0]} rows for the positions {low} to {high} of this rank")
    offset = low
    if not set(borders) <= set(group_edges):
        counts = [b - a for a, b in pairwise(borders)]
        rows, offset = gather_rows(rows, share.group, counts), borders[0]
    groups = []
    for begin, end in pairwise(group_edges):
        first, last = max(begin, low), min(end, high)
        if first < last:
            members = rows[begin - offset : end - offset]
            groups.append(Group(members, first - begin, last - first))
    return rows, groups
