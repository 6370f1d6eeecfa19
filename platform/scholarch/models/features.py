"""What a backbone takes and gives.

Legend: B pictures (views of samples), C channels, N patches, R registers, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, NamedTuple

from torch import Tensor, nn

from scholarch.draws import Draws
from scholarch.errors import UserError


class Views(NamedTuple):
    """Pictures of one size that go through the backbone together.

    Attributes:
        images: [B, C, H, W]; of captions [B, L] int64, their token ids; [B, T, D] of pictures that a locked
            backbone saw before (scholarch.models.alignment).
        masks: [B, N] bool, True = replaced by the mask token; None: nothing is masked.
        rows: [B] int64 on the host, global row of each picture (over all ranks and micro-batches), by
            which decisions about it are drawn; None: rows are 0..B-1.
        total: number of global rows; None: B.
        name: key of the draws made for this group of views.
        local: whether these are local crops (local_cls_norm applies to them while training).
        predict: [B, N] bool, places at which a backbone with a predictor predicts; None: `masks`.
    """

    images: Tensor
    masks: Tensor | None = None
    rows: Tensor | None = None
    total: int | None = None
    name: str = "global"
    local: bool = False
    predict: Tensor | None = None


class Features(NamedTuple):
    """Outputs of a backbone for one group of views; normed unless said otherwise.

    A backbone with a predictor (CAPI) drops masked patches: there `patches` holds what is predicted
    where it predicts, and zeros elsewhere. Features of captions have a `scale`: what their cosines with
    pictures are multiplied by.
    """

    cls: Tensor  # [B, D]
    registers: Tensor  # [B, R, D]
    patches: Tensor  # [B, N, D]
    prenorm: Tensor  # [B, 1 + R + N, D], before the final norm; CAPI has no CLS token: [B, R + N, D]
    scale: Tensor | None = None  # scalar, at least float32

    def detached(self) -> Features:
        """The same without their graph."""
        return Features(
            self.cls.detach(),
            self.registers.detach(),
            self.patches.detach(),
            self.prenorm.detach(),
            None if self.scale is None else self.scale.detach(),
        )


class Backbone(nn.Module):
    """Face of every backbone: `forward(list of Views, draws) -> list of Features`.

    `draws` is needed while training with stochastic depth or position augmentation; both are
    decided over the global batch, so that ranks and micro-batches change nothing.

    Attributes:
        width: D.
        patch: side of a patch in pixels (ConvNeXt: its total stride).
        channels: C.
        blocks: the parts that are compiled, sharded and checkpointed one by one, in order; each
            has a switch `checkpoint`.
        locked: parts that are never trained, by name.
        bounds: least and largest value of parameters, by name, to which they are set back after each step.
    """

    locked: ClassVar[tuple[str, ...]] = ()
    bounds: ClassVar[Mapping[str, tuple[float, float]]] = {}
    width: int
    patch: int
    channels: int
    blocks: nn.ModuleList

    def towers(self) -> Mapping[str, nn.Module]:
        """Modules with `blocks` of their own by name; "": the backbone itself."""
        return {"": self}

    def in_order(self) -> Sequence[nn.Module]:
        """Blocks that every pass through the backbone runs, one after the other.

        A block not named here may be left out; a block named must not, for its weights may be on the way.
        """
        return list(self.blocks)

    def forward(self, views: list[Views], draws: Draws | None = None) -> list[Features]:
        """Features of each group of views.

        Raises:
            UserError: if pictures are no multiple of the patch or have other channels.
            ValueError: if draws are needed and not given, or masks do not fit the grid.
        """
        raise NotImplementedError

    def intermediate_layers(
        self, images: Tensor, layers: int | Sequence[int] = 1, *, norm: bool = True
    ) -> list[Features]:
        """Features after several layers, without masks or anything drawn.

        Under FSDP2, name it to `register_fsdp_forward_method` first.

        Args:
            images: [B, C, H, W].
            layers: that many last layers, or the 0-based numbers of layers, in rising order.
                Layers are blocks (ConvNeXt: stages).
            norm: whether the final norm is applied, to every one of them (ConvNeXt: to the last).

        Raises:
            UserError: as `forward`.
            ValueError: if there is no such layer.
        """
        raise NotImplementedError

    def grid(self, images: Tensor) -> tuple[int, int]:
        """Patches down and across of pictures [B, C, H, W].

        Raises:
            UserError: if a side is no multiple of the patch, or the channels are not the model's.
        """
        channels, height, width = images.shape[1:]
        if channels != self.channels:
            raise UserError(
                f"pictures have {channels} channels, the model takes {self.channels}",
                fix="set the model's `channels` or convert the pictures",
            )
        if height % self.patch or width % self.patch or not height or not width:
            raise UserError(
                f"a picture of {height}x{width} pixels does not divide into patches of {self.patch}",
                fix=f"choose a height and a width that are multiples of {self.patch}",
            )
        return height // self.patch, width // self.patch


def wanted_layers(layers: int | Sequence[int], depth: int) -> list[int]:
    """0-based numbers of layers: the last so many of `depth`, or those named.

    Raises:
        ValueError: if there is no such layer.
    """
    wanted = list(range(depth - layers, depth)) if isinstance(layers, int) else list(layers)
    if not wanted or min(wanted) < 0 or max(wanted) >= depth:
        raise ValueError(f"there is no such layer in {wanted}: there are {depth}")
    return wanted
