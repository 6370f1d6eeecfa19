"""What a rank is given for one micro-batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass
class MicroBatch:
    """A rank's samples of one micro-batch.

    Attributes:
        views: crops by view, [V, b, C, H, W], normalised; as VIEW/teacher what teachers see instead; as
            `caption` token ids [1, b, L] int64; [1, b, T, D] where features of pictures are read.
        masks: by name of the mask, [V, b, N] bool, True = masked.
        positions: places in the global batch, [b] int64; always on the host, where draws are made.
        sample_ids: numbers within the source (of a mixture: all data sets in a row) of the samples used,
            [b] int64; on the host too.
        broken: "name: reason" of each picture that was replaced, once for each time it was due.
        upscaled: samples whose picture is smaller than the largest crop.
        places: by name of the mask [M] int64, its True places in flattened [V, b, N]: found here, since a
            device that looks for them makes the host wait.
        bottlenecks: by teacher what its heads made of these samples before the prototypes, by output, where
            the teacher ran elsewhere (scholarch.distillation.exchange).
    """

    views: dict[str, Tensor]
    masks: dict[str, Tensor]
    positions: Tensor
    sample_ids: Tensor
    broken: list[str] = field(default_factory=list)
    upscaled: int = 0
    places: dict[str, Tensor] = field(default_factory=dict)
    bottlenecks: dict[str, dict[Any, Tensor]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.positions)

    def pin_memory(self) -> MicroBatch:
        """The same in page-locked memory; called by torch's loader."""
        return self._each(lambda tensor: tensor.pin_memory())

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> MicroBatch:
        """The same on a device, copied asynchronously where memory is pinned; `dtype` is for the views."""
        moved = self._each(lambda tensor: tensor.to(device, non_blocking=True))
        if dtype is not None:
            moved.views = {
                name: tensor.to(dtype) if tensor.is_floating_point() else tensor
                for name, tensor in moved.views.items()
            }
        return moved

    def _each(self, change: Callable[[Tensor], Tensor]) -> MicroBatch:
        return MicroBatch(
            views={name: change(tensor) for name, tensor in self.views.items()},
            masks={name: change(tensor) for name, tensor in self.masks.items()},
            positions=self.positions,
            sample_ids=self.sample_ids,
            broken=self.broken,
            upscaled=self.upscaled,
            places={name: change(tensor) for name, tensor in self.places.items()},
            bottlenecks=self.bottlenecks,
        )
