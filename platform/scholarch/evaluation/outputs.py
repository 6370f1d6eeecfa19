"""What evaluations may ask a backbone for, all from as few passes as possible.

Legend: B pictures of one size, N patches, L blocks, D width.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor
from torch.nn import functional as F

from scholarch.errors import UserError
from scholarch.evaluation.face import Output
from scholarch.models.convnext import ConvNeXt
from scholarch.models.features import Backbone, Features
from scholarch.models.vit import VisionTransformer

LAST = 4
"""Blocks of `cls_last` (reference.md section 9.2)."""
OF_VIT: frozenset[Output] = frozenset({"keys", "embedded"})
OF_COLUMNS: frozenset[Output] = frozenset({"cls_last", "norms"})
"""That want the same width and grid in every layer."""


def check(backbone: Backbone, wanted: Collection[Output]) -> None:
    """Whether a backbone has these outputs.

    Raises:
        UserError: naming what it lacks.
    """
    lacking = set[Output]() if isinstance(backbone, VisionTransformer) else OF_VIT & set(wanted)
    if isinstance(backbone, ConvNeXt):
        lacking |= OF_COLUMNS & set(wanted)
    if lacking:
        raise UserError(
            f"a backbone of this kind has no {' and no '.join(sorted(lacking))}",
            where="evaluations",
            fix="leave out the evaluations that need it: evaluations.NAME=null",
        )


@torch.no_grad()
def outputs(backbone: Backbone, images: Tensor, wanted: Collection[Output]) -> dict[Output, Tensor]:
    """Outputs [B, ...] in float32, as `face.Output` says of each.

    Args:
        backbone: in evaluation mode.
        images: [B, C, H, W], normalised, on its device.
        wanted: which.
    """
    layers = len(backbone.blocks)
    raw: list[Features] = []
    if "norms" in wanted:
        raw = backbone.intermediate_layers(images, layers, norm=False)
    several = backbone.intermediate_layers(images, min(LAST, layers) if "cls_last" in wanted else 1)
    last = several[-1]
    found: dict[Output, Tensor] = {}
    for name in wanted:
        if name == "cls":
            found[name] = last.cls
        elif name == "cls_last":
            found[name] = torch.stack([features.cls for features in several], dim=1)
        elif name == "mean_patch":
            found[name] = last.patches.mean(dim=1)
        elif name == "patches":
            found[name] = last.patches
        elif name == "norms":
            found[name] = torch.stack([features.patches.norm(dim=-1) for features in raw], dim=-1)
        elif name == "pixels":
            side = backbone.patch
            found[name] = F.unfold(images, side, stride=side).transpose(1, 2)
        else:
            assert isinstance(backbone, VisionTransformer)
            found[name] = _of_vit(backbone, images, name)
    return {name: tensor.float() for name, tensor in found.items()}


def _of_vit(backbone: VisionTransformer, images: Tensor, name: Output) -> Tensor:
    if name == "embedded":
        return backbone.patch_embed(images).flatten(1, 2)  # type: ignore[no-any-return]
    keys = backbone.last_attention(images).projections.keys  # [B, heads, T, d]
    return keys[:, :, 1 + backbone.registers :].transpose(1, 2).flatten(2)
