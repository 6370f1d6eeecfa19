"""What a backbone takes and gives.

Legend: B pictures (views of samples), C channels, N patches, R registers, D width.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from scholarch.draws import Draws


class Views(NamedTuple):
    """Pictures of one size that go through the backbone together.

    Attributes:
        images: [B, C, H, W].
        masks: [B, N] bool, True = replaced by the mask token; None: nothing is masked.
        rows: [B] int64, global row of each picture (over all ranks and micro-batches), by which
            decisions about it are drawn; None: rows are 0..B-1.
        total: number of global rows; None: B.
        name: key of the draws made for this group of views.
        local: whether these are local crops (local_cls_norm applies to them while training).
    """

    images: Tensor
    masks: Tensor | None = None
    rows: Tensor | None = None
    total: int | None = None
    name: str = "global"
    local: bool = False


class Features(NamedTuple):
    """Outputs of a backbone for one group of views; normed unless said otherwise."""

    cls: Tensor  # [B, D]
    registers: Tensor  # [B, R, D]
    patches: Tensor  # [B, N, D]
    prenorm: Tensor  # [B, 1 + R + N, D], before the final norm


class Backbone(nn.Module):
    """Face of every backbone: `forward(list of Views, draws) -> list of Features`.

    `draws` is needed while training with stochastic depth or position augmentation; both are
    decided over the global batch, so that ranks and micro-batches change nothing.

    Attributes:
        width: D.
        patch: side of a patch in pixels (ConvNeXt: its total stride).
    """

    width: int
    patch: int

    def forward(self, views: list[Views], draws: Draws | None = None) -> list[Features]:
        raise NotImplementedError
