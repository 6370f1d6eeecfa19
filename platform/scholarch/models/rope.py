"""Axial rotary position embedding (DINOv3; reference.md section 1.3).

Legend: H, W patches down and across; P = H * W; T = prefix + P tokens; d width of an attention head.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from scholarch.draws import Draws

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class RopeOptions:
    """Options of the axial rotary position embedding.

    Attributes:
        base: periods are base^(4i/d), i = 0 .. d/4 - 1. None: `min_period` and `max_period` say.
        min_period: smallest period, with `max_period`: geometric between the two, both included.
        max_period: largest period.
        coordinates: patch centres divided by H and W ("separate"), or both by the larger ("max")
            or smaller ("min") of the two; then mapped from [0, 1] to [-1, 1].
        shift: while training, add U(-shift, shift) per axis.
        jitter: while training, multiply each axis by exp U(-ln jitter, ln jitter).
        rescale: while training, multiply both axes by one exp U(-ln rescale, ln rescale).
        dtype: of the periods, coordinates, angles and the rotation. A float64 module uses float64.
    """

    base: float | None = 100.0  # released DINOv3 (reference.md 1.4)
    min_period: float | None = None
    max_period: float | None = None
    coordinates: Literal["separate", "max", "min"] = "separate"
    shift: float | None = None
    jitter: float | None = None
    rescale: float | None = None  # released recipe: 2
    dtype: Literal["fp32", "bf16"] = "fp32"  # bf16 coarsens coordinates; the released weights want fp32

    def __post_init__(self) -> None:
        periods = (self.min_period, self.max_period)
        if (self.base is None) == (periods == (None, None)) or (self.base is None and None in periods):
            raise ValueError("rope periods: give either `base`, or both `min_period` and `max_period`")
        if self.base is not None and self.base <= 1:
            raise ValueError(f"rope base must be greater than 1, not {self.base}")
        if None not in periods and not 0 < (self.min_period or 0) < (self.max_period or 0):
            raise ValueError(f"rope periods must satisfy 0 < min_period < max_period, not {periods}")
        if self.shift is not None and self.shift < 0:
            raise ValueError(f"rope shift must not be negative, not {self.shift}")
        for name in ("jitter", "rescale"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"rope {name} must be at least 1, not {value}; 1 or null turns it off")

    @property
    def augmented(self) -> bool:
        """Whether coordinates are drawn while training."""
        return not (self.shift is None and self.jitter is None and self.rescale is None)


class Rotation:
    """Angles by which queries and keys are turned, as sine and cosine.

    A plain class, neither tuple nor dataclass: FSDP2 casts tensors it finds in a module's
    arguments to the parameters' dtype, and would take float32 angles down to bfloat16.

    Attributes:
        sin: [T, d], or broadcastable to [B, heads, T, d]; 0 for tokens without a place.
        cos: the same; 1 for tokens without a place.
    """

    def __init__(self, sin: Tensor, cos: Tensor) -> None:
        self.sin, self.cos = sin, cos

    def rows(self, kept: Tensor | None) -> Rotation:
        """That of the pictures `kept`, where each has its own [B, 1, T, d]; None: all."""
        return self if kept is None else Rotation(self.sin[kept], self.cos[kept])

    def __call__(self, x: Tensor) -> Tensor:
        """`x` turned, in the angles' dtype and back. [B, heads, T, d] -> the same."""
        turned = x.to(self.sin.dtype)
        first, second = turned.chunk(2, dim=-1)  # channel i pairs with i + d/2
        return (turned * self.cos + torch.cat([-second, first], dim=-1) * self.sin).to(x.dtype)


