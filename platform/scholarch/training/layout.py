"""How the global batch is cut into micro-batches and shares.

Micro-batch m of A holds the global positions [m * G / A, (m + 1) * G / A); within it rank r of W
holds the r-th of W runs of positions, which may differ by one in length. Or, with `training.grain`, each
micro-batch is whole on one rank: rank m mod W computes micro-batch m.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scholarch.errors import UserError


@dataclass(frozen=True)
class Layout:
    """The cut of a step.

    Attributes:
        global_batch: samples of a step (G).
        micro_batches: equal parts (A), a divisor of G.
        whole: ranks take micro-batches in turn; else every rank has a share of each.
    """

    global_batch: int
    micro_batches: int
    whole: bool = False

    def bounds(self, rank: int, world_size: int) -> list[tuple[int, int]]:
        """[start, stop) of the global positions of each micro-batch that a rank takes part in."""
        size = self.global_batch // self.micro_batches
        own = range(rank, self.micro_batches, world_size) if self.whole else range(self.micro_batches)
        return [(m * size, (m + 1) * size) for m in own]

    def largest_share(self, world_size: int) -> int:
        """Most samples that a rank computes at once."""
        size = self.global_batch // self.micro_batches
        return size if self.whole else math.ceil(size / world_size)


def plan_layout(
    global_batch: int, world_size: int, at_most: int | None, group_sizes: Sequence[int]
) -> Layout:
    """The fewest micro-batches that keep each rank's share within `at_most` samples.

    Args:
        at_most: `training.micro_batch`; None: one micro-batch.
        group_sizes: samples that must stay in one micro-batch (KoLeo groups).

    Raises:
        UserError: when there are fewer samples than ranks, or no cut keeps the groups whole.
    """
    if global_batch < world_size:
        raise UserError(
            f"{world_size} processes cannot share a global batch of {global_batch}",
            where="training.global_batch",
            fix=f"raise it to at least {world_size}, or start fewer processes",
        )
    at_most = at_most or global_batch
    whole = math.lcm(1, *group_sizes)
    for micro_batches in range(1, global_batch + 1):
        size = global_batch // micro_batches
        if global_batch % micro_batches or size % whole:
            continue
        if math.ceil(size / world_size) <= at_most and size >= world_size:
            return Layout(global_batch, micro_batches)
    raise UserError(
        f"a global batch of {global_batch} on {world_size} processes cannot be cut into micro-batches of at "
        f"most {at_most} samples a process"
        + (f" that keep groups of {whole} samples together" if whole > 1 else ""),
        where="training.micro_batch",
        fix="raise training.micro_batch, or choose a global batch with more divisors",
    )


def whole_layout(global_batch: int, world_size: int, grain: int, group_sizes: Sequence[int]) -> Layout:
    """Micro-batches of `grain` samples, each whole on one rank.

    Args:
        grain: `training.grain`.
        group_sizes: as in `plan_layout`.

    Raises:
        UserError: when a rank would have none, or the grain fits the global batch or the groups badly.
    """
    whole = math.lcm(1, *group_sizes)
    if global_batch % grain or grain % whole:
        raise UserError(
            f"grains of {grain} samples do not divide a global batch of {global_batch}"
            + (f" into whole groups of {whole}" if whole > 1 else ""),
            where="training.grain",
            fix=f"use a divisor of {global_batch}" + (f" that is a multiple of {whole}" if whole > 1 else ""),
        )
    if global_batch // grain < world_size:
        raise UserError(
            f"{world_size} processes cannot share {global_batch // grain} grains of {grain} samples",
            where="training.grain",
            fix="use a smaller grain, a larger global batch, or fewer processes",
        )
    return Layout(global_batch, global_batch // grain, whole=True)
