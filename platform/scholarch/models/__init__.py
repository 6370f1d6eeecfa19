"""Backbones, heads, and how their weights begin, come in and go out."""

from __future__ import annotations

from typing import Any

from scholarch.models.alignment import AlignedBackbone, AlignedOptions
from scholarch.models.capi import CapiViT, CapiViTOptions
from scholarch.models.convnext import ConvNeXt, ConvNeXtOptions
from scholarch.models.features import Backbone
from scholarch.models.vit import VisionTransformer, ViTOptions

BackboneOptions = ViTOptions | ConvNeXtOptions | CapiViTOptions | AlignedOptions

BACKBONES: dict[str, tuple[type[Any], type[Any]]] = {
    "vit": (ViTOptions, VisionTransformer),
    "convnext": (ConvNeXtOptions, ConvNeXt),
    "capi": (CapiViTOptions, CapiViT),
    "aligned": (AlignedOptions, AlignedBackbone),
}
"""Kind of backbone -> (class of its options, class). Adding one is one file and one line here."""


def build_backbone(options: BackboneOptions) -> Backbone:
    """The backbone that `options.kind` names, its tensors without values.

    Build it under `torch.device("meta")` to allocate nothing. `initialise` gives it values.
    """
    backbone: Backbone = BACKBONES[options.kind][1](options)
    return backbone
