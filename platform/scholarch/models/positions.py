"""Learned positions, resampled to the grid of the picture (DINO, iBOT, DINOv2; reference.md 1.5)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from scholarch.collectives import upcast


@dataclass(frozen=True, kw_only=True)
class LearnedPositionOptions:
    """Options of learned positions.

    Attributes:
        grid: side of the square grid of stored positions (37 for released DINOv2: 518 / 14).
        interpolation: how another grid is made of it, always bicubic in float32. "size" asks for the
            grid and is antialiased (DINOv2 with registers); "scale" asks for the factor
            (side + 0.1) / grid without antialiasing (DINO, iBOT, DINOv2 without registers).
    """

    grid: int = 37
    interpolation: Literal["size", "scale"] = "size"

    def __post_init__(self) -> None:
        if self.grid < 1:
            raise ValueError(f"the grid of learned positions must be at least 1, not {self.grid}")


def resample(positions: Tensor, height: int, width: int, interpolation: Literal["size", "scale"]) -> Tensor:
    """Learned positions for a grid of height x width patches.

    Args:
        positions: [1, 1 + grid^2, D]; the first is the CLS token's and stays as it is.
        height: patches down.
        width: patches across.
        interpolation: see LearnedPositionOptions.

    Returns:
        [1, 1 + height * width, D], in the dtype of `positions`.
    """
    side = round((positions.shape[1] - 1) ** 0.5)
    # As the source: a picture that is not square is resampled even where the count agrees.
    if height == width == side:
        return positions
    grid = upcast(positions[:, 1:]).reshape(1, side, side, -1).permute(0, 3, 1, 2)  # [1, D, grid, grid]
    if interpolation == "size":
        grid = F.interpolate(grid, size=(height, width), mode="bicubic", antialias=True)
    else:
        # The 0.1 keeps the floor of the product from falling one short.
        factors = ((height + 0.1) / side, (width + 0.1) / side)
        grid = F.interpolate(grid, scale_factor=factors, mode="bicubic", antialias=False)
    resampled = grid.permute(0, 2, 3, 1).flatten(1, 2).to(positions.dtype)
    return torch.cat([positions[:, :1], resampled], dim=1)