class AxialRope(nn.Module):
    """Makes the rotations of each block of a transformer for a grid of patches.

    Args:
        head_width: d, a multiple of 4.
        options: see RopeOptions.

    Raises:
        ValueError: if `head_width` is not a multiple of 4.
    """

    periods: Tensor

    def __init__(self, head_width: int, options: RopeOptions) -> None:
        super().__init__()
        if head_width % 4:
            raise ValueError(f"rope wants the width of a head to be a multiple of 4, not {head_width}")
        self.options = options
        self.head_width = head_width
        # Persistent, because teachers are set by loading the student's state (reference.md 0.8).
        dtype = _DTYPES[options.dtype] if torch.get_default_dtype() != torch.float64 else torch.float64
        self.register_buffer("periods", torch.full((head_width // 4,), torch.nan, dtype=dtype))

    def init_weights(self, generator: torch.Generator) -> None:  # noqa: ARG002
        """Fills the periods; nothing is drawn."""
        count = self.head_width // 4
        steps = torch.arange(count, dtype=torch.float64)
        options = self.options
        if options.base is not None:
            periods = options.base ** (2 * steps / (self.head_width / 2))
        else:
            assert options.min_period is not None
            assert options.max_period is not None
            ratio = options.max_period / options.min_period
            periods = options.min_period * ratio ** (steps / max(count - 1, 1))
        with torch.no_grad():
            self.periods.copy_(periods)

    def forward(
        self,
        height: int,
        width: int,
        prefix: int,
        blocks: int,
        draws: Draws | None = None,
        name: str = "global",
    ) -> list[Rotation]:
        """Rotations for each of `blocks` blocks.

        Augmentation is drawn afresh for every block and group of views, as the source does,
        and only while training.

        Args:
            height: H.
            width: W.
            prefix: tokens before the patches, which are not turned.
            blocks: how many blocks; without augmentation all share one rotation.
            draws: needed while training with augmentation.
            name: of the group of views, part of the draws' key.

        Raises:
            ValueError: if draws are needed and not given.
        """
        coordinates = self._coordinates(height, width)  # [P, 2]
        if not (self.training and self.options.augmented):
            return [self._rotation(coordinates, prefix)] * blocks
        if draws is None:
            raise ValueError("training with shift, jitter or rescale of positions needs `draws`")
        return [
            self._rotation(self._augmented(coordinates, draws, name, block), prefix)
            for block in range(blocks)
        ]

    def _dtype(self) -> torch.dtype:
        return torch.float64 if self.periods.dtype == torch.float64 else _DTYPES[self.options.dtype]

    def _coordinates(self, height: int, width: int) -> Tensor:
        down = torch.arange(0.5, height, dtype=self._dtype(), device=self.periods.device)
        across = torch.arange(0.5, width, dtype=self._dtype(), device=self.periods.device)
        if self.options.coordinates == "separate":
            divide_down, divide_across = height, width
        else:
            divide_down = divide_across = (max if self.options.coordinates == "max" else min)(height, width)
        grid = torch.meshgrid(down / divide_down, across / divide_across, indexing="ij")
        return 2 * torch.stack(grid, dim=-1).flatten(0, 1) - 1

    def _augmented(self, coordinates: Tensor, draws: Draws, name: str, block: int) -> Tensor:
        options = self.options
        if options.shift is not None:
            shift = draws.uniform(-options.shift, options.shift, 2, "rope shift", name, block)
            coordinates = coordinates + coordinates.new_tensor(shift)
        for kind, limit, count in (("jitter", options.jitter, 2), ("rescale", options.rescale, 1)):
            if limit is not None:
                log = draws.uniform(-math.log(limit), math.log(limit), count, f"rope {kind}", name, block)
                coordinates = coordinates * coordinates.new_tensor(np.exp(log))
        return coordinates

    def _rotation(self, coordinates: Tensor, prefix: int) -> Rotation:
        angles = 2 * math.pi * coordinates[:, :, None] / self.periods.to(coordinates.dtype)  # [P, 2, d/4]
        angles = angles.flatten(1).tile(2)  # [P, d]: rows, columns, rows, columns
        still = angles.new_zeros(prefix, angles.shape[1])
        return Rotation(torch.cat([still, angles.sin()]), torch.cat([still + 1, angles.cos()]))
