"""A backbone of timm behind the face of ours, for evaluations; timm itself is imported by who makes it.

Legend: B pictures, h x w patches, N = h * w, P prefix tokens (CLS and registers), D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from scholarch.draws import Draws
from scholarch.models.features import Backbone, Features, Views, wanted_layers


class TimmBackbone(Backbone):
    """A model of timm that gives tokens [B, P + N, D] or a map of features [B, D, h, w].

    CLS is its first token, or where there is none the mean of the patches.

    Args:
        model: made with `num_classes=0`.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model: nn.Module = model
        self.width = int(model.num_features)
        self.channels = int(model.pretrained_cfg["input_size"][0])
        embed = getattr(model, "patch_embed", None)
        size = getattr(embed, "patch_size", None)
        self.patch = int(size[0]) if size is not None else int(model.feature_info[-1]["reduction"])
        self.prefix = int(getattr(model, "num_prefix_tokens", 0))
        self.has_cls = getattr(model, "cls_token", None) is not None
        blocks = getattr(model, "blocks", None)
        self.blocks = blocks if isinstance(blocks, nn.ModuleList) else nn.ModuleList(blocks or [])

    def forward(self, views: list[Views], draws: Draws | None = None) -> list[Features]:  # noqa: ARG002
        """See Backbone; nothing is masked."""
        return [self._features(group.images) for group in views]

    def intermediate_layers(
        self, images: Tensor, layers: int | Sequence[int] = 1, *, norm: bool = True
    ) -> list[Features]:
        """See Backbone; of models of tokens alone where more than the last layer is asked for."""
        if layers == 1 and norm:
            return [self._features(images)]
        wanted = wanted_layers(layers, len(self.blocks))
        model: Any = self.model
        found = model.forward_intermediates(
            images,
            indices=wanted,
            return_prefix_tokens=True,
            norm=norm,
            output_fmt="NLC",
            intermediates_only=True,
        )
        return [self._split(torch.cat([prefix, patches], dim=1)) for patches, prefix in found]

    def _features(self, images: Tensor) -> Features:
        self.grid(images)
        model: Any = self.model
        tokens: Tensor = model.forward_features(images)
        if tokens.dim() == 4:
            tokens = tokens.flatten(2).transpose(1, 2)
        return self._split(tokens)

    def _split(self, tokens: Tensor) -> Features:
        patches = tokens[:, self.prefix :]
        cls = tokens[:, 0] if self.has_cls else patches.mean(dim=1)
        registers = tokens[:, int(self.has_cls) : self.prefix]
        return Features(cls, registers, patches, tokens)
