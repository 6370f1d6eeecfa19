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
from torch.distributed import ProcessGroup

from scholarch.collectives import all_reduce_max, all_reduce_sum, upcast


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
def sinkhorn_knopp(logits: Tensor, temperature: float, iterations: int, group: ProcessGroup | None) -> Tensor:
    """Assignments of all ranks' rows to prototypes, near equally many to each (reference.md 3.3).

    Each iteration scales prototypes to equal mass over all ranks, then rows to sum 1. Rows come
    last, so prototypes are equal only approximately. The source's divisions by K and by the
    number of rows are left out: they are common factors, which the next step removes.

    Args:
        logits: [n, K]; n may differ between ranks and be 0.
        temperature: of the teacher, above 0.
        group: the ranks that share the rows.

    Returns:
        [n, K], float32 (float64 for float64), rows sum to 1.
    """
    plan = upcast(logits) / temperature
    largest = plan.max() if plan.numel() else plan.new_full((), -math.inf)
    # One number subtracted everywhere is one common factor after exp, which the first scaling of
    # the prototypes divides out again. What lies so far below the maximum that exp would vanish is
    # held up, so that no sum is ever 0; a quarter of the exponent's range is left for quotients.
    lowest = 0.75 * math.log(torch.finfo(plan.dtype).tiny)
    plan.sub_(all_reduce_max(largest, group)).clamp_(min=lowest).exp_()
    for _ in range(iterations):
        plan.div_(all_reduce_sum(plan.sum(dim=0), group))
        plan.div_(plan.sum(dim=1, keepdim=True))
    return plan


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
        group: ProcessGroup | None,
        seen: Sequence[Tensor] | None = None,
    ) -> list[Tensor]:
        """Probabilities, summing to 1 over the last dimension.

        Args:
            logits: of each micro-batch of this rank, [..., K].
            temperature: of the teacher, above 0.
            group: the ranks that share the global batch.
            seen: the logits that the centre follows, where these are not `logits` themselves.

        Returns:
            For each micro-batch the shape of its logits, float32 (float64 for float64).
        """
        rows = _flatten(logits)
        if self.options.kind == "sinkhorn":
            targets = sinkhorn_knopp(rows, temperature, self.options.iterations, group)
        else:
            centre = self._allocated()
            targets = torch.softmax((upcast(rows) - centre) / temperature, dim=-1)
            self._follow(rows if seen is None else _flatten(seen), group)
        parts = torch.split(targets, [part.shape[:-1].numel() for part in logits])
        return [target.view(part.shape) for target, part in zip(parts, logits, strict=True)]

    def _allocated(self) -> Tensor:
        if self.centre is None:
            raise RuntimeError("the centre has no size yet: call allocate first")
        return self.centre

    def _follow(self, rows: Tensor, group: ProcessGroup | None) -> None:
        """Moves the centre towards the mean logits of the global batch, for later steps."""
        rows = upcast(rows)
        count = rows.new_full((1,), rows.shape[0])
        total = all_reduce_sum(torch.cat([rows.sum(dim=0), count]), group)
        # clamp and where in place of an `if` on the count: no wait for the device.
        mean = total[:-1] / total[-1].clamp(min=1)
        centre = self._allocated()
        moved = centre * self.options.momentum + mean * (1 - self.options.momentum)
        centre.copy_(torch.where(total[-1] > 0, moved, centre.to(moved.dtype)))


def _flatten(parts: Sequence[Tensor]) -> Tensor:
    rows = [part.reshape(-1, part.shape[-1]) for part in parts]
    return rows[0] if len(rows) == 1 else torch.cat(rows)
