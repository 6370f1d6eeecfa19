"""What a backbone makes of fixed pictures, for the report."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from scholarch.models.features import Backbone, Views


@dataclass(frozen=True, kw_only=True)
class FixedPictures:
    """The same pictures at every report, and what the model makes of them.

    Attributes:
        images: [B, C, H, W], normalised.
        patches: patch features [B, N, D].
        grid: (h, w), patches down and across.
    """

    images: Tensor
    patches: Tensor
    grid: tuple[int, int]


def look_at(backbone: Backbone, images: Tensor) -> FixedPictures:
    """Features of pictures [B, C, H, W], which are normalised and on the backbone's device.

    The backbone is in evaluation mode.
    """
    grid = (images.shape[2] // backbone.patch, images.shape[3] // backbone.patch)
    with torch.inference_mode():
        (features,) = backbone([Views(images)])
    return FixedPictures(images=images, patches=features.patches, grid=grid)
