"""ConvNeXt as a student of a vision transformer (reference.md section 1.6).

Legend: B pictures, C channels, H x W pixels, h x w cells of the last map, N = h * w, D its width.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scholarch.draws import Draws
from scholarch.models.features import Backbone, Features, Views, wanted_layers
from scholarch.models.initialise import trunc_normal_
from scholarch.models.recompute import ActivationCheckpointing, checkpointed
from scholarch.models.stochastic_depth import DrawForm, RateShape, add_branch, block_rates, decide

Size = Literal["tiny", "small", "base", "large"]
STRIDE = 32


class Shape(NamedTuple):
    """What the name of a size stands for."""

    depths: tuple[int, int, int, int]
    widths: tuple[int, int, int, int]


SIZES: dict[Size, Shape] = {
    "tiny": Shape((3, 3, 9, 3), (96, 192, 384, 768)),
    "small": Shape((3, 3, 27, 3), (96, 192, 384, 768)),
    "base": Shape((3, 3, 27, 3), (128, 256, 512, 1024)),
    "large": Shape((3, 3, 27, 3), (192, 384, 768, 1536)),
}


@dataclass(frozen=True, kw_only=True)
class ConvNeXtOptions:
    """Options of a ConvNeXt.

    Attributes:
        size: named shape (reference.md 1.6); null: the two values below must be given.
        depths: blocks of the four stages; overrides the size's.
        widths: channels of the four stages; overrides the size's.
        channels: of the pictures.
        layer_scale: start of LayerScale.
        stochastic_depth: share of pictures for which a block is skipped while training, [0, 1).
        stochastic_depth_shape: linear from 0 to it in the last block, or the same in every block.
        stochastic_depth_draw: exactly that share of the global batch, or each picture for itself.
        dense_patch: `intermediate_layers` resizes maps to one cell for that many pixels; null: not.
    """

    kind: Literal["convnext"] = "convnext"
    size: Size | None = "tiny"
    depths: tuple[int, int, int, int] | None = None
    widths: tuple[int, int, int, int] | None = None
    channels: int = 3
    layer_scale: float = 1e-6
    stochastic_depth: float = 0.0  # training of the released students passes none
    stochastic_depth_shape: RateShape = "linear"
    stochastic_depth_draw: DrawForm = "subset"
    dense_patch: int | None = None

    def __post_init__(self) -> None:
        shape = self.shape
        if min(*shape.depths, *shape.widths, self.channels, self.dense_patch or 1) < 1:
            raise ValueError("depths, widths, channels and dense_patch must be positive")
        if not 0 <= self.stochastic_depth < 1:
            raise ValueError(f"stochastic_depth must lie in [0, 1), not {self.stochastic_depth}")

    @property
    def patch(self) -> int:
        """Pixels along a side of what one cell of the last map stands for."""
        return STRIDE

    @property
    def shape(self) -> Shape:
        """The size's shape with what was given in its place.

        Raises:
            ValueError: if there is no size and not both values.
        """
        named = SIZES[self.size] if self.size is not None else None
        depths = self.depths or (named and named.depths)
        widths = self.widths or (named and named.widths)
        if depths is None or widths is None:
            raise ValueError(f"without a size, give depths and widths; or name a size: {', '.join(SIZES)}")
        return Shape(depths, widths)


class Conv(nn.Conv2d):
    """Convolution with truncated normal weights and bias 0."""

    def init_weights(self, generator: torch.Generator) -> None:
        """Fills weight and bias."""
        trunc_normal_(self.weight, 0.02, generator)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of a map: [B, C, h, w] -> the same."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalises each cell."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNeXtBlock(nn.Module):
    """Depthwise 7 x 7, norm, linear to four times the width, GELU, linear, LayerScale, residual.

    Attributes:
        checkpoint: what is computed again in the backward pass.
    """

    checkpoint: ActivationCheckpointing = "none"

    def __init__(self, width: int, layer_scale: float) -> None:
        super().__init__()
        self.layer_scale = layer_scale
        self.dwconv = Conv(width, width, kernel_size=7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.pwconv1 = nn.Linear(width, 4 * width)
        self.pwconv2 = nn.Linear(4 * width, width)
        self.gamma = nn.Parameter(torch.full((width,), torch.nan))

    def init_weights(self, generator: torch.Generator) -> None:  # noqa: ARG002
        """Fills LayerScale."""
        nn.init.constant_(self.gamma, self.layer_scale)

    def forward(self, x: Tensor, kept: Tensor | None = None, scale: float = 1.0) -> Tensor:
        """Runs the block on [B, C, h, w]; `kept` and `scale` as in `add_branch`."""
        how = self.checkpoint if self.training else "none"
        return checkpointed(how, add_branch, x, self._branch, kept, scale)

    def _branch(self, x: Tensor) -> Tensor:
        x = self.norm(self.dwconv(x).permute(0, 2, 3, 1))  # [B, h, w, C]
        x = self.gamma * self.pwconv2(F.gelu(self.pwconv1(x)))
        return x.permute(0, 3, 1, 2)


class ConvNeXt(Backbone):
    """See ConvNeXtOptions. CLS is the mean of the last map; masks are ignored; there are no registers.

    The blocks of all stages follow one another in `blocks`. Tensors are made without values.
    """

    def __init__(self, options: ConvNeXtOptions) -> None:
        super().__init__()
        depths, widths = options.shape
        self.options = options
        self.width, self.patch, self.channels = widths[-1], options.patch, options.channels
        stem = nn.Sequential(
            Conv(options.channels, widths[0], kernel_size=4, stride=4), ChannelNorm(widths[0], eps=1e-6)
        )
        between = [
            nn.Sequential(ChannelNorm(before, eps=1e-6), Conv(before, after, kernel_size=2, stride=2))
            for before, after in itertools.pairwise(widths)
        ]
        self.downsample_layers = nn.ModuleList([stem, *between])
        self.blocks = nn.ModuleList(
            ConvNeXtBlock(width, options.layer_scale)
            for depth, width in zip(depths, widths, strict=True)
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(self.width, eps=1e-6)
        self._ends = list(itertools.accumulate(depths))
        self._rates = block_rates(options.stochastic_depth, options.stochastic_depth_shape, sum(depths))

    def forward(self, views: list[Views], draws: Draws | None = None) -> list[Features]:
        """See Backbone."""
        return [self._pooled(self._maps(group, draws)[-1], norm=True) for group in views]

    def intermediate_layers(
        self, images: Tensor, layers: int | Sequence[int] = 1, *, norm: bool = True
    ) -> list[Features]:
        """See Backbone: layers are stages, and only the last stage has a norm."""
        wanted = wanted_layers(layers, 4)
        maps = self._maps(Views(images), None, train=False)
        return [self._pooled(maps[n], norm=norm and n == 3, size=self._dense_size(images)) for n in wanted]

    def _dense_size(self, images: Tensor) -> tuple[int, int] | None:
        patch = self.options.dense_patch
        return None if patch is None else (images.shape[2] // patch, images.shape[3] // patch)

    def _maps(self, views: Views, draws: Draws | None, *, train: bool | None = None) -> list[Tensor]:
        """The map after each stage, [B, C, h, w]."""
        self.grid(views.images)
        training = self.training if train is None else train
        rates = self._rates if training else [0.0] * len(self.blocks)
        kept = decide(views, draws, rates, ("block",), self.options.stochastic_depth_draw)
        x = views.images.to(self.norm.weight.dtype)
        maps, start = [], 0
        for downsample, end in zip(self.downsample_layers, self._ends, strict=True):
            x = downsample(x)
            for block, ((rows,), scale) in zip(self.blocks[start:end], kept[start:end], strict=True):
                x = block(x, rows, scale)
            maps.append(x)
            start = end
        return maps

    def _pooled(self, x: Tensor, *, norm: bool, size: tuple[int, int] | None = None) -> Features:
        cls = x.mean(dim=(2, 3))  # [B, D]
        if size is not None:
            x = F.interpolate(x, size=size, mode="bilinear", antialias=True)
        prenorm = torch.cat([cls[:, None], x.flatten(2).transpose(1, 2)], dim=1)  # [B, 1 + N, D]
        normed = self.norm(prenorm) if norm else prenorm
        return Features(normed[:, 0], normed[:, :0], normed[:, 1:], prenorm)
