"""Architectures of released weights by name (reference.md sections 1.4 to 1.6, 3.8 and 14)."""

from __future__ import annotations

from typing import Any, NamedTuple

from scholarch.models.capi import CapiViTOptions
from scholarch.models.convnext import ConvNeXtOptions
from scholarch.models.positions import LearnedPositionOptions
from scholarch.models.rope import RopeOptions
from scholarch.models.vit import ViTOptions

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
SATELLITE = ((0.430, 0.411, 0.296), (0.213, 0.156, 0.143))


class Released(NamedTuple):
    """What is needed to use a file of released weights.

    Attributes:
        options: of the backbone.
        file: stem of the released file's name; empty: it has no name of its own.
        mean: of the pictures' channels, in [0, 1].
        std: of the pictures' channels.
    """

    options: ViTOptions | ConvNeXtOptions | CapiViTOptions
    file: str
    mean: tuple[float, float, float] = IMAGENET[0]
    std: tuple[float, float, float] = IMAGENET[1]


def _dinov3(size: Any, file: str, sat: bool = False, **options: Any) -> Released:
    built = ViTOptions(size=size, norm="layernorm_bf16", rope=RopeOptions(rescale=2.0), **options)
    return Released(built, f"dinov3_{file}", *(SATELLITE if sat else IMAGENET))


def _dinov2(size: Any, file: str, registers: int) -> Released:
    options = ViTOptions(
        size=size,
        ffn="swiglu" if size == "giant" else "mlp",
        patch=14,
        registers=registers,
        position="learned",
        learned=LearnedPositionOptions(grid=37, interpolation="size" if registers else "scale"),
    )
    return Released(options, f"dinov2_{file}{'_reg4' if registers else ''}_pretrain")


def _dino(size: Any, patch: int, file: str) -> Released:
    options = ViTOptions(
        size=size,
        patch=patch,
        registers=0,
        layer_scale=None,
        position="learned",
        learned=LearnedPositionOptions(grid=224 // patch, interpolation="scale"),
    )
    return Released(options, file)


_7B: dict[str, Any] = {"qkv_bias": False, "untie_global_and_local_cls_norm": True}

RELEASED: dict[str, Released] = {
    "dinov3_vits16": _dinov3("small", "vits16_pretrain_lvd1689m"),
    "dinov3_vits16plus": _dinov3("small_plus", "vits16plus_pretrain_lvd1689m"),
    "dinov3_vitb16": _dinov3("base", "vitb16_pretrain_lvd1689m"),
    "dinov3_vitl16": _dinov3("large", "vitl16_pretrain_lvd1689m"),
    "dinov3_vitl16_sat493m": _dinov3(
        "large", "vitl16_pretrain_sat493m", sat=True, untie_global_and_local_cls_norm=True
    ),
    "dinov3_vitl16plus": _dinov3("large_plus", "vitl16plus_pretrain_lvd1689m"),
    "dinov3_vith16plus": _dinov3("huge_plus", "vith16plus_pretrain_lvd1689m"),
    "dinov3_vit7b16": _dinov3("7b", "vit7b16_pretrain_lvd1689m", **_7B),
    "dinov3_vit7b16_sat493m": _dinov3("7b", "vit7b16_pretrain_sat493m", sat=True, **_7B),
    **{
        f"dinov3_convnext_{size}": Released(
            ConvNeXtOptions(size=size), f"dinov3_convnext_{size}_pretrain_lvd1689m"
        )
        for size in ("tiny", "small", "base", "large")
    },
    **{
        f"dinov2_vit{letter}14{'_reg' if registers else ''}": _dinov2(size, f"vit{letter}14", registers)
        for letter, size in (("s", "small"), ("b", "base"), ("l", "large"), ("g", "giant"))
        for registers in (0, 4)
    },
    "dino_vits16": _dino("small", 16, "dino_deitsmall16_pretrain"),
    "dino_vits8": _dino("small", 8, "dino_deitsmall8_pretrain"),
    "dino_vitb16": _dino("base", 16, "dino_vitbase16_pretrain"),
    "dino_vitb8": _dino("base", 8, "dino_vitbase8_pretrain"),
    "ibot_vits16": _dino("small", 16, ""),
    "ibot_vitb16": _dino("base", 16, ""),
    "ibot_vitl16": _dino("large", 16, ""),
    **{
        f"capi_vitl14_{name}": Released(CapiViTOptions(), f"capi_vitl14_{file}")
        for name, file in (("lvd", "lvd"), ("p205", "p205"), ("in22k", "i22k"), ("in1k", "in1k"))
    },
}
"""Name -> what is needed to use it. The normalisation of CAPI and DINO is ImageNet's too."""


def released_by_file(file_name: str) -> str | None:
    """The name in RELEASED that a file's name tells, such as dinov3_vits16_pretrain_lvd1689m-08c60483.pth."""
    for name, entry in RELEASED.items():
        if entry.file and file_name.startswith((f"{entry.file}-", f"{entry.file}.")):
            return name
    return None
