"""Small backbones with weights large enough that nothing hides."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scholarch.models import build_backbone
from scholarch.models.convnext import ConvNeXt, ConvNeXtOptions
from scholarch.models.features import Backbone
from scholarch.models.initialise import check_initialised, initialise
from scholarch.models.vit import VisionTransformer, ViTOptions
from torch import nn

TINY = {"size": None, "embed_dim": 16, "depth": 2, "heads": 2, "ffn": "mlp", "ffn_ratio": 3.0, "patch": 4}

TINY_CAPI: dict[str, Any] = {
    "size": None,
    "embed_dim": 24,
    "depth": 2,
    "heads": 2,
    "predictor_depth": 2,
    "patch": 4,
    "registers": 8,
    "stochastic_depth": 0.0,
    "max_frequency": 3.0,
    "min_frequency": 0.01,
}
TINY_CONVNEXT: dict[str, Any] = {"size": None, "depths": (1, 2, 1, 1), "widths": (4, 6, 8, 10)}


def shaken(module: nn.Module, seed: int = 0) -> nn.Module:
    """Initialised, then every parameter moved by N(0, 0.3), in float64."""
    initialise(module.double(), seed)
    check_initialised(module)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return module


def tiny_options(**options: object) -> ViTOptions:
    return ViTOptions(**{**TINY, **options})  # type: ignore[arg-type]


def tiny_vit(**options: object) -> VisionTransformer:
    model = shaken(build_backbone(tiny_options(**options)))
    assert isinstance(model, VisionTransformer)
    return model.eval()


def pictures(count: int, height: int = 8, width: int = 12, channels: int = 3, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, channels, height, width, generator=generator, dtype=torch.float64)


def arrays(model: nn.Module) -> dict[str, np.ndarray]:
    return {name: value.detach().double().numpy() for name, value in model.state_dict().items()}


def parameters(model: Backbone) -> int:
    return sum(p.numel() for p in model.parameters())


def tiny_convnext(**options: Any) -> ConvNeXt:
    model = shaken(build_backbone(ConvNeXtOptions(**{**TINY_CONVNEXT, **options})))
    assert isinstance(model, ConvNeXt)
    return model.eval()
