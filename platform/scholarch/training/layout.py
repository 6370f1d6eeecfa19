"""How the global batch is cut into micro-batches and shares.

Micro-batch m of A holds the global positions [m * G / A, (m + 1) * G / A); within it rank r of W
holds the r-th of W runs of positions, which may differ by one in length.
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
        micro_batches: parts that follow one another on every rank (A), a divisor of G.
    """

    global_batch: int
    micro_batches: int

    @property
    def bounds(self) -> list[tuple[int, int]]:
        """[start, stop) of the global positions of each micro-batch."""
        size = self.global_batch // self.micro_batches
        return [(m * size, (m + 1) * size) for m in range(self.micro_batches)]


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
