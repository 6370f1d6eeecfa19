"""What turns a teacher's prototype logits into targets that do not collapse.

Legend: n rows (samples or patches) of this rank, K prototypes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from scholarch.collectives import Pieces, all_reduce_max, upcast


@dataclass(frozen=True, kw_only=True)
class CentringOptions:
    """How targets are centred.

    Attributes:
        kind: "sinkhorn" (DINOv2, DINOv3) or "moving_average" (DINO, iBOT, DINOv2's short recipe).
        iterations: of Sinkhorn-Knopp.
        momentum: of the moving average, in [0, 1].
    """

    kind: Literal["sinkhorn", "moving_average"] = "sinkhorn"
    iterations: int = 3  # reference.md 3.3
    momentum: float = 0.9  # reference.md 3.2

    def __post_init__(self) -> None:
        if self.iterations < 1:
            raise ValueError(f"iterations must be at least 1, not {self.iterations}")
        if not 0 <= self.momentum <= 1:
            raise ValueError(f"momentum must lie in [0, 1], not {self.momentum}")


@torch.no_grad()
def sinkhorn_knopp(
    logits: Sequence[Tensor], temperature: float, iterations: int, pieces: Pieces
) -> list[Tensor]:
    """Assignments of all ranks' rows to prototypes, near equally many to each (reference.md 3.3).

    Each iteration scales prototypes to equal mass over all ranks, then rows to sum 1. Rows come
    last, so prototypes are equal only approximately. The source's divisions by K and by the
    number of rows are left out: they are common factors, which the next step removes.

    Args:
        logits: of each piece of this rank [n, K]; n may differ and be 0.
        temperature: of the teacher, above 0.
        pieces: how those of all ranks add up.

    Returns:
        Of each piece [n, K], float32 (float64 for float64), rows sum to 1.
    """
    plans = [upcast(rows) / temperature for rows in logits]
    largest = torch.stack(
        [plan.max() if plan.numel() else plan.new_full((), -math.inf) for plan in plans]
    ).max()
    # One number subtracted everywhere is one common factor after exp, which the first scaling of
    # the prototypes divides out again. What lies so far below the maximum that exp would vanish is
    # held up, so that no sum is ever 0; a quarter of the exponent's range is left for quotients.
    lowest = 0.75 * math.log(torch.finfo(largest.dtype).tiny)
    largest = all_reduce_max(largest, pieces.group)
    for plan in plans:
        plan.sub_(largest).clamp_(min=lowest).exp_()
    for _ in range(iterations):
        masses = pieces.sum([plan.sum(dim=0) for plan in plans])
        for plan in plans:
            plan.div_(masses)
            plan.div_(plan.sum(dim=1, keepdim=True))
    return plans


class Centring(nn.Module):
    """Targets from the teacher's logits of a whole step: all ranks, all micro-batches."""

    centre: Tensor | None

    def __init__(self, options: CentringOptions) -> None:
        super().__init__()
        self.options = options
        self.register_buffer("centre", None)

    def allocate(self, prototypes: int) -> None:
        """Makes the centre [K], at 0, where the moving average needs one."""
        if self.options.kind == "moving_average":
            self.centre = torch.zeros(prototypes)

    @torch.no_grad()
    def forward(
        self,
        logits: Sequence[Tensor],
        temperature: float,
        pieces: Pieces,
        seen: Sequence[Tensor] | None = None,
    ) -> list[Tensor]:
        """Probabilities, summing to 1 over the last dimension.

        Args:
            logits: of each micro-batch of this rank, [..., K].
            temperature: of the teacher, above 0.
            pieces: how sums over the micro-batches of all ranks are taken.
            seen: the logits that the centre follows, where these are not `logits` themselves.

        Returns:
            For each micro-batch the shape of its logits, float32 (float64 for float64).
        """
        rows = [part.reshape(-1, part.shape[-1]) for part in logits]
        if self.options.kind == "sinkhorn":
            targets = sinkhorn_knopp(rows, temperature, self.options.iterations, pieces)
        else:
            centre = self._allocated()
            targets = [torch.softmax((upcast(part) - centre) / temperature, dim=-1) for part in rows]
            self._follow(rows if seen is None else seen, pieces)
        return [target.view(part.shape) for target, part in zip(targets, logits, strict=True)]

    def _allocated(self) -> Tensor:
        if self.centre is None:
            raise RuntimeError("the centre has no size yet: call allocate first")
        return self.centre

    def _follow(self, seen: Sequence[Tensor], pieces: Pieces) -> None:
        """Moves the centre towards the mean logits of the global batch, for later steps."""
        rows = [upcast(part.reshape(-1, part.shape[-1])) for part in seen]
        sums = [torch.cat([part.sum(dim=0), part.new_full((1,), part.shape[0])]) for part in rows]
        total = pieces.sum(sums)
        # clamp and where in place of an `if` on the count: no wait for the device.
        mean = total[:-1] / total[-1].clamp(min=1)
        centre = self._allocated()
        moved = centre * self.options.momentum + mean * (1 - self.options.momentum)
        centre.copy_(torch.where(total[-1] > 0, moved, centre.to(moved.dtype)))
